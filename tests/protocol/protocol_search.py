# SPDX-License-Identifier: Apache-2.0
"""Looks at every state that hosts side by side can reach, breadth first, and at what each step breaks.

Hosts are interchangeable, so a state is kept with its hosts in one order. A host's actions are computed once
per (host, tick, office), since they depend on nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement, product

from protocol_model import FIRST, TTL, Host, News, Office, World

State = tuple[int, int, tuple[int, ...]]  # tick, office, hosts


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search saw.

    Attributes:
        states: distinct states visited.
        hosts: distinct states of a single host among them.
        broken: the first broken property, empty if none.
        trace: the shortest way to it, a line per action.
    """

    states: int
    hosts: int
    broken: str = ""
    trace: tuple[str, ...] = ()


class Search:
    """One search over one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._hosts: list[Host] = []
        self._number: dict[Host, int] = {}
        self._offices: list[Office] = []
        self._office_number: dict[Office, int] = {}
        self._moves: dict[tuple[int, int, int], list[tuple[str, int, str]]] = {}
        self._ticks: dict[tuple[int, int], list[tuple[str, int]]] = {}
        self._came_from: dict[State, tuple[State, str, tuple[int, ...]] | None] = {}

    def run(self, only: str = "") -> Found:
        """Visits every state, or stops at the first broken property.

        Args:
            only: the one property to look for; others may break. Empty looks for all.
        """
        queue: deque[State] = deque()
        first = [self._host(Host(wall=wall)) for wall in self._world.bounds.walls]
        for hosts in combinations_with_replacement(sorted(first), self._world.bounds.hosts):
            state = (FIRST, self._office(Office()), hosts)
            self._came_from[state] = None
            queue.append(state)
        while queue:
            state = queue.popleft()
            for label, after, order, broken in self._after(state):
                if broken and only in {"", broken}:
                    return self._found(broken, self._trace(state, label))
                if after not in self._came_from:
                    self._came_from[after] = (state, label, order)
                    queue.append(after)
        return self._found()

    def reached(self) -> Iterator[tuple[Host, int, Office]]:
        """Every distinct (host, tick, office) that was visited."""
        seen = {(host, tick, office) for tick, office, hosts in self._came_from for host in hosts}
        for host, tick, office in seen:
            yield self._hosts[host], tick, self._offices[office]

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    def _after(self, state: State) -> Iterator[tuple[str, State, tuple[int, ...], str]]:
        tick, office, hosts = state
        for place, host in enumerate(hosts):
            if place and host == hosts[place - 1]:
                continue  # the same host again
            for label, moved, broken in self._moves_of(host, tick, office):
                after, order = _in_order((*hosts[:place], moved, *hosts[place + 1 :]))
                yield f"{place}{label}", (tick, office, after), order, broken
        for label, changed in self._office_moves(tick, self._offices[office]):
            yield label, (tick, self._office(changed), hosts), tuple(range(len(hosts))), ""
        later, office_later = self._later(tick, office)
        for ways in product(*(self._ticks_of(host, tick) for host in hosts)):
            after, order = _in_order(tuple(host for _, host in ways))
            lags = "".join(f"; {place}{said}" for place, (said, _) in enumerate(ways) if said)
            yield f"a tick passes{lags}", (later, office_later, after), order, ""

    def _later(self, tick: int, office: int) -> tuple[int, int]:
        """One tick on; news of longer ago than a lease is from long ago (tick 0)."""
        back = 1 if tick >= self._world.bounds.ends else 0
        tick += 1 - back
        was = self._offices[office]
        news = tuple(
            one._replace(tick=one.tick - back if one.tick - back > tick - TTL else 0) for one in was.news
        )
        return tick, self._office(was._replace(news=news))

    def _moves_of(self, host: int, tick: int, office: int) -> list[tuple[str, int, str]]:
        key = (host, tick, office)
        if key not in self._moves:
            self._moves[key] = [
                (f" {label}", self._host(self._world.settled(after, tick)), broken)
                for label, after, broken in self._world.moves(self._hosts[host], tick, self._offices[office])
            ]
        return self._moves[key]

    def _ticks_of(self, host: int, tick: int) -> list[tuple[str, int]]:
        key = (host, tick)
        if key not in self._ticks:
            ways = self._world.ticks(self._hosts[host], tick)
            self._ticks[key] = [(said, self._host(after)) for said, after in ways]
        return self._ticks[key]

    def _office_moves(self, tick: int, office: Office) -> Iterator[tuple[str, Office]]:
        now = office.news[-1]
        number = len(now.past) + 1

        def then(
            past: tuple[str, ...], *, stopped: bool = now.stopped, branch: int = office.branch
        ) -> Office:
            return Office((*office.news, News(tick, past, stopped)), branch)

        if number <= len(self._world.bounds.script):
            yield f"the office commits epoch {number}", then((*now.past, f"{number}.{office.branch}"))
        if self._world.bounds.stops and now.past and not now.stopped:
            yield "the office stops the request", then(now.past, stopped=True)
        if self._world.bounds.restores and not office.branch and number > 2:
            yield "the office is restored to its state before that", then(now.past[:-1], branch=1)

    def _host(self, host: Host) -> int:
        number = self._number.setdefault(host, len(self._hosts))
        if number == len(self._hosts):
            self._hosts.append(host)
        return number

    def _office(self, office: Office) -> int:
        number = self._office_number.setdefault(office, len(self._offices))
        if number == len(self._offices):
            self._offices.append(office)
        return number

    def _found(self, broken: str = "", trace: tuple[str, ...] = ()) -> Found:
        return Found(states=len(self._came_from), hosts=len(self._hosts), broken=broken, trace=trace)

    def _trace(self, state: State, last: str) -> tuple[str, ...]:
        """The labels up to a state and one more, with the places of hosts turned into names that stay."""
        steps = []
        at: State | None = state
        while at is not None and (came := self._came_from[at]) is not None:
            at, label, order = came
            steps.append((label, order))
        names = list("abcdefgh"[: self._world.bounds.hosts])
        lines = []
        for label, order in reversed(steps):
            lines.append(_named(label, names))
            names = [names[place] for place in order]
        return (*lines, _named(last, names))


def _in_order(hosts: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Hosts in one order, and the place that each had before."""
    order = tuple(sorted(range(len(hosts)), key=hosts.__getitem__))
    return tuple(hosts[place] for place in order), order


def _named(label: str, names: list[str]) -> str:
    if label[0].isdigit():
        return f"host {names[int(label[0])]}{label[1:]}"
    parts = label.split("; ")
    return "; ".join([parts[0], *(f"host {names[int(part[0])]}{part[1:]}" for part in parts[1:])])


_FIRST_THINGS_FIRST = ("ends the step", "puts epoch", "lets an expert go", "releases", "begins a stream")


def settles(world: World, host: Host, tick: int, office: Office) -> str:
    """Follows a host over a network that loses nothing, while nothing else happens.

    Returns:
        What does not come about: the newest epoch acknowledged, the gate open, a step of a permitted set;
        empty if all does.
    """
    newest = office.news[-1]
    asked = False
    for _ in range(24):
        moves = [(label, after) for label, after, _ in world.moves(host, tick, office)]
        chosen = next(
            (after for first in _FIRST_THINGS_FIRST for label, after in moves if label.startswith(first)),
            None,
        )
        if chosen is None and not asked:
            # One question now, answered with the newest; whatever else was under way is lost.
            asked, host = True, host._replace(network=frozenset())
            chosen = next(after for label, after, _ in world.moves(host, tick, office) if label == "asks")
        if chosen is None:
            chosen = next((after for label, after in moves if label.startswith("hears")), None)
        if chosen is None or chosen == host:
            break
        host = world.settled(chosen, tick)
    if host.acked != len(newest.past):
        return f"epoch {len(newest.past)} is never acknowledged"
    if newest.stopped:
        return "" if host.ended else "a stopped request never ends"
    if not world.is_open(host, tick):
        return "the gate never opens"
    starts = [label for label, _, _ in world.moves(host, tick, office) if label.startswith("starts a step")]
    return "" if starts else "no step ever starts"
