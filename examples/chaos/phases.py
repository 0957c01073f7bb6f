# SPDX-License-Identifier: Apache-2.0
"""The three moments at which everything is killed, each proven to be what it is said to be.

A phase first brings the marketplace near the moment that the seed draws. Then every process is stopped, and
only if what stands still is in the phase, it is killed; else it goes on, and another moment is drawn.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import GatewayUnreachable
from examples.chaos.client_log import Person
from examples.chaos.processes import Standstill
from examples.chaos.stage import OWNERS, STEPS, Stage, StageFailed, fresh_key, until
from examples.chaos.streams import Asking
from model_core.errors import ProductError

STREAMS = 6
_STREAM_TOKENS = 900
_TRIES = 12
# An answer that had left the gateway before it stopped reaches the client within this time.
_ON_THE_WIRE_S = 0.1


@dataclass(kw_only=True)
class Killed:
    """What was killed, and in the middle of what.

    Attributes:
        evidence: what stood still, in words.
        processes: how many were killed.
        misses: moments that turned out not to be in the phase.
        retry: calls whose answer never came, to be sent again under their keys.
        jobs: (tenant, job) that were in training.
    """

    evidence: str
    processes: int
    misses: int = 0
    retry: list[Callable[[], Any]] = field(default_factory=list)
    jobs: list[tuple[str, str]] = field(default_factory=list)


def training(stage: Stage, chance: random.Random) -> Killed:
    """Kills while a child trains: its job runs, points of its curve have arrived, steps are left."""
    tenant = chance.choice(sorted(OWNERS))
    for misses in range(_TRIES):
        job_id = stage.submit_job(tenant)
        wanted = chance.randint(1, STEPS // 2)
        if not _trains_past(stage, tenant, job_id, wanted):
            continue
        with Standstill(stage.home) as standstill:
            done = _steps_on_disk(stage, tenant, job_id)
            children = standstill.count("tenants.workshop.child")
            if not (children and 0 < done < STEPS):
                continue
            stage.log.append("interrupted", job_id=job_id)
            killed = standstill.kill()
        return Killed(
            evidence=f"step {done} of {STEPS}, {children} training child alive",
            processes=killed,
            misses=misses,
            jobs=[(tenant, job_id)],
        )
    raise StageFailed("No training was ever caught in the middle.")


def publishing(stage: Stage, chance: random.Random) -> Killed:
    """Kills while a publication is asked for and not answered."""
    wanted = chance.choice(("approve", "withdraw", "forbid"))
    with _publisher(stage) as publisher:
        publisher.rest(seconds=20, publications=6)
        for misses in range(_TRIES):
            usual_s = publisher.usual_s(wanted)
            if not publisher.wait_for(wanted, timeout_s=30):
                raise StageFailed(f"The publisher ended: {publisher.failed}")
            waited_s = chance.random() * usual_s
            time.sleep(waited_s)
            with Standstill(stage.home) as standstill:
                asked = publisher.in_flight
                time.sleep(_ON_THE_WIRE_S)
                if asked is None or publisher.in_flight is not asked:
                    continue
                publisher.stopping = True
                killed = standstill.kill()
            return Killed(
                evidence=f"{asked.operation} unanswered after {waited_s * 1e3:.0f} ms "
                f"(usually {usual_s * 1e3:.0f})",
                processes=killed,
                misses=misses,
                retry=[asked.send],
            )
    raise StageFailed("No publication was ever caught in the middle.")


def answering(stage: Stage, chance: random.Random) -> Killed:
    """Kills while streams run: each has tokens, none has ended."""
    for misses in range(_TRIES):
        wanted = chance.randint(2, 120)
        streams = [Asking(stage, tokens=_STREAM_TOKENS, seed=n) for n in range(STREAMS)]
        for one in streams:
            one.start()
        going = until(
            lambda streams=streams, wanted=wanted: all(  # type: ignore[misc]
                one.received >= wanted or not one.is_alive() for one in streams
            ),
            timeout_s=90,
        )
        with Standstill(stage.home) as standstill:
            time.sleep(_ON_THE_WIRE_S)
            open_now = [one for one in streams if one.is_alive() and one.received]
            if not going or len(open_now) < len(streams):
                standstill.let_go()
                _join(streams)
                continue
            killed = standstill.kill()
        _join(streams)
        counts = sorted(one.received for one in streams)
        return Killed(
            evidence=f"{len(open_now)} streams open, {counts[0]} to {counts[-1]} of "
            f"{_STREAM_TOKENS} tokens received",
            processes=killed,
            misses=misses,
        )
    raise StageFailed("No streams were ever caught in the middle.")


def starting(stage: Stage, chance: random.Random) -> Killed:
    """Kills while ``marketplace up`` is bringing up what a first crash ended."""
    for misses in range(_TRIES):
        with Standstill(stage.home) as standstill:
            standstill.kill()
        waited_s = chance.random() * stage.usual_up_s
        with stage.begin_up() as command:
            time.sleep(waited_s)
            with Standstill(stage.home, command.pid) as standstill:
                if command.poll() is not None:
                    continue
                killed = standstill.kill()
        return Killed(
            evidence=f"up not done after {waited_s:.1f} s (usually {stage.usual_up_s:.1f})",
            processes=killed,
            misses=misses,
        )
    raise StageFailed("No start was ever caught in the middle.")


Phase = Callable[[Stage, random.Random], Killed]
PHASES: dict[str, Phase] = {"training": training, "publishing": publishing, "answering": answering}
#: Played only when asked for: a crash during the start that follows a crash.
FURTHER_PHASES: dict[str, Phase] = {"starting": starting}


# -- training -----------------------------------------------------------------------------------------------


def _trains_past(stage: Stage, tenant: str, job_id: str, wanted: int) -> bool:
    """Follows a job as its owner does; True once so many points of its loss have arrived."""
    seen: dict[int, float] = {}
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        owner = stage.owner(tenant)
        curve = owner.read("jobs.metrics", job_id=job_id, name="loss", after_step=max(seen, default=-1))
        seen.update({int(point["step"]): float(point["value"]) for point in curve["points"]})
        if curve["points"]:
            stage.log.append("seen", job_id=job_id, loss=sorted(seen.items()))
        if curve["state"] not in {"queued", "placed", "running"}:
            return False
        if curve["state"] == "running" and len(seen) >= wanted:
            return True
        time.sleep(0.05)
    raise StageFailed(f"The job {job_id} does not get going.")


def _steps_on_disk(stage: Stage, tenant: str, job_id: str) -> int:
    """Optimizer steps that the standing child has done."""
    file: Path = stage.home.jobs(tenant) / job_id / "run" / "run" / "metrics.jsonl"
    return len(file.read_bytes().splitlines()) if file.exists() else 0


# -- publishing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Asked:
    """One publishing call on its way."""

    kind: str
    operation: str
    send: Callable[[], dict[str, Any]]


class _Publisher(threading.Thread):
    """Gives and withdraws the south's consent and forbids uses, over and over."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(name="publisher", daemon=True)
        self._stage = stage
        self._took_s: dict[str, list[float]] = {"approve": [], "withdraw": [], "forbid": []}
        self._begun = threading.Condition()
        self.in_flight: _Asked | None = None
        self.stopping = False
        self.failed = ""
        self.done = 0

    def run(self) -> None:
        """Publishes until it is told to stop or everything is killed."""
        try:
            while not self.stopping:
                self._round()
        except GatewayUnreachable:
            pass  # killed, as was the plan
        except ProductError as error:
            self.failed = error.code

    def usual_s(self, kind: str) -> float:
        """How long such a call takes here."""
        return statistics.median(self._took_s[kind]) if self._took_s[kind] else 0.05

    def rest(self, *, seconds: float, publications: int) -> None:
        """Lets it publish a little, so that it is known how long that takes."""
        until(lambda: self.done >= publications or not self.is_alive(), timeout_s=seconds)

    def wait_for(self, kind: str, *, timeout_s: float) -> bool:
        """Waits until a call of a kind begins."""
        with self._begun:
            while self._begun.wait(timeout_s):
                if self.in_flight is not None and self.in_flight.kind == kind:
                    return True
        return False

    def _round(self) -> None:
        stage = self._stage
        sue, carol = stage.people["sue"], stage.people["carol"]
        given = _given_consent(stage)
        if given is None:
            change = stage.propose("sue", "Consent of the south", stage.south_consents())
            fields = {"change_id": change["id"], "digest": change["digest"]}
            self._publish("approve", carol, "changes.approve", **fields)
            given = _given_consent(stage)
        if given is None:
            raise StageFailed("A consent that was just approved is not there.")
        mark = fresh_key()
        self._publish("forbid", carol, "rules.forbid", text=f"Never: {mark}", purpose="advertising")
        self._publish("withdraw", sue, "consents.withdraw", consent_id=given)

    def _publish(self, kind: str, who: Person, operation: str, **fields: Any) -> None:
        key = fresh_key()

        def send() -> dict[str, Any]:
            return who.call(operation, key=key, **fields)

        if self.stopping:
            return
        with self._begun:
            self.in_flight = _Asked(kind=kind, operation=operation, send=send)
            self._begun.notify_all()
        began = time.monotonic()
        send()
        self._took_s[kind].append(time.monotonic() - began)
        self.in_flight = None
        self.done += 1


@contextmanager
def _publisher(stage: Stage) -> Iterator[_Publisher]:
    publisher = _Publisher(stage)
    publisher.start()
    try:
        yield publisher
    finally:
        publisher.stopping = True
        publisher.join(60)


def _given_consent(stage: Stage) -> str | None:
    """The south's consent for its first expert, if it is given at present."""
    expert = stage.experts["south"]["id"]
    for row in stage.every("sue", "consents.list"):
        if row["expert_id"] == expert and row["state"] == "given" and row["effect"] == "permit":
            return str(row["id"])
    return None


def _join(streams: list[Asking]) -> None:
    for one in streams:
        one.join(90)
