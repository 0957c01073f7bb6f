# SPDX-License-Identifier: Apache-2.0
"""Rows of the workflow around changes: drafts, words of approval, stops, measured values, impact reports.

What is under review lies in ``changes`` and never changes there; whatever may still be edited lies here.
"""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from policy.tables.assets import ExpertRow
from policy.tables.publication import ChangeRow, PublicationRow
from tenants.accounts.isolation import PLATFORM_ONLY, owned, part_of
from tenants.accounts.schema import STRICT, Base
from tenants.accounts.tables import PrincipalRow, TenantRow

_TENANT = TenantRow.__table__.c.slug
_PRINCIPAL = PrincipalRow.__table__.c.id
_CHANGE = ChangeRow.__table__.c.id
_EPOCH = PublicationRow.__table__.c.epoch
_EXPERT = ExpertRow.__table__.c.expert_id


class DraftRow(Base):
    """A change that its author still writes; every edit gives it the next version and another digest."""

    __tablename__ = "change_drafts"
    __isolation__ = owned("tenant")
    __table_args__ = (
        CheckConstraint("state IN ('draft', 'submitted', 'withdrawn')", name="state"),
        CheckConstraint("version >= 1", name="version"),
        STRICT,
    )

    id: Mapped[str] = mapped_column(primary_key=True)  # the id that the change keeps under review
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    author_id: Mapped[str] = mapped_column(ForeignKey(_PRINCIPAL))
    author_name: Mapped[str]
    revises: Mapped[str | None] = mapped_column(ForeignKey(_CHANGE))  # NULL: begun anew
    created_at_us: Mapped[int]
    title: Mapped[str]
    items: Mapped[str]
    digest: Mapped[str]
    effective_at_us: Mapped[int | None]  # NULL: with its approval
    version: Mapped[int]
    state: Mapped[str]
    edited_at_us: Mapped[int]


class ApprovalRow(Base):
    """Somebody else's word for a change that is published later."""

    __tablename__ = "change_approvals"
    __isolation__ = part_of(ChangeRow, change_id="id")

    change_id: Mapped[str] = mapped_column(ForeignKey(_CHANGE), primary_key=True)
    digest: Mapped[str]
    principal_id: Mapped[str] = mapped_column(ForeignKey(_PRINCIPAL))
    principal_name: Mapped[str]
    at_us: Mapped[int]


class StopRow(Base):
    """An emergency stop: in force at once, by one person, and signed by a second one afterwards."""

    __tablename__ = "stops"
    __isolation__ = owned("tenant")
    __table_args__ = (
        CheckConstraint("kind IN ('expert', 'tenant', 'deployment', 'license', 'purpose')", name="kind"),
        CheckConstraint("signed_by IS NULL OR signed_by <> principal_id", name="four_eyes"),
        CheckConstraint("(signed_by IS NULL) = (signed_at_us IS NULL)", name="signature"),
        STRICT,
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    subject: Mapped[str]
    tenant: Mapped[str | None] = mapped_column(ForeignKey(_TENANT))  # NULL: nobody's own, as a purpose
    fact_id: Mapped[str]
    reason: Mapped[str]
    principal_id: Mapped[str] = mapped_column(ForeignKey(_PRINCIPAL))
    principal_name: Mapped[str]
    at_us: Mapped[int]
    epoch: Mapped[int] = mapped_column(ForeignKey(_EPOCH))
    second_signature_due_at_us: Mapped[int]
    signed_by: Mapped[str | None] = mapped_column(ForeignKey(_PRINCIPAL))  # NULL: not signed yet
    signed_at_us: Mapped[int | None]  # NULL: not signed yet


class EvaluationRow(Base):
    """What leaving one expert out costs a deployment, as somebody measured it."""

    __tablename__ = "expert_evaluations"
    __isolation__ = owned("tenant")
    __table_args__ = (Index("ix_expert_evaluations_expert_id", "expert_id"), STRICT)

    id: Mapped[str] = mapped_column(primary_key=True)
    expert_id: Mapped[str] = mapped_column(ForeignKey(_EXPERT))
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))  # of who measured
    deployment: Mapped[str]  # no foreign key: * stands for a measurement outside any deployment
    metric: Mapped[str]
    value_micro: Mapped[int]
    evidence_digest: Mapped[str]
    principal_id: Mapped[str] = mapped_column(ForeignKey(_PRINCIPAL))
    at_us: Mapped[int]


class ImpactReportRow(Base):
    """What a change would do, or what a publication did, in canonical bytes."""

    __tablename__ = "impact_reports"
    __isolation__ = PLATFORM_ONLY
    __table_args__ = (
        CheckConstraint("(change_id IS NULL) <> (epoch IS NULL)", name="subject"),
        Index("ix_impact_reports_change_id", "change_id"),
        Index("ix_impact_reports_epoch", "epoch"),
        STRICT,
    )

    digest: Mapped[str] = mapped_column(primary_key=True)
    change_id: Mapped[str | None] = mapped_column(ForeignKey(_CHANGE))  # NULL: of a publication
    change_digest: Mapped[str]
    epoch: Mapped[int | None] = mapped_column(ForeignKey(_EPOCH))  # NULL: of a change
    epoch_base: Mapped[int]
    at_us: Mapped[int]
    document: Mapped[str]
