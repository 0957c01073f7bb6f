# SPDX-License-Identifier: Apache-2.0
"""The outbox: what is still to be told of publications, written with them and never lost.

A row comes with the epoch, in one unit of work, so there is neither an epoch that nobody will hear of nor
news of one that was never published. Whoever tells (``cluster.office.announcer``) reads what waits in order,
tells it, and only then marks it: a crash in between tells it again, never not at all. Hosts do not wait for
any of this; they ask for the newest epoch and are woken by the commit itself. Knows nobody who listens.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from model_core.packing.canonical import canonical_bytes
from policy.records.epochs import Announcement, Publication
from policy.tables import OutboxRow


class Outbox:
    """The outbox, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us

    def put(self, publication: Publication) -> None:
        """Leaves word of an epoch that this unit of work publishes."""
        fields = {name: getattr(publication, name) for name in Announcement.model_fields}
        document = canonical_bytes(Announcement(**fields).model_dump(mode="json"))
        self._session.add(
            OutboxRow(epoch=publication.epoch, document=document.decode(), delivered_at_us=None)
        )
        self._session.flush()

    def waiting(self, limit: int = 100) -> list[Announcement]:
        """What nobody was told yet, lowest epoch first."""
        query = select(OutboxRow.document).where(OutboxRow.delivered_at_us.is_(None))
        rows = self._session.scalars(query.order_by(OutboxRow.epoch).limit(limit))
        return [Announcement.model_validate_json(document) for document in rows]

    def mark(self, epochs: Sequence[int]) -> None:
        """Notes that everybody who listens was told; of one that was marked before nothing changes."""
        row = OutboxRow
        marking = update(row).where(row.epoch.in_(epochs), row.delivered_at_us.is_(None))
        self._session.execute(
            marking.values(delivered_at_us=self._now_us).execution_options(synchronize_session=False)
        )
