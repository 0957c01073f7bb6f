# SPDX-License-Identifier: Apache-2.0
"""Rows of erasure: legal holds, requests with what became of every copy, and notifications to recipients."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from tenants.accounts.isolation import Isolation, owned
from tenants.accounts.schema import STRICT, Base
from tenants.accounts.tables import PrincipalRow, TenantRow

_TENANT = TenantRow.__table__.c.slug
_PRINCIPAL = PrincipalRow.__table__.c.id


class HoldEventRow(Base):
    """A legal hold was set on something, or lifted again."""

    __tablename__ = "legal_holds"
    __isolation__ = Isolation(readers=("tenant",))
    __table_args__ = (
        CheckConstraint("event IN ('set', 'lifted')", name="event"),
        CheckConstraint("subject_kind IN ('expert', 'dataset', 'tenant')", name="subject_kind"),
        Index("ix_legal_holds_subject_id", "subject_id"),
        STRICT,
    )

    hold_id: Mapped[str] = mapped_column(primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    event: Mapped[str]
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    subject_kind: Mapped[str]
    subject_id: Mapped[str]  # no foreign key: experts, datasets and tenants lie in three tables
    reason: Mapped[str]
    principal_id: Mapped[str] = mapped_column(ForeignKey(_PRINCIPAL))
    at_us: Mapped[int]


class ErasureRow(Base):
    """A request to erase, and where it stands."""

    __tablename__ = "erasures"
    __isolation__ = owned("tenant")
    __table_args__ = (
        CheckConstraint("subject_kind IN ('expert', 'dataset', 'personal_data')", name="subject_kind"),
        CheckConstraint("state IN ('requested', 'approved', 'completed', 'rejected')", name="state"),
        # Four eyes, whatever the code above does.
        CheckConstraint(
            "state = 'requested' OR state = 'rejected' OR "
            "(decided_by IS NOT NULL AND decided_by <> requested_by AND epoch IS NOT NULL)",
            name="four_eyes",
        ),
        CheckConstraint("(state = 'completed') = (record IS NOT NULL)", name="record"),
        Index("ix_erasures_subject_id", "subject_id"),
        STRICT,
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    subject_kind: Mapped[str]
    subject_id: Mapped[str]  # no foreign key, as in legal_holds
    reason: Mapped[str]
    requested_by: Mapped[str] = mapped_column(ForeignKey(_PRINCIPAL))
    requested_at_us: Mapped[int]
    state: Mapped[str]
    decided_by: Mapped[str | None] = mapped_column(ForeignKey(_PRINCIPAL))  # NULL: not decided
    decided_at_us: Mapped[int | None]  # NULL: not decided
    epoch: Mapped[int | None]  # NULL: nothing was published for it yet
    completed_at_us: Mapped[int | None]  # NULL: not everything is done
    record: Mapped[str | None]  # NULL: not everything is done; else the completion record, signed


class ErasureEventRow(Base):
    """Something that was found out about, or done to, one copy."""

    __tablename__ = "erasure_events"
    __isolation__ = owned("tenant")
    __table_args__ = (
        CheckConstraint("outcome IN ('planned', 'erased', 'absent', 'kept', 'named')", name="outcome"),
        STRICT,
    )

    erasure_id: Mapped[str] = mapped_column(ForeignKey("erasures.id"), primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    kind: Mapped[str]
    place: Mapped[str]
    outcome: Mapped[str]
    facts: Mapped[str]
    at_us: Mapped[int]


class NotificationRow(Base):
    """Something that a tenant has to know, and who of it has taken note."""

    __tablename__ = "notifications"
    __isolation__ = owned("tenant")
    __table_args__ = (
        CheckConstraint("(acknowledged_by IS NULL) = (acknowledged_at_us IS NULL)", name="acknowledged"),
        Index("ix_notifications_tenant", "tenant"),
        Index("ix_notifications_object", "object"),
        STRICT,
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    kind: Mapped[str]
    object: Mapped[str]
    body: Mapped[str]
    at_us: Mapped[int]
    acknowledged_by: Mapped[str | None] = mapped_column(ForeignKey(_PRINCIPAL))  # NULL: not yet
    acknowledged_at_us: Mapped[int | None]  # NULL: not yet
