# SPDX-License-Identifier: Apache-2.0
"""The book of training jobs: queue, attempts, fences, curves. The truth about jobs, which Ray merely runs.

A claim opens a new attempt under a higher **fence**. Whoever reports must show the fence of its attempt; an
attempt that was replaced (its machine was cut off, not dead) is refused and can spoil nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.orm import Session

from model_core.packing.canonical import canonical_bytes, digest_bytes
from model_core.packing.ids import check_name, new_id
from tenants.accounts.database import lock_for_writing
from tenants.accounts.job_life import JobLife, record_of
from tenants.accounts.schema import upsert
from tenants.accounts.tables import DatasetRow, JobAttemptRow, JobEventRow, JobMetricRow, JobRow
from tenants.errors import IdempotencyConflict, StaleAttempt, UnknownObject
from tenants.jobs import FINAL, LIVE, JobClaim, JobEvent, JobRecord, JobState, MetricPoint, check_transition

MAX_ATTEMPTS: Final = 5


# Named here because inside the class ``list`` is the method.
Jobs = list[JobRecord]
Curve = list[MetricPoint]
History = list[JobEvent]


class JobBook:
    """The job room, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us
        self._life = JobLife(session, now_us)

    def submit(
        self,
        tenant: str,
        principal_id: str,
        name: str,
        dataset_id: str,
        base_digest: str,
        *,
        recipe: dict[str, Any],
        idempotency_key: str | None = None,
    ) -> JobRecord:
        """Queues a job. The same idempotency key with the same payload returns the first job.

        Raises:
            UnknownObject: the tenant has no such dataset.
            IdempotencyConflict: the key was used with another payload.
        """
        check_name(name, "job")
        payload = {"name": name, "dataset_id": dataset_id, "base_digest": base_digest, "recipe": recipe}
        payload_digest = digest_bytes(canonical_bytes(payload))
        if idempotency_key is not None:
            lock_for_writing(self._session, f"job-key:{tenant}:{idempotency_key}")
            query = select(JobRow).where(JobRow.tenant == tenant, JobRow.idempotency_key == idempotency_key)
            earlier = self._session.scalars(query).one_or_none()
            if earlier is not None:
                return _same_job(earlier, payload_digest, idempotency_key)
        dataset = self._session.get(DatasetRow, dataset_id)
        if dataset is None or dataset.tenant != tenant:
            raise UnknownObject("There is no such dataset; list the datasets.", dataset_id=dataset_id)
        row = JobRow(
            id=new_id("job"),
            tenant=tenant,
            principal_id=principal_id,
            name=name,
            dataset_id=dataset_id,
            base_digest=base_digest,
            recipe=canonical_bytes(recipe).decode(),
            payload_digest=payload_digest,
            idempotency_key=idempotency_key,
            state=JobState.QUEUED.value,
            message="",
            attempts=0,
            fence=0,
            cancel_requested=0,
            foreman_id=None,
            bundle_digest=None,
            result="{}",
            error_code=None,
            error_sentence=None,
            created_at_us=self._now_us,
            updated_at_us=self._now_us,
            finished_at_us=None,
        )
        self._session.add(row)
        self._session.flush()
        self._life.note(row, "", "submitted")
        return record_of(row)

    def get(self, job_id: str) -> JobRecord:
        """One job.

        Raises:
            UnknownObject: there is none with this id.
        """
        return record_of(self._row(job_id))

    def list(self, tenant: str | None = None) -> Jobs:
        """Jobs, newest first; of one tenant, or of all with None."""
        query = select(JobRow).order_by(JobRow.id.desc())
        if tenant is not None:
            query = query.where(JobRow.tenant == tenant)
        return [record_of(row) for row in self._session.scalars(query)]

    def claim(self, foreman_id: str, max_running_per_tenant: int) -> JobClaim | None:
        """Opens the next attempt: of the tenant with the fewest live jobs, its oldest queued job.

        Returns:
            None when nothing may start now.
        """
        lock_for_writing(self._session, "job-claims")
        live = func.sum(_count_if(JobRow.state.in_([state.value for state in LIVE])))
        loads = self._session.execute(select(JobRow.tenant, live).group_by(JobRow.tenant))
        free = {tenant: int(count) for tenant, count in loads if int(count) < max_running_per_tenant}
        query = (
            select(JobRow)
            .where(JobRow.state == JobState.QUEUED.value, JobRow.cancel_requested == 0)
            .where(JobRow.tenant.in_(free))
            .order_by(JobRow.id)
        )
        waiting = list(self._session.scalars(query))
        if not waiting:
            return None
        # min() keeps the first of equals: among equally loaded tenants the longest waiting job goes first.
        row = min(waiting, key=lambda job: free[job.tenant])
        row.attempts += 1
        row.fence += 1
        row.foreman_id = foreman_id
        self._session.add(
            JobAttemptRow(
                job_id=row.id,
                attempt=row.attempts,
                fence=row.fence,
                foreman_id=foreman_id,
                started_at_us=self._now_us,
                ended_at_us=None,
                outcome="",
            )
        )
        self._life.move(row, JobState.PLACED, f"claimed by {foreman_id}")
        return JobClaim(job=record_of(row), attempt=row.attempts, fence=row.fence)

    def progress(
        self,
        job_id: str,
        fence: int,
        state: JobState,
        metrics_points: Sequence[MetricPoint] = (),
        message: str = "",
    ) -> JobRecord:
        """Takes a report of the running attempt: where it stands and new points of its curves.

        Raises:
            StaleAttempt: another attempt has begun, or the job has ended.
            IllegalTransition: the state can not follow the present one.
        """
        row = self._fenced(job_id, fence)
        if state.value != row.state:
            if state in FINAL or state is JobState.QUEUED:
                check_transition(JobState(row.state), JobState(row.state))  # endings have their own acts
            self._life.move(row, state, message)
        row.message = message or row.message
        row.updated_at_us = self._now_us
        for point in metrics_points:
            key = ("job_id", "name", "step")
            values = {"job_id": job_id, "name": point.name, "step": point.step, "value": point.value}
            upsert(self._session, JobMetricRow, values, key)
        self._session.flush()
        return record_of(row)

    def finish(
        self, job_id: str, fence: int, bundle_digest: str, expert_version: dict[str, Any] | None = None
    ) -> JobRecord:
        """Ends a job well. Finishing again with the same bundle changes nothing.

        Args:
            job_id: which job.
            fence: of the attempt that sealed the bundle.
            bundle_digest: what was sealed.
            expert_version: facts of the admitted version, kept with the job.

        Raises:
            StaleAttempt: another attempt has begun, or the job ended otherwise.
        """
        row = self._row(job_id)
        done = (JobState.SUCCEEDED.value, fence, bundle_digest)
        if (row.state, row.fence, row.bundle_digest) == done:
            return record_of(row)
        row = self._fenced(job_id, fence)
        # A report of "sealing" can be lost with its sender; the sealed bundle proves that it happened.
        for step in (JobState.RUNNING, JobState.SEALING):
            if JobState(row.state) is not JobState.SEALING and JobState(row.state) is not step:
                self._life.move(row, step, "implied by the sealed bundle")
        row.bundle_digest = bundle_digest
        row.result = canonical_bytes(expert_version or {}).decode()
        self._life.end(row, JobState.SUCCEEDED, "sealed")
        return record_of(row)

    def fail(self, job_id: str, fence: int, code: str, sentence: str, retry: bool) -> JobRecord:
        """Ends the attempt badly; the job is queued again where a retry may help and attempts are left.

        Raises:
            StaleAttempt: another attempt has begun, or the job has ended.
        """
        row = self._fenced(job_id, fence)
        row.error_code, row.error_sentence = code, sentence
        if row.cancel_requested:
            self._life.end(row, JobState.CANCELLED, sentence)
        elif retry and row.attempts < MAX_ATTEMPTS:
            self._life.end_attempt(row, f"failed: {code}")
            row.foreman_id = None
            self._life.move(row, JobState.QUEUED, sentence)
        else:
            self._life.end(row, JobState.FAILED, sentence)
        return record_of(row)

    def request_cancel(self, job_id: str) -> JobRecord:
        """Asks for the end of a job. A queued one ends now, a live one when its foreman hears it."""
        row = self._row(job_id)
        if JobState(row.state) in FINAL:
            return record_of(row)
        row.cancel_requested = 1
        row.updated_at_us = self._now_us
        if JobState(row.state) is JobState.QUEUED:
            self._life.end(row, JobState.CANCELLED, "cancelled before it began")
        self._session.flush()
        return record_of(row)

    def cancelled(self, job_id: str, fence: int) -> JobRecord:
        """Records that the attempt was stopped because somebody asked for it.

        Raises:
            StaleAttempt: another attempt has begun, or the job has ended.
        """
        row = self._fenced(job_id, fence)
        self._life.end(row, JobState.CANCELLED, "cancelled on request")
        return record_of(row)

    def requeue_orphans(self, foreman_id: str | None = None) -> Jobs:
        """Queues the live jobs of a foreman that died (of all foremen with None) for another attempt.

        Those that were to be cancelled end as cancelled; those without attempts left as failed.
        """
        lock_for_writing(self._session, "job-claims")
        query = select(JobRow).where(JobRow.state.in_([state.value for state in LIVE])).order_by(JobRow.id)
        if foreman_id is not None:
            query = query.where(JobRow.foreman_id == foreman_id)
        rows = list(self._session.scalars(query))
        for row in rows:
            if row.cancel_requested:
                self._life.end(
                    row, JobState.CANCELLED, "its attempt died after the cancellation was asked for"
                )
            elif row.attempts >= MAX_ATTEMPTS:
                row.error_code, row.error_sentence = "job_attempts_spent", "Every attempt at the job died."
                self._life.end(row, JobState.FAILED, row.error_sentence)
            else:
                self._life.end_attempt(row, "orphaned")
                row.foreman_id = None
                row.fence += 1  # a report of the dead attempt that is still under way is refused from now on
                self._life.move(row, JobState.QUEUED, "its attempt died")
        return [record_of(row) for row in rows]

    def metrics(self, job_id: str) -> Curve:
        """The curves of a job, by name and step."""
        self._row(job_id)
        query = select(JobMetricRow).where(JobMetricRow.job_id == job_id)
        rows = self._session.scalars(query.order_by(JobMetricRow.name, JobMetricRow.step))
        return [MetricPoint(step=row.step, name=row.name, value=row.value) for row in rows]

    def history(self, job_id: str) -> History:
        """Every step in the life of a job, oldest first."""
        query = select(JobEventRow).where(JobEventRow.job_id == job_id).order_by(JobEventRow.n)
        return [
            JobEvent(
                at_us=row.at_us,
                attempt=row.attempt,
                old_state=row.old_state,
                new_state=row.new_state,
                note=row.note,
            )
            for row in self._session.scalars(query)
        ]

    def _row(self, job_id: str) -> JobRow:
        row = self._session.get(JobRow, job_id, with_for_update=True)
        if row is None:
            raise UnknownObject("There is no such job; list the jobs.", job_id=job_id)
        return row

    def _fenced(self, job_id: str, fence: int) -> JobRow:
        row = self._row(job_id)
        if row.fence != fence or JobState(row.state) not in LIVE:
            raise StaleAttempt(
                "This attempt no longer holds the job; stop it and leave its work folder alone.",
                job_id=job_id,
                fence=fence,
                current_fence=row.fence,
                state=row.state,
            )
        return row


def _count_if(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return case((condition, 1), else_=0)


def _same_job(row: JobRow, payload_digest: str, key: str) -> JobRecord:
    if row.payload_digest != payload_digest:
        raise IdempotencyConflict(
            "This idempotency key was used for another job; use a new key for a new job.",
            idempotency_key=key,
            job_id=row.id,
        )
    return record_of(row)
