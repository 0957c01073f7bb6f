# SPDX-License-Identifier: Apache-2.0
"""Rows of who may what: consents and their history, grants and rules."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from tenants.accounts.isolation import SHARED, owned, part_of
from tenants.accounts.schema import STRICT, Base
from tenants.accounts.tables import DatasetRow, PrincipalRow, TenantRow

# Keys point down to the account rooms; taken from the classes, so that those tables are declared first.
_TENANT = TenantRow.__table__.c.slug
_PRINCIPAL = PrincipalRow.__table__.c.id
_DATASET = DatasetRow.__table__.c.id


class ConsentRow(Base):
    """An owner's word; its history is in ``consent_events``."""

    __tablename__ = "consents"
    __isolation__ = owned("tenant")
    __table_args__ = (
        CheckConstraint("effect IN ('permit', 'forbid')", name="effect"),
        CheckConstraint("commercial IN (0, 1)", name="commercial"),
        CheckConstraint("state IN ('given', 'withdrawn')", name="state"),
        Index("ix_consents_expert_id", "expert_id"),
        STRICT,
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    expert_id: Mapped[str]  # no foreign key here and in rules: * stands for every expert
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey(_DATASET))  # NULL: speaks of experts
    effect: Mapped[str]
    action: Mapped[str]
    purpose: Mapped[str]
    region: Mapped[str]
    recipient: Mapped[str]
    commercial: Mapped[int]
    valid_from_us: Mapped[int]
    valid_until_us: Mapped[int | None]  # NULL: until withdrawn
    state: Mapped[str]
    at_us: Mapped[int]


class ConsentEventRow(Base):
    """What happened to a consent."""

    __tablename__ = "consent_events"
    __isolation__ = part_of(ConsentRow, consent_id="id")
    __table_args__ = (
        UniqueConstraint("consent_id", "event"),
        CheckConstraint("event IN ('given', 'withdrawn')", name="event"),
        STRICT,
    )

    consent_id: Mapped[str] = mapped_column(ForeignKey("consents.id"), primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    event: Mapped[str]
    at_us: Mapped[int]
    epoch: Mapped[int]
    principal_id: Mapped[str] = mapped_column(ForeignKey(_PRINCIPAL))


class GrantRow(Base):
    """One consumer's access to an expert."""

    __tablename__ = "grants"
    __isolation__ = owned("tenant", readers=("consumer_tenant",), open_where={"consumer_tenant": "*"})
    __table_args__ = (
        CheckConstraint("commercial IN (0, 1)", name="commercial"),
        CheckConstraint("state IN ('given', 'revoked')", name="state"),
        Index("ix_grants_expert_id", "expert_id"),
        STRICT,
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    expert_id: Mapped[str] = mapped_column(ForeignKey("experts.expert_id"))
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    consumer_tenant: Mapped[str]
    action: Mapped[str]
    purpose: Mapped[str]
    region: Mapped[str]
    commercial: Mapped[int]
    valid_from_us: Mapped[int]
    valid_until_us: Mapped[int | None]  # NULL: until revoked
    state: Mapped[str]
    at_us: Mapped[int]


class RuleRow(Base):
    """What compliance staff wrote."""

    __tablename__ = "rules"
    __isolation__ = SHARED
    __table_args__ = (
        CheckConstraint("effect IN ('permit', 'forbid')", name="effect"),
        CheckConstraint("state IN ('live', 'removed')", name="state"),
        STRICT,
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    effect: Mapped[str]
    action: Mapped[str]
    purpose: Mapped[str]
    region: Mapped[str]
    expert_id: Mapped[str]
    consumer_tenant: Mapped[str]
    text: Mapped[str]
    state: Mapped[str]
    at_us: Mapped[int]
