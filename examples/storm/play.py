# SPDX-License-Identifier: Apache-2.0
"""What is done to a marketplace under load: sets beside each other, cycles, and hosts that are hurt."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx

from cluster.client import MarketplaceClient
from examples.storm.hosts import cut_file
from examples.storm.publisher import Publisher
from examples.storm.streams import Answer, Crowd, Load, ask
from examples.storm.town import Town

#: Two likeliest tokens that lie closer than this may change places with the shape of a batch (law 6).
NARROW_NATS = 2e-4
_ACKNOWLEDGED_S = 20.0
_HURT_S = 3.2


class Place(Protocol):
    """Where a marketplace answers."""

    @property
    def url(self) -> str:
        """Address of its gateway."""
        ...

    def client(self, key: str | None, *, timeout_s: float = 60.0) -> MarketplaceClient:
        """A client with somebody's key."""
        ...


class PlayFailed(RuntimeError):
    """The marketplace did not come to where the play begins."""


@dataclass(kw_only=True)
class SetsOutcome:
    """Answers of many sets at once beside the same answers alone.

    Attributes:
        compared: tokens that were compared.
        differing: answers that differ, by endpoint, although the choice was not narrow.
        narrow: tokens left out because from there on the two likeliest lay too close.
    """

    compared: int = 0
    differing: list[str] = field(default_factory=list)
    narrow: int = 0


def compare_sets(place: Place, town: Town, *, tokens: int, rounds: int = 2) -> SetsOutcome:
    """Asks every endpoint two prompts alone, then all of them at once, ``rounds`` times over.

    The prompts repeat, so from the second time on what was computed before is used again.
    """
    asked = [
        (name, prompt)
        for name in sorted(town.endpoints)
        for prompt in ("def wrap(text, width):\n", "import os\nimport re\n\nclass Wrapper:\n    def")
    ]

    async def one(http: httpx.AsyncClient, name: str, prompt: str) -> Answer:
        answer = Answer(endpoint=name)
        key = town.keys[town.endpoints[name][0]]
        await ask(http, key, answer, {"prompt": prompt, "max_tokens": tokens, "logprobs": 2})
        return answer

    async def everything() -> SetsOutcome:
        outcome = SetsOutcome()
        async with httpx.AsyncClient(base_url=place.url, timeout=60, trust_env=False) as http:
            alone = [await one(http, *each) for each in asked]
            for _ in range(rounds):
                together = await asyncio.gather(*(one(http, *each) for each in asked))
                for first, second in zip(alone, together, strict=True):
                    _compare(first, second, outcome)
        return outcome

    return asyncio.run(everything())


def _compare(alone: Answer, beside: Answer, outcome: SetsOutcome) -> None:
    for place, (one, other) in enumerate(zip(alone.tokens, beside.tokens, strict=True)):
        if one != other:
            if alone.margins[place] > NARROW_NATS:
                outcome.differing.append(f"{alone.endpoint} from token {place} on")
            else:
                outcome.narrow += len(alone.tokens) - place
            return
        outcome.compared += 1


def wait_for_servers(place: Place, town: Town, count: int, *, timeout_s: float) -> None:
    """Waits until so many hosts run the newest epoch.

    Raises:
        PlayFailed: they do not.
    """
    deadline = time.monotonic() + timeout_s
    with place.client(town.keys["operator"]) as operator:
        while time.monotonic() < deadline:
            told = operator.call("status.show")
            if sum(one["epoch"] >= told["epoch"] for one in told["servers"]) >= count:
                return
            time.sleep(0.1)
    raise PlayFailed(f"{count} hosts do not come up in {timeout_s:.0f} s.")


def run_cycles(
    publisher: Publisher,
    town: Town,
    cycles: int,
    *,
    servers: int,
    say: Callable[[int], None],
    crowd: Crowd | None = None,
) -> None:
    """Withdraws one expert after the other, and gives each back once every host runs without it.

    Args:
        publisher: whose word it takes.
        town: what was founded.
        cycles: how many withdrawals.
        servers: hosts that have to acknowledge each.
        say: is told how many are done.
        crowd: each expert is withdrawn only while one of its streams uses it; None does not look.

    Raises:
        PlayFailed: a host does not acknowledge, or nobody takes an expert up.
    """
    given_us: dict[str, int] = {}
    for cycle in range(cycles):
        ware = town.wares[cycle % len(town.wares)]
        if crowd is not None:
            _await_use(crowd, ware.name, given_us.get(ware.name, 0))
        act = publisher.withdraw(ware)
        if not publisher.wait_until_acknowledged(act.epoch, servers, timeout_s=_ACKNOWLEDGED_S):
            raise PlayFailed(f"Epoch {act.epoch} is not acknowledged by {servers} hosts.")
        given_us[ware.name] = publisher.give(ware).told_us
        say(cycle + 1)


def _await_use(crowd: Crowd, expert: str, since_us: int) -> None:
    deadline = time.monotonic() + _ACKNOWLEDGED_S
    while not crowd.uses(expert, since_us):
        if time.monotonic() > deadline:
            raise PlayFailed(f"No stream takes {expert} up.")
        time.sleep(0.01)


def run_cycles_of_one(publisher: Publisher, town: Town, crowd: Crowd, cycles: int, *, servers: int) -> None:
    """Withdraws the first expert again and again, each time when new streams have taken it up.

    Raises:
        PlayFailed: a host does not acknowledge, or streams do not come to their end.
    """
    for _ in range(cycles):
        run_cycles(publisher, town, 1, servers=servers, say=lambda _done: None)
        # Whoever asks from now on gets the expert again: wait until most clients have asked anew.
        enough = len(crowd.answers) + len(crowd.live)
        deadline = time.monotonic() + _ACKNOWLEDGED_S
        while len(crowd.answers) < enough:
            if time.monotonic() > deadline:
                raise PlayFailed("Streams do not come to their end.")
            time.sleep(0.02)


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """A host that stands still, wherever it was."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def cut_off(home: Path, pid: int) -> Iterator[None]:
    """A host whose line to the office is down."""
    file = cut_file(home, pid)
    file.touch()
    try:
        yield
    finally:
        file.unlink()


def withdraw_meanwhile(publisher: Publisher, town: Town, turn: int) -> None:
    """Withdraws two experts, waits longer than a lease, and gives them back."""
    wares = [town.wares[(2 * turn + one) % len(town.wares)] for one in range(2)]
    for ware in wares:
        publisher.withdraw(ware)
    time.sleep(_HURT_S)
    for ware in wares:
        publisher.give(ware)


def await_streams(crowd: Crowd, count: int, *, timeout_s: float) -> None:
    """Waits until so many streams flow.

    Raises:
        PlayFailed: they do not.
    """
    deadline = time.monotonic() + timeout_s
    while crowd.flowing < count:
        if time.monotonic() > deadline:
            raise PlayFailed(f"{crowd.flowing} of {count} streams flow after {timeout_s:.0f} s.")
        time.sleep(0.05)


def settled(read: Callable[[], tuple[Any, Any]], *, timeout_s: float) -> bool:
    """Waits until two books say the same."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        one, other = read()
        if one == other:
            return True
        time.sleep(0.3)
    return False


@dataclass(frozen=True, kw_only=True, slots=True)
class StoppedOutcome:
    """What became of open streams whose right to be answered ended.

    Attributes:
        kind: what was taken away.
        open_then: streams that were in the middle of an answer.
        after_s: the latest token after the commit, in seconds; 0 if none came.
    """

    kind: str
    open_then: int
    after_s: float


def stop_open_streams(place: Place, town: Town, kind: str, *, streams: int) -> StoppedOutcome:
    """Takes a key, a budget or a whole tenant away from under open streams.

    Args:
        place: where it answers.
        town: what was founded.
        kind: ``key``, ``budget`` or ``tenant``.
        streams: how many are open all the time until then.

    Raises:
        PlayFailed: they do not begin.
    """
    tenant = {"key": "apps", "budget": "apps", "tenant": "labs"}[kind]
    with place.client(town.keys["operator"]) as operator:
        made = operator.call("keys.create", tenant=tenant, principal=f"guest-{kind}", roles=["developer"])
        own = {name: one for name, one in town.endpoints.items() if one[0] == tenant}
        load = Load(streams=streams, tokens=(90, 100), prompts=("# text\n",))
        crowd = Crowd(place.url, {tenant: made["secret"]}, own, load)
        crowd.start()
        await_streams(crowd, streams // 3, timeout_s=60)
        open_then = crowd.flowing
        match kind:
            case "key":
                operator.call("keys.revoke", key_id=made["id"])
            case "budget":
                operator.call("ledger.budget", tenant=tenant, limit_micro=0)
            case _:
                operator.call("tenants.suspend", slug=tenant)
        told_us = time.time_ns() // 1000
        crowd.stop()
        if kind == "budget":
            operator.call("ledger.budget", tenant=tenant, limit_micro=10**13)
    latest_us = max((at_us for answer in crowd.answers for at_us in answer.arrivals_us), default=0)
    return StoppedOutcome(kind=kind, open_then=open_then, after_s=max(0, latest_us - told_us) / 1e6)
