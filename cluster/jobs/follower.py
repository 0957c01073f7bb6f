# SPDX-License-Identifier: Apache-2.0
"""What a foreman does: takes admitted jobs from the office, gives each a workshop, follows it, reports.

Job truth is in the office's database. A follower keeps only what it follows now; one that dies is succeeded
by another with a new id, which puts every orphaned attempt back in the queue. Fences make reports of a
superseded attempt harmless. Knows neither Ray nor what a workshop does: tests put their own in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from cluster.errors import OfficeUnavailable, WeighingFailed
from cluster.jobs.attempt import AttemptReport
from cluster.jobs.errors import WorkshopGone
from cluster.office.protocol import JobClaim, JobDirection, JobOutcome, MetricReading
from model_core.errors import ProductError
from model_core.packing.ids import new_id
from tenants.errors import StaleAttempt

log = logging.getLogger(__name__)


class JobDesk(Protocol):
    """The part of the office that this module needs."""

    async def claim_job(self, foreman_id: str, max_running_per_tenant: int = 1) -> JobClaim | None:
        """Claims the next job."""
        ...

    async def requeue_orphans(self, foreman_id: str) -> list[str]:
        """Queues jobs again that nobody follows."""
        ...

    async def job_progress(
        self, job_id: str, fence: int, state: str, metrics: list[MetricReading], message: str = ""
    ) -> JobDirection:
        """Reports an attempt."""
        ...

    async def finish_job(self, job_id: str, fence: int, bundle_folder: str) -> JobOutcome:
        """Admits a bundle."""
        ...

    async def fail_job(self, job_id: str, fence: int, code: str, sentence: str, *, retry: bool) -> None:
        """Closes an attempt."""
        ...


class Workshop(Protocol):
    """A running attempt, wherever it runs."""

    async def report(self) -> AttemptReport:
        """What is new. MUST raise ``WorkshopGone`` if it has ended, ``TimeoutError`` if it is not placed."""
        ...

    async def stop(self) -> None:
        """Asks it to end after a checkpoint."""
        ...

    async def end(self) -> None:
        """Ends it now. The work folder's lock keeps a next attempt out until the last of it is gone."""
        ...


@dataclass(kw_only=True, slots=True)
class _Followed:
    claim: JobClaim
    workshop: Workshop
    placed_at: float
    stopping: bool = False
    reported: float = 0.0
    unsent: list[MetricReading] = field(default_factory=list)
    last: AttemptReport | None = None
    said: tuple[str, str] = ("", "")
    closing: asyncio.Task[None] | None = None


class JobFollower:
    """Follows workshops.

    Args:
        office: where jobs come from and reports go.
        open_workshop: starts an attempt somewhere; must return at once.
        max_running: workshops at the same time.
        max_running_per_tenant: of one tenant.
        look_s: pause between looks at each workshop.
        report_s: longest silence towards the office while a job runs; also the shortest pause between two
            reports that carry nothing but curves.
        placement_s: how long a workshop may wait for a node.
    """

    def __init__(
        self,
        office: JobDesk,
        open_workshop: Callable[[JobClaim], Workshop],
        *,
        max_running: int = 4,
        max_running_per_tenant: int = 1,
        look_s: float = 0.5,
        report_s: float = 1.0,
        placement_s: float = 90.0,
    ) -> None:
        self.foreman_id = new_id("frm")
        self._office = office
        self._open_workshop = open_workshop
        self._max_running = max_running
        self._max_running_per_tenant = max_running_per_tenant
        self._look_s = look_s
        self._report_s = report_s
        self._placement_s = placement_s
        self._followed: dict[str, _Followed] = {}

    @property
    def following(self) -> tuple[str, ...]:
        """Jobs that run now."""
        return tuple(self._followed)

    async def run(self) -> None:
        """Runs until cancelled; an absent office is waited for."""
        await self._patiently(self._requeue)
        while True:
            await self._patiently(self._take_jobs)
            for one in list(self._followed.values()):
                try:
                    await self._look_after(one)
                except OfficeUnavailable:
                    continue  # what was to be reported is kept and sent at the next look
                except ProductError as err:
                    await self._give_up(one, err)
            await asyncio.sleep(self._look_s)

    async def stop(self) -> None:
        """Ends every workshop; their jobs are queued again by the next foreman."""
        for one in list(self._followed.values()):
            if one.closing is not None:
                one.closing.cancel()
            await one.workshop.end()
        self._followed.clear()

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    async def _patiently(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except OfficeUnavailable:
                await asyncio.sleep(self._look_s)
            except ProductError as err:
                log.warning("the office refused: %s", err.code)
                return
            else:
                return

    async def _requeue(self) -> None:
        for job_id in await self._office.requeue_orphans(self.foreman_id):
            log.info("an orphaned job is queued again", extra={"job_id": job_id})

    async def _take_jobs(self) -> None:
        while len(self._followed) < self._max_running:
            claim = await self._office.claim_job(self.foreman_id, self._max_running_per_tenant)
            if claim is None:
                return
            workshop = self._open_workshop(claim)
            now = time.monotonic()
            self._followed[claim.job_id] = _Followed(claim=claim, workshop=workshop, placed_at=now)

    async def _look_after(self, one: _Followed) -> None:
        if one.last is None or not one.last.final:
            try:
                report = await one.workshop.report()
            except TimeoutError:
                await self._wait_for_place(one)
                return
            except WorkshopGone:
                await self._fail(one, "workshop_died", "The workshop's process or node ended.", retry=True)
                return
            one.last, one.placed_at = report, time.monotonic()
            one.unsent.extend(report.metrics)
        if one.closing is None:
            await self._tell(one, one.last)
        if one.last.final and not one.unsent:
            await self._end(one, one.last)

    async def _wait_for_place(self, one: _Followed) -> None:
        if one.last is None:
            await self._tell(one, AttemptReport(state="placed", message="Waiting for a node."))
        if one.stopping or time.monotonic() - one.placed_at > self._placement_s:
            sentence = "No node took the workshop in time, or the workshop no longer answers."
            await self._fail(one, "placement_timed_out", sentence, retry=True)

    async def _tell(self, one: _Followed, report: AttemptReport) -> None:
        """Sends what is new, at most every ``report_s`` unless the state changed."""
        state = "running" if report.final else report.state
        if report.state == "sealed":
            state = "sealing"
        now = time.monotonic()
        changed = one.said[0] != state
        due = now - one.reported >= self._report_s
        if not (changed or report.final or due):
            return
        if state == "sealing" and one.said[0] not in ("running", "sealing"):
            # An attempt that found its bundle sealed already skips the training, not the states.
            await self._send(one, "running", report.message)
        direction = await self._send(one, state, report.message)
        if direction.cancel_requested and not one.stopping:
            one.stopping = True
            await one.workshop.stop()

    async def _send(self, one: _Followed, state: str, message: str) -> JobDirection:
        claim = one.claim
        count = len(one.unsent)
        direction = await self._office.job_progress(claim.job_id, claim.fence, state, one.unsent, message)
        del one.unsent[:count]
        one.reported, one.said = time.monotonic(), (state, message)
        return direction

    async def _end(self, one: _Followed, report: AttemptReport) -> None:
        """Closes an attempt beside the others: its admission weighs the expert, which takes its time."""
        if one.closing is None:
            one.closing = asyncio.create_task(self._close(one, report))
        done, _ = await asyncio.wait({one.closing}, timeout=self._look_s)
        if done:
            task, one.closing = one.closing, None
            task.result()

    async def _close(self, one: _Followed, report: AttemptReport) -> None:
        claim = one.claim
        if report.state == "sealed":
            await self._office.finish_job(claim.job_id, claim.fence, report.bundle_folder)
        elif report.state == "stopped" and one.stopping:
            await self._office.job_progress(claim.job_id, claim.fence, "cancelled", [])
        elif report.state == "stopped":
            sentence = "The attempt was interrupted; it goes on from its checkpoint."
            await self._office.fail_job(claim.job_id, claim.fence, "interrupted", sentence, retry=True)
        else:
            await self._office.fail_job(
                claim.job_id, claim.fence, report.code, report.sentence, retry=report.retry
            )
        await self._drop(one)

    async def _fail(self, one: _Followed, code: str, sentence: str, *, retry: bool) -> None:
        claim = one.claim
        if one.stopping:
            await self._office.job_progress(claim.job_id, claim.fence, "cancelled", [])
        else:
            await self._office.fail_job(claim.job_id, claim.fence, code, sentence, retry=retry)
        await self._drop(one)

    async def _give_up(self, one: _Followed, err: ProductError) -> None:
        """The office refuses this attempt: it is superseded, or its bundle is not admissible."""
        log.warning("an attempt is given up: %s", err.code, extra={"job_id": one.claim.job_id})
        if not isinstance(err, StaleAttempt):
            with contextlib.suppress(ProductError):
                claim = one.claim
                retry = isinstance(err, WeighingFailed)  # nothing is known about the expert yet
                await self._office.fail_job(claim.job_id, claim.fence, err.code, err.sentence, retry=retry)
        await self._drop(one)

    async def _drop(self, one: _Followed) -> None:
        self._followed.pop(one.claim.job_id, None)
        await one.workshop.end()
