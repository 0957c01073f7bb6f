# SPDX-License-Identifier: Apache-2.0
"""Moves a job's row from state to state: every step is legal, and noted in the job's history.

Knows nothing of who asks for a step and whether that one may.
"""

from __future__ import annotations

import json

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tenants.accounts.tables import JobAttemptRow, JobEventRow, JobRow
from tenants.jobs import FINAL, JobRecord, JobState, check_transition


class JobLife:
    """The steps of jobs, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us

    def move(self, row: JobRow, new: JobState, note: str) -> None:
        """Takes a legal step and notes it.

        Raises:
            IllegalTransition: the new state cannot follow the present one.
        """
        old = JobState(row.state)
        check_transition(old, new)
        row.state = new.value
        row.updated_at_us = self._now_us
        if new in FINAL:
            row.finished_at_us = self._now_us
        self._session.flush()
        self.note(row, old.value, note)

    def end(self, row: JobRow, new: JobState, note: str) -> None:
        """Ends a job with its attempt, if one is open.

        Raises:
            IllegalTransition: the new state cannot follow the present one.
        """
        self.end_attempt(row, new.value)
        row.foreman_id = None
        row.message = note
        self.move(row, new, note)

    def end_attempt(self, row: JobRow, outcome: str) -> None:
        """Ends the row's newest attempt, if it is open; the job's state stays."""
        attempt = self._session.get(JobAttemptRow, (row.id, row.attempts))
        if attempt is not None and attempt.ended_at_us is None:
            attempt.ended_at_us = self._now_us
            attempt.outcome = outcome

    def note(self, row: JobRow, old: str, note: str) -> None:
        """Appends one line to the job's history."""
        query = select(func.count()).select_from(JobEventRow).where(JobEventRow.job_id == row.id)
        self._session.add(
            JobEventRow(
                job_id=row.id,
                n=self._session.scalar(query) or 0,
                at_us=self._now_us,
                attempt=row.attempts,
                old_state=old,
                new_state=row.state,
                note=note,
            )
        )
        self._session.flush()


def record_of(row: JobRow) -> JobRecord:
    """A job's row as everyone above reads it."""
    return JobRecord(
        id=row.id,
        tenant=row.tenant,
        principal_id=row.principal_id,
        name=row.name,
        dataset_id=row.dataset_id,
        base_digest=row.base_digest,
        recipe=json.loads(row.recipe),
        state=JobState(row.state),
        message=row.message,
        attempts=row.attempts,
        fence=row.fence,
        cancel_requested=bool(row.cancel_requested),
        foreman_id=row.foreman_id,
        bundle_digest=row.bundle_digest,
        result=json.loads(row.result),
        error_code=row.error_code,
        error_sentence=row.error_sentence,
        created_at_us=row.created_at_us,
        updated_at_us=row.updated_at_us,
        finished_at_us=row.finished_at_us,
    )
