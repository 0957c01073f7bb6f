# SPDX-License-Identifier: Apache-2.0
"""The marketplace on which the crashes are played: who is there, what they own, and one endpoint.

Everything is done over the doors with people's keys and stands in their log. Two owners have an expert each;
the north's stays permitted for good, so that the endpoint always has somebody to answer; the south gives
and withdraws its consent again and again.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.client import MarketplaceClient
from cluster.home import Home
from examples.chaos.client_log import ClientLog, Person
from examples.chaos.tiny_base import make_base, write_dataset
from examples.demo.house import House

ENDPOINT = "desk"
CONSUMER = "apps"
#: Owner → the package of the standard library that it trains on.
OWNERS = {"north": "json", "south": "unittest"}
STEPS = 240
_FIRST_STEPS = 40
_CAST = {
    "ada": ("north", "owner"),
    "sue": ("south", "owner"),
    "dev": (CONSUMER, "developer"),
    "carol": ("platform", "compliance"),
    "chidi": ("platform", "compliance"),
    "aya": ("platform", "auditor"),
}
_OWNER_OF = {"north": "ada", "south": "sue"}
_RECIPE: dict[str, Any] = {
    "batch_rows": 2,
    "sequence_tokens": 64,
    "checkpoint_every": 10,
    "precision": "fp32",
    "fit_documents": 8,
    "fit_tokens": 64,
    "heldout_documents": 2,
    "heldout_characters": 300,
}
_POLL_S = 0.1


class StageFailed(RuntimeError):
    """The marketplace did not do what a crash needs as its beginning."""


class Stage:
    """One installation with its people.

    Args:
        folder: everything happens in it: the home, the base, the clients' log.
        port: of the gateway.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.house = House(
            home=folder / "home",
            port=port,
            settings={"starter_base": str(folder / "base"), "ray_cpus": "4", "start_timeout_s": "180"},
        )
        self.home = Home(self.house.home)
        self.log = ClientLog(folder / "clients.jsonl")
        self.people: dict[str, Person] = {}
        self.secrets: dict[str, str] = {}
        self.experts: dict[str, dict[str, Any]] = {}
        self.usual_up_s = 0.0

    def build(self) -> None:
        """Brings everything up for the first time and lets two owners train.

        Raises:
            StageFailed: a job failed or the endpoint does not answer.
        """
        make_base(self.folder / "base", self.folder / "scratch")
        self.up()
        self._gather()
        self._train_first()
        self._permit()
        self.first_answer()

    def up(self) -> float:
        """Runs ``marketplace up``; the seconds that it took."""
        began = time.monotonic()
        self.house.command("up", quiet=True)
        self.usual_up_s = time.monotonic() - began
        for person in self.people.values():
            person.reconnect()
        return self.usual_up_s

    @contextmanager
    def begin_up(self) -> Iterator[subprocess.Popen[bytes]]:
        """Starts ``marketplace up`` and does not wait for it; collects it at the end."""
        command = subprocess.Popen(
            [sys.executable, "-m", "cluster.cli.main", "up"],
            env=self.house.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield command
        finally:
            command.wait()

    def close(self) -> None:
        """Takes the marketplace down and closes every connection."""
        for person in self.people.values():
            person.close()
        self.house.command("down", quiet=True)
        self.log.close()

    def connect(self, who: str, *, timeout_s: float = 120.0) -> MarketplaceClient:
        """A connection of its own for somebody."""
        return self.house.client(self.secrets[who], timeout_s=timeout_s)

    def owner(self, tenant: str) -> Person:
        """The person who speaks for an owner."""
        return self.people[_OWNER_OF[tenant]]

    def every(self, who: str, operation: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """Every row of a list, page by page."""
        after: str | None = None
        while True:
            page = self.people[who].read(operation, limit=500, after=after, **fields)
            yield from page["items"]
            after = page.get("next")
            if after is None:
                return

    # -- acts -----------------------------------------------------------------------------------------

    def submit_job(self, tenant: str, *, steps: int = STEPS) -> str:
        """An owner uploads its documents under a new name and submits a job; the job's id."""
        owner, mark = self.owner(tenant), secrets.token_hex(3)
        file = write_dataset(self.folder / "uploads" / f"{tenant}.jsonl", OWNERS[tenant])
        dataset = owner.upload("datasets.upload", file, name=f"text-{mark}", license="CC-BY-4.0")
        job = owner.call(
            "jobs.submit",
            key=fresh_key(),
            name=f"expert-{mark}",
            dataset_id=dataset["id"],
            recipe=_RECIPE | {"steps": steps, "seed": int(mark, 16)},
        )
        return str(job["id"])

    def await_job(self, tenant: str, job_id: str, *, timeout_s: float = 180.0) -> dict[str, Any]:
        """Waits until a job has ended.

        Raises:
            StageFailed: it did not end in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            job = self.owner(tenant).read("jobs.show", job_id=job_id)
            if job["state"] in {"succeeded", "failed", "cancelled"}:
                return job
            time.sleep(_POLL_S)
        raise StageFailed(f"The job {job_id} is still {job['state']} ({job['message']}) after {timeout_s} s.")

    def propose(self, author: str, title: str, *items: dict[str, Any]) -> dict[str, Any]:
        """Drafts a change."""
        return self.people[author].call("changes.propose", key=fresh_key(), title=title, items=list(items))

    def agree(self, author: str, title: str, *items: dict[str, Any]) -> dict[str, Any]:
        """Drafts a change and has compliance approve it; the publication."""
        change = self.propose(author, title, *items)
        approver = "chidi" if author == "carol" else "carol"
        return self.approve(approver, change)

    def approve(self, who: str, change: dict[str, Any]) -> dict[str, Any]:
        """Approves a change; the publication."""
        return self.people[who].call(
            "changes.approve", key=fresh_key(), change_id=change["id"], digest=change["digest"]
        )

    def south_consents(self) -> dict[str, Any]:
        """The item by which the south permits its expert for research."""
        return _consent(self.experts["south"])

    def stream_body(self, *, tokens: int, seed: int) -> dict[str, Any]:
        """What a consumer asks for: a greedy answer, which never ends by itself."""
        return {
            "model": ENDPOINT,
            "prompt": f"def read_{seed}(path):\n",
            "max_tokens": tokens,
            "temperature": 0.0,
            "stream": True,
            "logprobs": 0,
        }

    def first_answer(self, *, timeout_s: float = 120.0) -> float:
        """Asks until the endpoint answers; the seconds that it took.

        Raises:
            StageFailed: it does not answer in time.
        """
        from examples.chaos.streams import Asking

        began = time.monotonic()
        last = ""
        while time.monotonic() - began < timeout_s:
            one = Asking(self, tokens=8, seed=0)
            one.start()
            one.join(timeout_s)
            if one.ended:
                return time.monotonic() - began
            last = one.failed
            time.sleep(_POLL_S)
        raise StageFailed(f"The endpoint does not answer after {timeout_s} s: {last}")

    # -- the beginning ----------------------------------------------------------------------------------

    def _gather(self) -> None:
        self.secrets["operator"] = self.house.operator_key()
        operator = self.people["operator"] = self._person("operator")
        for slug in (*OWNERS, CONSUMER):
            operator.call("tenants.create", key=fresh_key(), slug=slug, title=f"Tenant {slug}", country="DE")
        for name, (tenant, role) in _CAST.items():
            self.secrets[name] = self.make_key(tenant, name, role)
            self.people[name] = self._person(name)
        operator.call("ledger.budget", key=fresh_key(), tenant=CONSUMER, limit_micro=10**12)

    def make_key(self, tenant: str, name: str, role: str) -> str:
        """Makes a key; its secret."""
        made = self.people["operator"].call("keys.create", tenant=tenant, principal=name, roles=[role])
        return str(made["secret"])

    def _person(self, name: str) -> Person:
        secret = self.secrets[name]
        return Person(name, lambda: self.house.client(secret), self.log)

    def _train_first(self) -> None:
        jobs = {tenant: self.submit_job(tenant, steps=_FIRST_STEPS) for tenant in OWNERS}
        for tenant, job_id in jobs.items():
            job = self.await_job(tenant, job_id)
            if job["state"] != "succeeded":
                raise StageFailed(f"The first job of {tenant} {job['state']}: {job.get('error_sentence')}")
            self.experts[tenant] = next(
                row for row in self.every("carol", "experts.list") if row["job_id"] == job_id
            )

    def _permit(self) -> None:
        self.agree("carol", "Research", {"kind": "rule.permit", "purpose": "research", "text": "In scope."})
        for tenant, expert in self.experts.items():
            self.agree(
                _OWNER_OF[tenant],
                f"Terms of {tenant}",
                {
                    "kind": "listing.put",
                    "expert_id": expert["id"],
                    "price_micro_per_1k_tokens": 1_234_567,
                    "license": "CC-BY-4.0",
                },
                {"kind": "grant.give", "expert_id": expert["id"], "consumer_tenant": CONSUMER},
                _consent(expert),
            )
        base = self.people["operator"].read("bases.list")["items"][0]
        self.agree(
            "dev",
            "An endpoint",
            {
                "kind": "deployment.put",
                "name": ENDPOINT,
                "tenant": CONSUMER,
                "base_digest": base["id"],
                "purpose": "research",
                "region": "de",
                "commercial": False,
                "top_k": 2,
            },
        )


def until(condition: Callable[[], bool], *, timeout_s: float, pause_s: float = 0.01) -> bool:
    """Waits for a condition; False if it did not come true in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(pause_s)
    return False


def _consent(expert: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "consent.give", "expert_id": expert["id"], "purpose": "research"}


def fresh_key() -> str:
    """A key under which a call is done once, however often it is sent."""
    return f"chaos-{secrets.token_hex(12)}"
