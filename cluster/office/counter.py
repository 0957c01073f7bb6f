# SPDX-License-Identifier: Apache-2.0
"""The office itself: every question is one unit of work in a thread, and published epochs wake who waits.

The office decides nothing that a room below could decide; it authenticates, opens the unit of work, hands
the desk to the operation or the room, and chains what was done. It knows neither Ray nor HTTP, so tests can
hold one in their own process.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from cluster.errors import OfficeFault, UnknownOperation
from cluster.home import Home
from cluster.office.desk import Desk, now_us
from cluster.office.jobs import (
    admit_bundle,
    claim_job,
    inspect_sealed,
    open_case,
    report_progress,
    store_bundle,
)
from cluster.office.protocol import (
    Admission,
    Caller,
    EpochNews,
    JobClaim,
    JobDirection,
    JobOutcome,
    MetricReading,
    OfficeHealth,
    UsageRecord,
)
from cluster.office.requests import admit, answer_operation, find_to_weigh, record_batch
from cluster.office.scales import Scales
from cluster.office.sending import Sending
from cluster.settings import Settings
from model_core.errors import ProductError
from model_core.packing.store import ArtifactStore
from policy.facts.snapshot import Snapshot
from policy.facts.vocabulary import CURRENT_VERSION
from tenants.accounts.database import Database
from tenants.accounts.turns import Turns

log = logging.getLogger(__name__)

T = TypeVar("T")

# Readers must not wait behind writers: a host whose question about the epoch is not answered in time loses
# its lease.
_READERS = 4
# Who looks through files before they are taken in, or copies them.
_PORTERS = 2
# One at a time: a weighing takes a core for seconds and memory for two bundles.
_WEIGHERS = 1


class Office:
    """Answers at the counter; see ``OfficeProtocol``.

    Args:
        settings: the operator's choices.
        home: folders of the installation.
        database: open and upgraded.
        artifacts: where bundles lie.
        schema_revision: what the database was upgraded to.
        scales: weigh experts before they are admitted.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        home: Home,
        database: Database,
        artifacts: ArtifactStore,
        schema_revision: str,
        scales: Scales,
    ) -> None:
        self._settings = settings
        self._home = home
        self._database = database
        self._artifacts = artifacts
        self._schema_revision = schema_revision
        self._started_at_us = now_us()
        self._turns = Turns(database)
        self._porters = ThreadPoolExecutor(_PORTERS, thread_name_prefix="office-files")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="office-reads")
        self._weighers = ThreadPoolExecutor(_WEIGHERS, thread_name_prefix="office-weighs")
        self._scales = scales
        self._generation = 0
        self._changed = asyncio.Condition()
        self._standing: Sending | None = None
        self._heard: dict[str, int] = {}  # when each server last asked for news; its lease runs from there
        self._told: dict[str, frozenset[str]] = {}  # which stopped requests each server was told of last

    # -- people and programs ---------------------------------------------------------------------------

    async def call(
        self, op: str, credential: str, payload: dict[str, Any], *, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """Runs one operation of the table as the credential's principal."""
        from cluster.operations.catalogue import OPERATIONS

        operation = OPERATIONS.get(op)
        if operation is None:
            raise UnknownOperation(f"There is no operation {op[:80]!r}. See the list in the documentation.")

        weighed = None
        if operation.weighs is not None:
            bundle = await self._read(lambda desk: find_to_weigh(desk, operation, credential, payload))
            if bundle is not None:
                weighed = await self._in_pool(self._weighers, lambda: self._scales.weigh(bundle))

        def work(desk: Desk) -> dict[str, Any]:
            desk.weighed = weighed
            return answer_operation(desk, operation, credential, payload, idempotency_key)

        if operation.rehearses:
            return await self._write(work, wakes=False, urgent=True)
        if operation.only_reads:
            return await self._read(work)
        return await self._write(work, urgent=True)

    async def identify(self, credential: str) -> Caller:
        """Says whose credential this is."""

        def work(desk: Desk) -> Caller:
            principal = desk.accounts.authenticate(credential)
            return Caller(
                principal_id=principal.id,
                name=principal.name,
                tenant=principal.tenant,
                roles=tuple(sorted(str(role) for role in principal.roles)),
                key_id=principal.key_id,
            )

        return await self._read(work)

    async def health(self) -> OfficeHealth:
        """Answers once the database is open."""
        epoch = await self._read(lambda desk: desk.register.current_epoch())
        return OfficeHealth(
            status="ok",
            epoch=epoch,
            schema_revision=self._schema_revision,
            pid=os.getpid(),
            started_at_us=self._started_at_us,
        )

    # -- requests and usage ----------------------------------------------------------------------------

    async def admit_request(
        self,
        credential: str,
        deployment: str,
        max_tokens: int,
        n: int = 1,
        prompt_tokens: int = 0,
        continues: str = "",
    ) -> Admission:
        """Authenticates, checks access to the deployment, holds the budget."""
        del prompt_tokens  # prompts are metered and not charged
        return await self._write(
            lambda desk: admit(desk, credential, deployment, max_tokens, n, continues), wakes=False
        )

    async def release_request(self, request_id: str) -> None:
        """Gives back what a request still holds, when no host began it."""
        await self._write(lambda desk: desk.metering.release(request_id), wakes=False)

    async def record_usage(self, server_id: str, sequence: int, batch: list[UsageRecord]) -> int:
        """Stores a batch exactly once."""
        return await self._write(lambda desk: record_batch(desk, server_id, sequence, batch), wakes=False)

    # -- epochs ----------------------------------------------------------------------------------------

    async def wait_epoch(
        self, server_id: str, seen_epoch: int, timeout_s: float = 0.5, changes: bool = False
    ) -> EpochNews:
        """Long-polls for an epoch above ``seen_epoch``, or for a request that must end."""
        received_us = self._heard[server_id] = now_us()
        deadline = asyncio.get_running_loop().time() + min(timeout_s, self._settings.lease_s / 2)
        while True:
            # The generation is read before the database: a commit in between is seen by one of the two.
            generation = self._generation
            news = await self._read(lambda desk: self._news(desk, seen_epoch, received_us, changes=changes))
            left_s = deadline - asyncio.get_running_loop().time()
            told = self._told.get(server_id, frozenset())
            if news.epoch > seen_epoch or left_s <= 0 or not news.stopped.keys() <= told:
                self._told.pop(server_id, None)  # servers come and go: who was told of none is not remembered
                if news.stopped:
                    self._told[server_id] = frozenset(news.stopped)
                return news
            if not await self.changed(generation, left_s):
                return news

    @property
    def generation(self) -> int:
        """Grows with every unit of work that may have published."""
        return self._generation

    async def changed(self, generation: int, timeout_s: float) -> bool:
        """Waits until something may have been published since a generation; False if that took too long."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self._generation != generation)
        except TimeoutError:
            return False
        return True

    async def acknowledge(
        self, server_id: str, epoch: int, snapshot_digest: str, compositions: dict[str, str]
    ) -> None:
        """Records what a server runs."""
        if epoch == 0:
            return  # nothing was published yet, so there is nothing to prove
        await self._write(
            lambda desk: desk.register.acknowledge(server_id, epoch, snapshot_digest, compositions),
            wakes=False,
            urgent=True,
        )

    # -- jobs ------------------------------------------------------------------------------------------

    async def claim_job(self, foreman_id: str, max_running_per_tenant: int = 1) -> JobClaim | None:
        """Claims the next job."""
        return await self._write(
            lambda desk: claim_job(desk, foreman_id, max_running_per_tenant), wakes=False
        )

    async def requeue_orphans(self, foreman_id: str) -> list[str]:
        """Queues every live job again: the one foreman asks when it starts, before it claims any."""
        log.info("a foreman starts", extra={"foreman": foreman_id})
        return await self._write(
            lambda desk: [record.id for record in desk.jobs.requeue_orphans(None)], wakes=False
        )

    async def job_progress(
        self, job_id: str, fence: int, state: str, metrics: list[MetricReading], message: str = ""
    ) -> JobDirection:
        """Reports an attempt's progress."""
        return await self._write(
            lambda desk: report_progress(desk, job_id, fence, state=state, metrics=metrics, message=message),
            wakes=False,
        )

    async def finish_job(self, job_id: str, fence: int, bundle_folder: str) -> JobOutcome:
        """Admits a finished job's bundle."""
        case = await self._read(lambda desk: open_case(desk, job_id))
        checked = await self._in_pool(
            self._porters, lambda: inspect_sealed(self._home, case, Path(bundle_folder))
        )
        weighed = await self._in_pool(self._weighers, lambda: self._scales.weigh(checked))
        await self._in_pool(self._porters, lambda: store_bundle(self._home, self._artifacts, checked))
        return await self._write(lambda desk: admit_bundle(desk, case, fence, checked, weighed), wakes=False)

    async def fail_job(self, job_id: str, fence: int, code: str, sentence: str, *, retry: bool) -> None:
        """Closes an attempt."""
        await self._write(lambda desk: desk.jobs.fail(job_id, fence, code, sentence, retry), wakes=False)

    # -- units of work ---------------------------------------------------------------------------------

    async def do(self, work: Callable[[Desk], T], *, wakes: bool = True) -> T:
        """Runs platform-internal work in one writing unit of work.

        Args:
            work: what to do at the desk.
            wakes: whether it may publish, so that waiting hosts must look.
        """
        return await self._write(work, wakes=wakes)

    async def look(self, work: Callable[[Desk], T]) -> T:
        """Runs platform-internal work in one unit of work for reading."""
        return await self._read(work)

    def close(self) -> None:
        """Waits for running work and closes the database."""
        self._turns.close()
        self._porters.shutdown(wait=True)
        self._readers.shutdown(wait=True)
        self._weighers.shutdown(wait=True)
        self._database.close()

    async def _write(self, work: Callable[[Desk], T], *, wakes: bool = True, urgent: bool = False) -> T:
        """Waits for its turn, see ``Turns``.

        Urgent are publications and the words of hosts that run them: how soon a withdrawal is in force
        everywhere depends on them, and they must not queue behind hundreds of admissions.
        """

        async def write() -> T:
            told = self._turns.submit(lambda session: work(self._desk(session)), urgent=urgent)
            answer = await _said(asyncio.wrap_future(told))
            if wakes:
                self._generation += 1
                async with self._changed:
                    self._changed.notify_all()
            return answer

        # Shielded: a caller that goes away must not leave a commit whose waiters were never woken.
        return await asyncio.shield(asyncio.ensure_future(write()))

    async def _read(self, work: Callable[[Desk], T]) -> T:
        def read() -> T:
            with self._database.reading() as session:
                return work(self._desk(session))

        return await self._in_pool(self._readers, read)

    def _desk(self, session: Any) -> Desk:
        return Desk(
            session=session,
            home=self._home,
            artifacts=self._artifacts,
            settings=self._settings,
            heard=self._heard,
        )

    async def _in_pool(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await _said(asyncio.get_running_loop().run_in_executor(pool, work))

    def _news(self, desk: Desk, seen_epoch: int, received_us: int, *, changes: bool) -> EpochNews:
        epoch = desk.register.current_epoch()
        sending = self._standing
        if sending is None or sending.snapshot.epoch != epoch:
            # Before the first publication there is nothing to permit, and one fixed empty snapshot says so.
            snapshot = (
                desk.register.known(epoch)
                if epoch
                else Snapshot(epoch=0, published_at_us=0, vocabulary_version=CURRENT_VERSION)
            )
            # one assignment: other threads see the old one or the new one
            sending = self._standing = Sending(snapshot)
        seen_digest = sending.snapshot.digest if seen_epoch == epoch else ""
        if 0 < seen_epoch < epoch:
            seen_digest = desk.register.digest_of(seen_epoch)
        way = sending.changes(desk.session, seen_epoch, seen_digest) if changes and seen_digest else None
        return EpochNews(
            epoch=epoch,
            snapshot_digest=sending.snapshot.digest,
            snapshot_json=sending.whole if epoch > seen_epoch and way is None else None,
            changes_json=way,
            lease_s=self._settings.lease_s,
            office_at_us=now_us(),
            received_us=received_us,
            seen_digest=seen_digest,
            stopped=dict(desk.stopped.requests()),
        )


async def _said(answer: Awaitable[T]) -> T:
    """An answer or a refusal; anything else stays here."""
    try:
        return await answer
    except ProductError:
        raise
    except Exception as error:
        log.exception("a unit of work failed")
        # The cause stays here: its message may quote values, and its class may not exist elsewhere.
        raise OfficeFault(
            "Something unexpected happened in the office. Nothing was changed; its log says more.",
            kind=type(error).__name__,
        ) from None
