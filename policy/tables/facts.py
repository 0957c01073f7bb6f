# SPDX-License-Identifier: Apache-2.0
"""Rows of the facts that epochs froze, each with the epochs that it held for, and of what waits for one."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index
from sqlalchemy.orm import Mapped, mapped_column

from policy.tables.publication import PublicationRow
from tenants.accounts.isolation import SHARED
from tenants.accounts.schema import STRICT, Base

_EPOCH = PublicationRow.__table__.c.epoch


class PublishedFactRow(Base):
    """One fact as it was known from one epoch until another: recorded time, beside the fact's valid time.

    A fact that changes is closed, once, and written anew; so the facts of an epoch are the rows whose
    interval [``from_epoch``, ``until_epoch``) holds it.
    """

    __tablename__ = "published_facts"
    __isolation__ = SHARED
    __table_args__ = (
        CheckConstraint("until_epoch > from_epoch", name="interval"),
        Index("ix_published_facts_from_epoch", "from_epoch"),
        Index("ix_published_facts_until_epoch", "until_epoch"),
        STRICT,
    )

    kind: Mapped[str] = mapped_column(primary_key=True)
    identity: Mapped[str] = mapped_column(primary_key=True)
    from_epoch: Mapped[int] = mapped_column(ForeignKey(_EPOCH), primary_key=True, autoincrement=False)
    until_epoch: Mapped[int | None] = mapped_column(ForeignKey(_EPOCH))  # NULL: still so
    document: Mapped[str]


class UnpublishedRow(Base):
    """A row of the register was written since the last publication; written by triggers alone.

    The next publication takes these notes out and reads the rows that they name, and no others.
    """

    __tablename__ = "unpublished"
    __isolation__ = SHARED

    n: Mapped[int] = mapped_column(Identity(), primary_key=True)
    source: Mapped[str]
    identity: Mapped[str]
