# SPDX-License-Identifier: Apache-2.0
"""Publishes approved changes when their moment has come, and says of those that no longer can be why.

The moment is the register's: the clock's, but never before the last publication. So a clock that was set back
delays a publication and never brings one forward, and the database refuses an epoch that is dated before its
change. A change that was approved is looked at again: its digest, what author and approver may do now, and
whether its edits still make sense. Everything is in the database, so a restart forgets no moment.
"""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from model_core.errors import ProductError
from policy.audit.chain import Audit
from policy.changing.changes import Changes
from policy.publishing.publication import PLATFORM_ACTOR, Publisher
from policy.records.changes import ChangeRecord
from policy.tables import ChangeRow


class Schedule:
    """The calendar of the review room, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us
        self._changes = Changes(session, now_us)

    def next_due_us(self) -> int | None:
        """The earliest moment that a scheduled change waits for, or None."""
        query = select(func.min(ChangeRow.effective_at_us))
        return self._session.scalar(
            query.where(ChangeRow.state == "proposed", ChangeRow.stage == "scheduled")
        )

    def time_us(self) -> int:
        """The register's time; see ``Changes.time_us``."""
        return self._changes.time_us()

    def publish_due(self, most: int | None = None) -> list[ChangeRecord]:
        """Publishes the changes whose moment has come, each as an epoch of its own, in order of moments.

        Args:
            most: how many at the most; all with None.

        Returns:
            What became of each: ``approved`` with its epoch, or ``failed`` with the reason as comment.
        """
        # Taken before looking: who looks first publishes, and everybody else finds nothing left to do.
        Publisher(self._session, self._now_us).lock()
        query = (
            select(ChangeRow.id)
            .where(ChangeRow.state == "proposed", ChangeRow.stage == "scheduled")
            .where(ChangeRow.effective_at_us <= self._changes.time_us())
            .order_by(ChangeRow.effective_at_us, ChangeRow.id)
            .limit(most)
        )
        return [self._publish(change_id) for change_id in self._session.scalars(query).all()]

    def _publish(self, change_id: str) -> ChangeRecord:
        savepoint = self._session.begin_nested()
        try:
            self._changes.publish_scheduled(change_id)
        except ProductError as error:
            savepoint.rollback()
            self._changes.close(change_id, "failed", error.sentence, None)
            Audit(self._session, self._now_us).append(
                PLATFORM_ACTOR, "changes.fail", f"changes/{change_id}", {"code": error.code}
            )
        else:
            savepoint.commit()
        return self._changes.get(change_id, previewed=False)
