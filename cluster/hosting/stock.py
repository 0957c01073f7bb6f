# SPDX-License-Identifier: Apache-2.0
"""Which of the permitted experts a host has in memory: what comes, what makes room for it, what waits.

What a roster does not permit is gone before this module hears of it. Among the permitted, those that requests
were last entitled to the longest ago leave when the budget asks for it; a request that needs one of them
waits until it is here again. One set is brought at a time, so that no two sets wait for each other's room.
Knows neither streams nor money.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from cluster.hosting.background import Background
from cluster.hosting.errors import ExpertsDoNotFit, ExpertsNotLoaded
from cluster.hosting.plan import EMPTY_ROSTER, Roster
from cluster.hosting.room import EngineRoom
from model_core.engine.native.claims import Claims
from model_core.engine.native.footprint import give_back_freed
from model_core.engine.residency import Residency, Resident
from model_core.errors import ProductError
from model_core.network.checkpoint import load_expert_folder
from model_core.packing.bundle import CheckedBundle
from model_core.packing.manifest import EXPERT_WEIGHTS_FILE, ExpertManifest

log = logging.getLogger(__name__)

T = TypeVar("T")
_LOOK_AGAIN_S = 0.05
_LONGEST_PAUSE_S = 0.4


@dataclass(kw_only=True, slots=True)
class StockCounts:
    """What came and went.

    Attributes:
        loaded: experts taken into memory.
        evicted: experts that made room for others.
        waited: requests whose experts had to be loaded first.
    """

    loaded: int = 0
    evicted: int = 0
    waited: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """What is remembered of a bundle once it was verified.

    Attributes:
        size_bytes: of its weights.
        line: tenant and name; versions of one expert share it.
        made_us: when it was made, in microseconds since the Unix epoch.
    """

    size_bytes: int = 0
    line: str = ""
    made_us: int = 0


_UNKNOWN = _Known()


class Stock:
    """The experts of one host.

    Args:
        room: where they are computed.
        verified: checks a bundle and says where it lies (law 11); blocks.
        budget_bytes: what all experts may take together; None sets no bound.
        pins: experts that stay once they are here, by bundle digest or as ``tenant/name``.
        claims: says to the machine's other hosts which packed files this one needs; None where none are kept.
        patience_s: how long a request waits for its experts.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        room: EngineRoom,
        verified: Callable[[str], CheckedBundle],
        *,
        budget_bytes: int | None = None,
        pins: Collection[str] = (),
        claims: Claims | None = None,
        patience_s: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = StockCounts()
        self._room, self._verified = room, verified
        self._residency = Residency(budget_bytes)
        self._pins, self._claims = frozenset(pins), claims
        self._patience_s, self._clock = patience_s, clock
        self._known: dict[str, _Known] = {}
        self._aside: set[str] = set()  # permitted, and not here for want of room
        self._roster, self._roster_s = EMPTY_ROSTER, clock()
        self._bringing = asyncio.Lock()
        self._background = Background()

    @property
    def residents(self) -> tuple[Resident, ...]:
        """The experts in memory, by digest."""
        self._recount()
        return self._residency.residents

    @property
    def budget_bytes(self) -> int | None:
        """What they may take together."""
        return self._residency.budget_bytes

    async def follow(self, roster: Roster) -> None:
        """Loads what has come with a roster, as far as there is room; the rest comes when it is asked for.

        What comes makes only those leave that no request was entitled to since the roster is in force.

        Raises:
            ProductError: a bundle cannot be had or is not what its seal says; call it again later.
        """
        if roster is not self._roster:
            self._roster, self._roster_s = roster, self._clock()
        self._aside &= roster.experts
        await self._say_needs(roster)
        missing = sorted(roster.experts - set(self._room.bank.digests) - self._aside)
        for digest in missing:
            try:
                async with self._bringing:
                    await self._bring({digest}, entitled_before_s=self._roster_s)
            except (ExpertsNotLoaded, ExpertsDoNotFit):
                self._aside.add(digest)
        if missing:
            # Reading experts through leaves freed memory that would count beside the one copy they share.
            await self._background.run(give_back_freed)

    async def having(self, wanted: Callable[[], Iterable[str]], command: Callable[[], T]) -> T:
        """Runs a command of the engine's thread with experts in memory; loads those that are not.

        Args:
            wanted: digests of the experts, asked anew after every wait, since epochs pass meanwhile.
            command: raises ``ExpertsNotLoaded`` where one of them is missing after all.

        Raises:
            ExpertsDoNotFit: the set is larger than the budget; waiting would not help.
            ExpertsNotLoaded: they did not come in time.
        """
        deadline_s = self._clock() + self._patience_s
        experts = frozenset(wanted())
        if experts <= set(self._room.bank.digests):
            self._residency.entitle(experts, now_s=self._clock())
            try:
                return await asyncio.wrap_future(self._room.call(command))
            except ExpertsNotLoaded:  # one of them has just made room
                pass
        self.counts.waited += 1
        pause_s = _LOOK_AGAIN_S
        while True:
            try:
                return await self._bring_and_run(frozenset(wanted()), command, deadline_s)
            except (ExpertsNotLoaded, TimeoutError) as error:
                if self._clock() >= deadline_s:
                    raise ExpertsNotLoaded(
                        "Experts of this deployment could not be loaded in time; ask again in a few seconds.",
                        retry_after_s=2,
                    ) from error
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)

    async def close(self) -> None:
        """Needs no packed files any more."""
        if self._claims is not None:
            await asyncio.to_thread(self._claims.close)
        self._background.close()

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    async def _bring_and_run(self, experts: frozenset[str], command: Callable[[], T], deadline_s: float) -> T:
        async with asyncio.timeout(max(0.0, deadline_s - self._clock())), self._bringing:
            # Who is brought stays until the command has run: nobody else may make room meanwhile.
            if experts - set(self._room.bank.digests):
                try:
                    await self._bring(experts)
                except (ExpertsNotLoaded, ExpertsDoNotFit):
                    raise
                except ProductError as error:
                    log.warning("experts cannot be loaded: %s", error.code)
                    raise ExpertsNotLoaded("Experts cannot be loaded at present.") from error
                await self._background.run(give_back_freed)
            self._residency.entitle(experts, now_s=self._clock())
            return await asyncio.wrap_future(self._room.call(command))

    async def _bring(self, experts: Collection[str], *, entitled_before_s: float = float("inf")) -> None:
        """Loads those of a set that are permitted and not here; holds ``_bringing``."""
        missing = sorted(set(experts) & self._room.roster.experts - set(self._room.bank.digests))
        checked = {d: await self._background.run(self._look, d) for d in missing if d not in self._known}
        needed = sum(self._known[digest].size_bytes for digest in missing)
        await self._make_room(needed, kept=frozenset(experts), entitled_before_s=entitled_before_s)
        shape = self._room.bank.shape
        for digest in missing:
            bundle = checked[digest] if digest in checked else await self._background.run(self._look, digest)
            base = self._room.bank.base_digest
            _, expert = await self._background.run(load_expert_folder, bundle.folder, base, shape)
            prepared = await self._background.run(self._room.prepare, digest, expert)
            if await asyncio.wrap_future(self._room.call(partial(self._room.install, prepared))):
                self.counts.loaded += 1
            self._aside.discard(digest)
            self._recount()

    async def _make_room(self, size_bytes: int, *, kept: frozenset[str], entitled_before_s: float) -> None:
        self._recount()
        alone = self._residency.make_room(size_bytes, busy=kept)
        if alone.short_bytes:
            raise ExpertsDoNotFit(
                "The experts of this deployment do not fit into the memory that its model hosts may use; "
                "ask the operator for a larger budget, or take fewer experts.",
                short_bytes=alone.short_bytes,
                retry_after_s=60,
            )
        while self._residency.make_room(size_bytes).digests:
            busy = kept | await asyncio.wrap_future(self._room.call(self._room.in_use))
            found = self._residency.make_room(size_bytes, busy=busy, entitled_before_s=entitled_before_s)
            if found.short_bytes:
                raise ExpertsNotLoaded(
                    "Experts of other requests fill the memory of this model host.", retry_after_s=2
                )
            gone = await asyncio.wrap_future(self._room.call(partial(self._room.evict, found.digests)))
            self._aside.update(gone)
            self.counts.evicted += len(gone)
            self._recount()
            log.info("experts made room for others", extra={"experts": gone, "room_for_bytes": size_bytes})

    def _recount(self) -> None:
        """Brings the books in line with the bank, which others change too and which a cancelled load left."""
        here, noted = set(self._room.bank.digests), {one.digest for one in self._residency.residents}
        for digest in noted - here:
            self._residency.forget(digest)
        for digest in sorted(here - noted):
            known = self._known.get(digest, _UNKNOWN)
            self._residency.admit(
                digest,
                size_bytes=known.size_bytes,
                now_s=self._clock(),
                replaces=self._former(known),
                pinned=not self._pins.isdisjoint((digest, known.line)),
            )

    def _former(self, known: _Known) -> str | None:
        """The newest of the older versions of an expert that are here."""
        versions = [(self._known.get(one.digest, _UNKNOWN), one) for one in self._residency.residents]
        former = [
            (made.made_us, one.digest)
            for made, one in versions
            if known.line and made.line == known.line and made.made_us < known.made_us
        ]
        return max(former)[1] if former else None

    def _look(self, digest: str) -> CheckedBundle:
        checked = self._verified(digest)
        manifest = checked.manifest
        line = f"{manifest.tenant}/{manifest.name}" if isinstance(manifest, ExpertManifest) else ""
        size_bytes = (checked.folder / EXPERT_WEIGHTS_FILE).stat().st_size
        self._known[digest] = _Known(size_bytes=size_bytes, line=line, made_us=manifest.created_at_us)
        return checked

    async def _say_needs(self, roster: Roster) -> None:
        if self._claims is None:
            return
        needs = {self._room.bank.base_digest, *roster.experts, *roster.kept}
        try:
            await self._background.run(self._claims.say, needs)
        except OSError as error:
            log.warning("packed files cannot be cleared away", extra={"errno": error.errno})
