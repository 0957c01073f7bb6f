# SPDX-License-Identifier: Apache-2.0
"""The order in which waiting requests begin: bounded, and fair between tenants by tokens, not by requests.

Virtual token counters (Sheng et al., arXiv 2401.00588). Each tenant has a counter of tokens per weight: the
prompt is charged when a request is taken out, everything else when it is computed. The tenant with the lowest
counter is next, ties going to whoever waits longest; within a tenant the first to come is the first to begin.
A tenant that had nothing waiting is lifted to the lowest counter among those that wait, so nobody saves up a
claim while idle.

What that guarantees: a request of a tenant that had none here is passed by at most one request of every other
tenant, however many they have waiting; between two tenants that both wait all the time, tokens per weight
differ by at most twice what their running requests may use; and nothing is held back while anything waits.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from model_core.errors import EngineFull

T = TypeVar("T")
_IDLE_LANES = 1024


@dataclass(slots=True)
class _Lane(Generic[T]):
    """One tenant's requests.

    Attributes:
        counter: tokens per weight that the tenant was given.
        items: (number of arrival, request, cost, weight), the first to come first.
    """

    counter: float = 0.0
    items: deque[tuple[int, T, int, float]] = field(default_factory=deque)


class FairQueue(Generic[T]):
    """Waiting requests of all tenants.

    Args:
        max_waiting: requests that may wait at the same time.
        max_waiting_per_tenant: of one tenant; None sets no bound of its own.
    """

    def __init__(self, *, max_waiting: int, max_waiting_per_tenant: int | None = None) -> None:
        self.max_waiting = max_waiting
        self.max_waiting_per_tenant = max_waiting_per_tenant
        self._lanes: dict[str, _Lane[T]] = {}  # all tenants that are remembered
        self._busy: dict[str, _Lane[T]] = {}  # those of them that have something waiting
        self._last: _Lane[T] = _Lane()  # of the request taken out last
        self._arrivals = itertools.count()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def waiting_of(self, tenant: str) -> int:
        """How many requests of a tenant wait."""
        lane = self._busy.get(tenant)
        return 0 if lane is None else len(lane.items)

    def put(self, tenant: str, item: T, *, cost: int, weight: float = 1.0) -> None:
        """Takes a request in.

        Args:
            tenant: whose.
            item: the request.
            cost: tokens charged when it is taken out.
            weight: of the tenant; twice the weight gets twice the tokens.

        Raises:
            EngineFull: too many wait, of this tenant or of all.
        """
        if self._count >= self.max_waiting:
            raise EngineFull("Too many sequences are waiting; try again later.", waiting=self._count)
        bound = self.max_waiting_per_tenant
        if bound is not None and self.waiting_of(tenant) >= bound:
            raise EngineFull(
                "Too many of your sequences are waiting; try again when some have begun.", waiting=bound
            )
        lane = self._lanes.setdefault(tenant, _Lane())
        if not lane.items:
            lane.counter = max(lane.counter, self._floor())
            self._busy[tenant] = lane
        lane.items.append((next(self._arrivals), item, cost, weight))
        self._count += 1

    def peek(self) -> T | None:
        """The request that is next; None if none waits."""
        tenant = self._first()
        return None if tenant is None else self._busy[tenant].items[0][1]

    def pop(self) -> T | None:
        """Takes the next request out and charges its cost; None if none waits."""
        tenant = self._first()
        if tenant is None:
            return None
        lane = self._busy[tenant]
        _, item, cost, weight = lane.items.popleft()
        lane.counter += cost / weight
        self._last = lane
        self._left(tenant, lane)
        return item

    def remove(self, tenant: str, item: T) -> None:
        """Takes out a request that will not begin; it costs its tenant nothing.

        Raises:
            ValueError: it does not wait here.
        """
        lane = self._busy.get(tenant)
        place = next((i for i, entry in enumerate(lane.items) if entry[1] is item), None) if lane else None
        if lane is None or place is None:
            raise ValueError("The request does not wait here.")
        del lane.items[place]
        self._left(tenant, lane)

    def charge(self, tenant: str, tokens: int, *, weight: float = 1.0) -> None:
        """Charges what a running request has used beyond its cost."""
        lane = self._lanes.get(tenant)
        if lane is not None:
            lane.counter += tokens / weight

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    def _first(self) -> str | None:
        """The tenant that is next: a plain search, since no more tenants than requests wait."""
        if not self._busy:
            return None
        return min(self._busy, key=lambda name: (self._busy[name].counter, self._busy[name].items[0][0]))

    def _floor(self) -> float:
        """The lowest counter among those that wait; where nobody waits, that of who left last."""
        return min((lane.counter for lane in self._busy.values()), default=self._last.counter)

    def _left(self, tenant: str, lane: _Lane[T]) -> None:
        self._count -= 1
        if not lane.items:
            del self._busy[tenant]
        if len(self._lanes) > _IDLE_LANES + len(self._busy):
            # Whoever is below the floor would be lifted to it all the same.
            floor = self._floor()
            self._lanes = {
                name: kept for name, kept in self._lanes.items() if kept.items or kept.counter > floor
            }
