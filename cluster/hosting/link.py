# SPDX-License-Identifier: Apache-2.0
"""A host's line to the register: it renews the lease, hears epochs, applies them and acknowledges.

Questions overlap: every ``renew_s`` another one is sent, and at once after news, whether or not the last was
answered, so one slow answer on a busy machine does not cost the lease and epochs in a row are each heard.
Answers may arrive in any order; a lower epoch is never taken. Order of one piece of news: snapshot verified →
compositions made → masks applied and stopped requests
ended on the engine's thread → lease renewed → missing experts loaded → acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from cluster.hosting.errors import EpochRefused
from cluster.hosting.floor import EpochFloor
from cluster.hosting.gate import ReleaseGate
from cluster.hosting.news import is_newer, read_snapshot
from cluster.hosting.plan import EMPTY_ROSTER, Roster, make_roster
from cluster.office.protocol import EpochNews
from model_core.errors import ProductError
from policy.compiled import Compiled, compile_snapshot
from policy.facts.snapshot import Snapshot

log = logging.getLogger(__name__)

_MAX_QUESTIONS = 4


class RegisterDesk(Protocol):
    """The part of the office that this module needs."""

    async def wait_epoch(
        self, server_id: str, seen_epoch: int, timeout_s: float = 0.5, changes: bool = False
    ) -> EpochNews:
        """Long-polls for an epoch above ``seen_epoch``."""
        ...

    async def acknowledge(
        self, server_id: str, epoch: int, snapshot_digest: str, compositions: dict[str, str]
    ) -> None:
        """Records that a server runs these compositions."""
        ...


@dataclass(kw_only=True, slots=True)
class LinkCounts:
    """What the line has seen.

    Attributes:
        answers: answers taken.
        failures: questions that were not answered.
        refused: answers with a lower epoch or a wrong snapshot.
        acknowledged_epoch: last acknowledged epoch.
    """

    answers: int = 0
    failures: int = 0
    refused: int = 0
    acknowledged_epoch: int = -1


class RegisterLink:
    """Keeps one host in step with the register.

    Args:
        office: where epochs come from.
        server_id: this host.
        base_digest: deployments of other bases are not looked at.
        gate: opened by renewals.
        apply: puts a roster in force; returns once masks hold.
        load: brings permitted experts in; called after the lease was renewed.
        stop: ends requests, given with the cause of each; returns once nothing of them can be released.
        floor: remembers the highest epoch over restarts; None forgets it.
        renew_s: pause between questions.
        poll_s: how long the office may wait for news before it answers.
    """

    def __init__(
        self,
        office: RegisterDesk,
        server_id: str,
        base_digest: str,
        gate: ReleaseGate,
        *,
        apply: Callable[[Roster], Awaitable[None]],
        load: Callable[[Roster], Awaitable[None]],
        stop: Callable[[Mapping[str, str]], Awaitable[None]],
        floor: EpochFloor | None = None,
        renew_s: float = 0.5,
        poll_s: float = 0.4,
    ) -> None:
        self._office = office
        self._server_id = server_id
        self._base_digest = base_digest
        self._gate = gate
        self._apply = apply
        self._load = load
        self._stop = stop
        self._stopped: frozenset[str] = frozenset()
        self._floor = floor
        self._renew_s = renew_s
        self._poll_s = poll_s
        self._snapshot: Snapshot | None = None
        self._takes_changes = True
        self._compiled: Compiled | None = None
        self._roster = EMPTY_ROSTER
        self._hearing = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._again = asyncio.Event()
        self._aftermath: asyncio.Task[None] | None = None
        self.counts = LinkCounts()

    @property
    def roster(self) -> Roster:
        """The roster in force."""
        return self._roster

    async def reached(self, epoch: int, timeout_s: float) -> bool:
        """Waits until this epoch or a later one is in force; False if that took too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self._roster.epoch >= epoch)
        return self._roster.epoch >= epoch

    async def run(self) -> None:
        """Runs until cancelled."""
        questions: set[asyncio.Task[None]] = set()
        expiry = asyncio.create_task(self._watch_expiry())
        try:
            while True:
                self._gate.is_open()  # so that the time since it closed is known to within one pause
                if len(questions) < _MAX_QUESTIONS:
                    question = asyncio.create_task(self._ask())
                    questions.add(question)
                    question.add_done_callback(questions.discard)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._renew_s):
                        await self._again.wait()
                self._again.clear()
                if expiry.done():
                    expiry.result()
        finally:
            for task in (*questions, expiry, *((self._aftermath,) if self._aftermath else ())):
                task.cancel()

    async def _ask(self) -> None:
        sent_us = self._gate.now_boot_us()
        seen = (self._roster.epoch, self._roster.snapshot_digest)
        try:
            async with asyncio.timeout(30):
                news = await self._office.wait_epoch(
                    self._server_id, seen[0], self._poll_s, self._takes_changes
                )
            async with self._hearing:
                await self._hear(news, seen, sent_us)
            self.counts.answers += 1
        except (ProductError, TimeoutError) as err:
            if isinstance(err, EpochRefused):
                self.counts.refused += 1
                if seen[0] < self._roster.epoch:
                    self._again.set()  # the question was too old; a new one brings what there is
            self.counts.failures += 1
            log.warning("no news from the register: %s", getattr(err, "code", "timeout"))

    async def _hear(self, news: EpochNews, seen: tuple[int, str], sent_us: int) -> None:
        known = self._roster
        floor = -1 if self._floor is None or known.epoch >= 0 else await asyncio.to_thread(self._floor.read)
        if is_newer(news, known.epoch, known.snapshot_digest, seen, floor):
            # Where changes lead elsewhere, the next answers have to be whole.
            self._takes_changes = news.changes_json is None
            snapshot = await asyncio.to_thread(read_snapshot, news, self._snapshot)
            self._takes_changes = True
            # The number goes to disk while compositions are made; nothing is in force before both are done.
            # Both are waited for also where one fails: the compiled snapshot is one thread's at a time.
            raising = asyncio.create_task(asyncio.to_thread(self._raise_floor, news.epoch))
            try:
                roster = await asyncio.to_thread(self._composed, snapshot)
            finally:
                await raising
            self._snapshot = snapshot
            await self._put_in_force(roster)
            self._again.set()  # nobody waits at the office now, and the next epoch may come at once
        if not news.stopped.keys() <= self._stopped:
            await self._stop(news.stopped)
            # Answers may come in any order: what one of them stopped stays so.
            self._stopped = frozenset(news.stopped)
        self._gate.renew(sent_us, int(news.lease_s * 1_000_000), news.received_us)

    def _raise_floor(self, epoch: int) -> None:
        if self._floor is not None:
            self._floor.raise_to(epoch)

    def _composed(self, snapshot: Snapshot) -> Roster:
        at_us = self._gate.judge_time_us()
        if self._compiled is None or self._compiled.snapshot is not snapshot:
            self._compiled = compile_snapshot(snapshot)
        return make_roster(self._compiled, self._base_digest, at_us)

    async def _put_in_force(self, roster: Roster | None = None) -> None:
        """Applies a roster, or makes that of the present snapshot at the present time; holds ``_hearing``."""
        if roster is None:
            if self._snapshot is None:
                return
            roster = await asyncio.to_thread(self._composed, self._snapshot)
        await self._apply(roster)
        self._roster = roster
        async with self._changed:
            self._changed.notify_all()
        if self._aftermath is not None:
            self._aftermath.cancel()
        self._aftermath = asyncio.create_task(self._complete(roster))

    async def _complete(self, roster: Roster) -> None:
        """Loads what is missing, then says what this host serves; tries again until a newer roster comes."""
        pause_s = 0.2
        while self._roster is roster:
            try:
                await self._load(roster)
                await self._office.acknowledge(
                    self._server_id, roster.epoch, roster.snapshot_digest, roster.compositions
                )
            except ProductError as err:
                log.warning("epoch %d is not complete yet: %s", roster.epoch, err.code)
                await asyncio.sleep(pause_s)
                pause_s = min(5.0, pause_s * 2)
            else:
                self.counts.acknowledged_epoch = roster.epoch
                return

    async def _watch_expiry(self) -> None:
        """Recomposes when a time bound passes; the gate is closed from that moment until it is done."""
        while True:
            expires_at_us = self._roster.expires_at_us
            if expires_at_us is not None and self._gate.judge_time_us() >= expires_at_us:
                async with self._hearing:
                    await self._put_in_force()
            await asyncio.sleep(0.02 if self._near(expires_at_us) else 0.2)

    def _near(self, at_us: int | None) -> bool:
        return at_us is not None and at_us - self._gate.judge_time_us() < 400_000
