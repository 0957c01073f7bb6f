# SPDX-License-Identifier: Apache-2.0
"""Rows of the decision log."""

from __future__ import annotations

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from tenants.accounts.isolation import owned, part_of
from tenants.accounts.schema import STRICT, Base


class DecisionRow(Base):
    """One answered question; the same question within an epoch is one row."""

    __tablename__ = "decisions"
    __isolation__ = owned("consumer_tenant")
    __table_args__ = (UniqueConstraint("epoch", "input_digest", "output_digest"), STRICT)

    id: Mapped[str] = mapped_column(primary_key=True)
    epoch: Mapped[int] = mapped_column(ForeignKey("publications.epoch"))
    deployment: Mapped[str]
    consumer_tenant: Mapped[str]
    question: Mapped[str]
    input_digest: Mapped[str]
    answer: Mapped[str]
    output_digest: Mapped[str]
    engine_version: Mapped[str]
    at_us: Mapped[int]


class DecisionVerdictRow(Base):
    """What a decision says of one expert."""

    __tablename__ = "decision_verdicts"
    __isolation__ = part_of(DecisionRow, decision_id="id")

    decision_id: Mapped[str] = mapped_column(ForeignKey("decisions.id"), primary_key=True)
    expert_id: Mapped[str] = mapped_column(primary_key=True)
    verdict: Mapped[str]
    outcome: Mapped[str]
    code: Mapped[str]
