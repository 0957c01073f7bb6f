# SPDX-License-Identifier: Apache-2.0
"""A small marketplace in one process: a real office over SQLite, a real HTTP server, scripted model hosts."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from cluster.bootstrap import open_office, open_store
from cluster.gateway.app import build_app
from cluster.gateway.door import DoorLimits
from cluster.gateway.server import bind, quiet_server
from cluster.home import Home
from cluster.hosting.messages import (
    GenerationAccount,
    GenerationChunk,
    GenerationRequest,
    PromptEcho,
    Segment,
    TokenLogprob,
)
from cluster.office.protocol import Admission
from cluster.operations.intake import pack_bundle
from cluster.settings import Settings
from model_core.packing.keys import load_or_create_key

sys.path.insert(0, str(Path(__file__).parents[1] / "model_core"))

#: Who is in the town: name → (tenant, roles).
CAST = {
    "ada": ("north", ["owner"]),
    "bob": ("north", ["owner"]),
    "sue": ("south", ["owner"]),
    "dev": ("apps", ["developer"]),
    "eve": ("elsewhere", ["developer"]),
    "aud": ("platform", ["auditor"]),
    "carol": ("platform", ["compliance"]),
    "dora": ("platform", ["compliance"]),
}
MAX_UPLOAD_BYTES = 300_000
DOCUMENTS = b"".join(
    json.dumps({"id": f"d{n}", "text": f"note number {n}"}).encode() + b"\n" for n in range(5)
)


@dataclass
class ScriptedHosts:
    """Model hosts that say what a test tells them to, and remember what they were asked."""

    words: tuple[str, ...] = ("Hello", " there", ".")
    pause_s: float = 0.0
    first_pause_s: float = 0.0
    fails: Exception | None = None
    fails_after: int = 0
    asked: list[tuple[Admission, GenerationRequest]] = field(default_factory=list)
    closed: int = 0
    finished: int = 0

    async def generate(
        self, admission: Admission, request: GenerationRequest
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Yields one chunk per word and choice, then the account."""
        self.asked.append((admission, request))
        try:
            await asyncio.sleep(self.first_pause_s)
            if request.echo:
                yield _echo(request)
            if not request.max_tokens:
                for index in range(request.n):
                    account = _account(admission, request, 0) if index == request.n - 1 else None
                    yield GenerationChunk(index=index, finish_reason="length", marketplace=account)
            words = self.words[: request.max_tokens]
            for place, word in enumerate(words):
                if self.fails is not None and place >= self.fails_after:
                    raise self.fails
                for index in range(request.n):
                    last = place == len(words) - 1
                    yield GenerationChunk(
                        index=index,
                        token_ids=(place,),
                        text=word,
                        finish_reason="stop" if last else None,
                        prompt_tokens=7 if place == 0 else None,
                        marketplace=_account(admission, request, len(words))
                        if last and index == request.n - 1
                        else None,
                    )
                await asyncio.sleep(self.pause_s)
            self.finished += 1
        finally:
            self.closed += 1


def _echo(request: GenerationRequest) -> GenerationChunk:
    """The prompt of words or numbers, every token but the first with a score."""
    words = [f"<{number}>" for number in request.prompt_token_ids or ()] or (request.prompt or "").split()
    logprobs = tuple(
        TokenLogprob(
            token=word, token_id=n, logprob=-float(n) if n else None, top=((word, n, -float(n)),) if n else ()
        )
        for n, word in enumerate(words)
    )
    shown = logprobs if request.logprobs is not None else None
    return GenerationChunk(
        prompt=PromptEcho(text="".join(words), logprobs=shown), prompt_tokens=7, exact=True
    )


def _account(admission: Admission, request: GenerationRequest, tokens: int) -> GenerationAccount:
    segments = tuple(
        Segment(
            index=index,
            epoch=admission.epoch,
            composition_digest=admission.composition_digest,
            from_token=0,
            to_token=tokens,
            experts={"public": tokens * 1_000_000},
        )
        for index in range(request.n)
    )
    return GenerationAccount(
        request_id=admission.request_id,
        prompt_tokens=7,
        completion_tokens=tokens * request.n,
        segments=segments,
    )


class Town:
    """The running marketplace of one test.

    Attributes:
        url: where its gateway answers.
        keys: secret by person of ``CAST``, and ``operator``.
        ids: what the founding made: base, dataset, expert, consent, grant, deployment.
        hosts: the scripted model hosts.
        office: the office itself.
        home: its folders.
    """

    def __init__(self, home: Path, keys: dict[str, str], ids: dict[str, str], **limits: Any) -> None:
        self.home = Home(home)
        self.keys = keys
        self.ids = ids
        self.hosts = ScriptedHosts()
        self.settings = Settings(home=home, starter_base="none", max_upload_bytes=MAX_UPLOAD_BYTES)
        self.office = open_office(self.settings.model_dump(mode="json"))
        self._limits = limits
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._serve(),), daemon=True
        )
        self._thread.start()
        assert self._ready.wait(120)
        # Reading the world's certificates would cost every town 25 ms, and it speaks plain HTTP.
        self.http = httpx.Client(base_url=self.url, timeout=120, trust_env=False, verify=False)  # noqa: S501

    async def _serve(self) -> None:
        limits = DoorLimits(
            staging=self.home.uploads,
            **{"max_upload_bytes": MAX_UPLOAD_BYTES, "max_tokens": 64} | self._limits,
        )
        store = open_store(self.settings, self.home)
        app = build_app(self.office, self.hosts, limits, artifacts=store)
        listener = await bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._server = quiet_server(app)
        serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            await asyncio.sleep(0.005)
        self._ready.set()
        await serving

    def close(self) -> None:
        """Ends the server and closes the office."""
        self.http.close()
        self._server.should_exit = True
        self._thread.join(20)
        self.office.close()

    def ask(self, who: str, method: str, path: str, **options: Any) -> httpx.Response:
        """Sends a request with somebody's key to a path below ``/api/v1``."""
        headers = {"Authorization": f"Bearer {self.keys[who]}"} | options.pop("headers", {})
        return self.http.request(method, f"/api/v1{path}", headers=headers, **options)

    def get(self, who: str, path: str, **params: Any) -> Any:
        """Reads a document that must be there."""
        return _good(self.ask(who, "GET", path, params=params))

    def post(self, who: str, path: str, **body: Any) -> Any:
        """Posts a document that must be taken."""
        return _good(self.ask(who, "POST", path, json=body))

    def put(self, who: str, path: str, **body: Any) -> Any:
        """Puts a document that must be taken."""
        return _good(self.ask(who, "PUT", path, json=body))

    def approve(self, who: str, change: dict[str, Any]) -> Any:
        """Approves a change as it was drafted."""
        return self.post(who, f"/changes/{change['id']}/approve", digest=change["digest"])

    def upload(self, who: str, path: str, content: bytes, media_type: str, **params: Any) -> httpx.Response:
        """Sends a file."""
        return self.ask(
            who, "POST", path, params=params, content=content, headers={"Content-Type": media_type}
        )

    def state(self) -> dict[str, int]:
        """How many rows every table has: what a refused request must not change."""
        from sqlalchemy import inspect, text

        def count(desk: Any) -> dict[str, int]:
            tables = inspect(desk.session.get_bind()).get_table_names()
            return {
                table: desk.session.execute(text(f'SELECT count(*) FROM "{table}"')).scalar_one()
                for table in tables
            }

        return cast("dict[str, int]", self.wait(self.office.do(count, wakes=False)))

    def set_clock(self, now_us: int) -> None:
        """Has all that the office does from now on happen at one moment."""
        plain = type(self.office)._desk

        def at(office: Any, session: Any) -> Any:
            made = plain(office, session)
            made.now_us = now_us
            return made

        self.office._desk = at.__get__(self.office)  # type: ignore[method-assign]

    def wait(self, question: Coroutine[Any, Any, Any]) -> Any:
        """Asks the office itself, as the foreman does, and waits for the answer."""
        return asyncio.run_coroutine_threadsafe(question, self._loop).result(60)

    def staged(self) -> list[str]:
        """Files that lie in the staging folder."""
        return [path.name for path in self.home.uploads.iterdir()]


def _good(response: httpx.Response) -> Any:
    assert response.status_code < 300, response.text
    return response.json()


def _found(town: Town, bundles: Any, folder: Path) -> None:
    """Brings the town to life over its own doors."""
    for tenant in sorted({tenant for tenant, _ in CAST.values()} - {"platform"}):
        town.post("operator", "/tenants", slug=tenant, title=tenant.title())
    for person, (tenant, roles) in CAST.items():
        made = town.post("operator", "/keys", tenant=tenant, principal=person, roles=roles)
        town.keys[person] = made["secret"]
        town.ids[f"key-{person}"] = made["id"]
    bundles.platform = load_or_create_key(town.home.owner_key("platform"))
    base = bundles.base(folder / "base", signed=False, calibrated=False)
    town.ids["base"] = _good(send_bundle(town, "operator", "/bases", base.folder))["id"]
    sent = town.upload("ada", "/datasets", DOCUMENTS, "application/x-ndjson", name="notes", license="CC0-1.0")
    town.ids["dataset"] = _good(sent)["id"]
    bundles.owner = load_or_create_key(town.home.owner_key("north"))
    expert = bundles.expert(folder / "expert", base, signed=False, tenant="north", name="notes")
    town.ids["expert"] = _good(
        send_bundle(town, "ada", "/experts", expert.folder, dataset_ids=town.ids["dataset"])
    )["id"]
    rule = town.post("carol", "/rules", text="Research is in scope.", purpose="research")
    town.approve("dora", rule)
    offered = town.post(
        "ada",
        "/changes",
        title="Offer the notes",
        items=[
            {
                "kind": "listing.put",
                "expert_id": town.ids["expert"],
                "license": "MIT",
                "price_micro_per_1k_tokens": 2000,
            },
            {"kind": "consent.give", "expert_id": town.ids["expert"], "purpose": "research"},
            {"kind": "grant.give", "expert_id": town.ids["expert"], "consumer_tenant": "apps"},
        ],
    )
    town.approve("bob", offered)
    wanted = town.put("dev", "/deployments/notes-research", purpose="research", region="eu", commercial=False)
    town.approve("carol", wanted)
    town.put("operator", "/ledger/budgets/apps", limit_micro=10_000_000)
    town.ids["consent"] = town.get("ada", "/consents")["items"][0]["id"]
    town.ids["grant"] = town.get("ada", "/grants")["items"][0]["id"]
    town.ids["rule"] = town.get("ada", "/rules")["items"][0]["id"]
    town.ids["deployment"] = "notes-research"


def send_bundle(town: Town, who: str, path: str, folder: Path, **params: Any) -> httpx.Response:
    """Packs a bundle and sends it."""
    archive = folder.parent / f"{folder.name}.tar"
    pack_bundle(folder, archive)
    return town.upload(who, path, archive.read_bytes(), "application/x-tar", **params)


_FOUNDED: dict[str, Any] = {}


@pytest.fixture(scope="session")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One store of a tiny base and three owners' experts for all tests of hosts; nothing writes to it."""
    from tests.cluster.host_worlds import World, bundle_maker

    return World(bundle_maker(request), tmp_path_factory.mktemp("world"))


@pytest.fixture
def found_town(
    bundles: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Town]]:
    """Makes towns that were founded alike: people, a base, one permitted expert, one deployment."""
    if not _FOUNDED:
        folder = tmp_path_factory.mktemp("town")
        first = Town(folder / "home", {}, {})
        try:
            first.keys["operator"] = first.home.operator_key.read_text().strip()
            _found(first, bundles, folder)
        finally:
            first.close()
        _FOUNDED.update(folder=folder, keys=first.keys, ids=first.ids)
    towns: list[Town] = []

    def make(**limits: Any) -> Town:
        home = tmp_path / f"home-{len(towns)}"
        shutil.copytree(_FOUNDED["folder"] / "home", home)
        towns.append(Town(home, dict(_FOUNDED["keys"]), dict(_FOUNDED["ids"]), **limits))
        return towns[-1]

    yield make
    for town in towns:
        town.close()


@pytest.fixture
def town(found_town: Callable[..., Town]) -> Town:
    """A founded town of this test's own."""
    return found_town()


@pytest.fixture
def bundle_sender() -> Callable[..., httpx.Response]:
    """Packs a bundle's folder and sends it."""
    return send_bundle
