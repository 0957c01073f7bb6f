# SPDX-License-Identifier: Apache-2.0
"""Which experts stay in memory when there is room for fewer than are known.

Pure bookkeeping: sizes, when a request was last entitled to each expert, which are pinned, and which version
each replaced. Experts leave in one order:

1. those that nobody uses, the one whose last entitlement is the oldest first;
2. previous versions that are kept for a roll back, likewise;
3. never one that is in use or pinned.

Leaving means unloading: it can be loaded again from its bundle. A withdrawn expert does not wait for any of
this; whoever withdraws it drops it at once and calls ``forget``. Who uses what is asked for at the moment of
choosing, so that no count can drift from what runs. Knows neither tensors nor clocks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class Resident:
    """An expert in memory.

    Attributes:
        digest: of its bundle.
        size_bytes: what it takes.
        entitled_s: when a request was last entitled to it, or when it came; on the caller's monotonic clock.
        pinned: whether it never leaves to make room.
        successor: digest of the version that replaced it and that it is kept to roll back; None for a
            current version.
    """

    digest: str
    size_bytes: int
    entitled_s: float
    pinned: bool = False
    successor: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Eviction:
    """Who must leave.

    Attributes:
        digests: in the order in which they leave.
        short_bytes: what is still lacking when all of them have left, since the rest is in use; 0 where the
            budget is kept.
    """

    digests: tuple[str, ...]
    short_bytes: int


def evict(
    residents: Iterable[Resident],
    *,
    budget_bytes: int,
    incoming_bytes: int = 0,
    busy: Collection[str] = (),
    entitled_before_s: float = math.inf,
) -> Eviction:
    """Chooses who must leave, and nobody more than needed.

    Args:
        residents: all experts in memory.
        budget_bytes: what experts may take together.
        incoming_bytes: what is about to be loaded.
        busy: digests of experts in use.
        entitled_before_s: whoever was entitled at this moment or later stays too.
    """
    known = list(residents)
    excess_bytes = sum(one.size_bytes for one in known) + incoming_bytes - budget_bytes
    free = [
        one
        for one in known
        if not one.pinned and one.digest not in busy and one.entitled_s < entitled_before_s
    ]
    leaving: list[str] = []
    for one in sorted(free, key=_leaving_order):
        if excess_bytes <= 0:
            break
        leaving.append(one.digest)
        excess_bytes -= one.size_bytes
    return Eviction(digests=tuple(leaving), short_bytes=max(0, excess_bytes))


def _leaving_order(one: Resident) -> tuple[bool, float, str]:
    return one.successor is not None, one.entitled_s, one.digest


class Residency:
    """The experts in memory and their budget.

    Args:
        budget_bytes: what experts may take together; None sets no bound.
    """

    def __init__(self, budget_bytes: int | None = None) -> None:
        self.budget_bytes = budget_bytes
        self._residents: dict[str, Resident] = {}

    @property
    def size_bytes(self) -> int:
        """What all experts in memory take."""
        return sum(one.size_bytes for one in self._residents.values())

    @property
    def residents(self) -> tuple[Resident, ...]:
        """All experts in memory, by digest."""
        return tuple(self._residents[digest] for digest in sorted(self._residents))

    def admit(
        self,
        digest: str,
        *,
        size_bytes: int,
        now_s: float,
        replaces: str | None = None,
        pinned: bool = False,
    ) -> None:
        """Notes that an expert was loaded.

        Args:
            digest: of its bundle.
            size_bytes: what it takes.
            now_s: the caller's monotonic clock.
            pinned: whether it stays whatever has to come.
            replaces: digest of the version that it replaces, which is kept to roll back; whatever that one
                replaced is kept no longer than any other.
        """
        self._residents[digest] = Resident(
            digest=digest, size_bytes=size_bytes, entitled_s=now_s, pinned=pinned
        )
        if replaces is None or replaces == digest or replaces not in self._residents:
            return
        self.settle(replaces)
        self._residents[replaces] = replace(self._residents[replaces], successor=digest)

    def settle(self, digest: str) -> None:
        """Notes that nobody will roll back from this version: what it replaced is like any other."""
        for one in list(self._residents.values()):
            if one.successor == digest:
                self._residents[one.digest] = replace(one, successor=None)

    def entitle(self, digests: Iterable[str], *, now_s: float) -> None:
        """Notes that a request is entitled to these experts; unknown ones are passed over.

        A previous version that is asked for again is current again: that is how one rolls back.
        """
        for digest in digests:
            if digest in self._residents:
                one = self._residents[digest]
                self._residents[digest] = replace(one, entitled_s=now_s, successor=None)

    def forget(self, digest: str) -> None:
        """Notes that an expert has left memory, withdrawn or evicted."""
        self.settle(digest)
        self._residents.pop(digest, None)

    def make_room(
        self, incoming_bytes: int = 0, *, busy: Collection[str] = (), entitled_before_s: float = math.inf
    ) -> Eviction:
        """Who must leave before that much is loaded; see ``evict``. Nobody is forgotten here."""
        if self.budget_bytes is None:
            return Eviction(digests=(), short_bytes=0)
        return evict(
            self._residents.values(),
            budget_bytes=self.budget_bytes,
            incoming_bytes=incoming_bytes,
            busy=busy,
            entitled_before_s=entitled_before_s,
        )
