# SPDX-License-Identifier: Apache-2.0
"""Rows of what is still to be told: one per epoch, written in the unit of work that publishes it."""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from policy.tables.publication import PublicationRow
from tenants.accounts.isolation import SHARED
from tenants.accounts.schema import STRICT, Base

_WAITS = text("delivered_at_us IS NULL")


class OutboxRow(Base):
    """An epoch, and when everybody who listens had been told of it."""

    __tablename__ = "outbox"
    __isolation__ = SHARED
    # Few rows wait and all others are done: the index is as long as what waits.
    __table_args__ = (
        Index("ix_outbox_waiting", "epoch", sqlite_where=_WAITS, postgresql_where=_WAITS),
        STRICT,
    )

    epoch: Mapped[int] = mapped_column(
        ForeignKey(PublicationRow.__table__.c.epoch), primary_key=True, autoincrement=False
    )
    document: Mapped[str]
    delivered_at_us: Mapped[int | None]  # NULL: not told yet
