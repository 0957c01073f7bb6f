# SPDX-License-Identifier: Apache-2.0
"""Rows of the metering: reservations, usage and budgets."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from tenants.accounts.isolation import owned
from tenants.accounts.schema import STRICT, Base
from tenants.accounts.tables import PrincipalRow, TenantRow

# Keys point down to the account rooms; taken from the classes, so that those tables are declared first.
_TENANT = TenantRow.__table__.c.slug
_PRINCIPAL = PrincipalRow.__table__.c.id


class ReservationRow(Base):
    """A budget hold for one request; its terms never change."""

    __tablename__ = "reservations"
    __isolation__ = owned("tenant")
    __table_args__ = (
        CheckConstraint("state IN ('held', 'closed', 'released')", name="state"),
        CheckConstraint("used_tokens >= 0 AND used_tokens <= max_tokens", name="used_tokens"),
        Index("ix_reservations_state", "state", "created_at_us"),
        STRICT,
    )

    request_id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    principal_id: Mapped[str] = mapped_column(ForeignKey(_PRINCIPAL))
    # Empty for requests of before the column; no foreign key, for SQLite adds none to a table that is there.
    key_id: Mapped[str] = mapped_column(server_default="")
    deployment: Mapped[str]
    epoch: Mapped[int] = mapped_column(ForeignKey("publications.epoch"))
    composition_digest: Mapped[str]
    max_tokens: Mapped[int]
    price_ceiling_micro_per_1k: Mapped[int]
    held_micro: Mapped[int]
    used_tokens: Mapped[int]
    remainder: Mapped[int]
    state: Mapped[str]
    created_at_us: Mapped[int]
    closed_at_us: Mapped[int | None]  # NULL: still held


class UsageBatchRow(Base):
    """One upload of a server's journal; sequences of a server have no gaps."""

    __tablename__ = "usage_batches"

    server_id: Mapped[str] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    payload_digest: Mapped[str]
    at_us: Mapped[int]


class UsageRecordRow(Base):
    """Metered tokens of one chunk of one request."""

    __tablename__ = "usage_records"
    __isolation__ = owned("tenant")
    __table_args__ = (
        Index("ix_usage_records_tenant", "tenant", "at_us"),
        Index("ix_usage_records_request_id", "request_id"),
        ForeignKeyConstraint(
            ["server_id", "sequence"], ["usage_batches.server_id", "usage_batches.sequence"]
        ),
        STRICT,
    )

    server_id: Mapped[str] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    n: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    request_id: Mapped[str] = mapped_column(ForeignKey("reservations.request_id"))
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    deployment: Mapped[str]
    epoch: Mapped[int] = mapped_column(ForeignKey("publications.epoch"))
    composition_digest: Mapped[str]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    at_us: Mapped[int]
    final: Mapped[int]


class UsageShareRow(Base):
    """How much of a record's tokens an expert computed, in millionths of a token, and what that costs."""

    __tablename__ = "usage_shares"
    __isolation__ = owned("owner")
    __table_args__ = (
        ForeignKeyConstraint(
            ["server_id", "sequence", "n"],
            ["usage_records.server_id", "usage_records.sequence", "usage_records.n"],
        ),
        CheckConstraint("ppm_tokens >= 0", name="ppm_tokens"),
        STRICT,
    )

    server_id: Mapped[str] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    n: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    bundle: Mapped[str] = mapped_column(primary_key=True)  # no foreign key: "public" is no expert
    owner: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    ppm_tokens: Mapped[int]
    price_micro_per_1k_tokens: Mapped[int]
    amount_micro: Mapped[int]
    fee_micro: Mapped[int]


class BudgetRow(Base):
    """What a tenant may spend, has spent and has on hold; the last two are sums, kept for speed."""

    __tablename__ = "budgets"
    __isolation__ = owned("tenant")
    __table_args__ = (
        CheckConstraint("limit_micro >= 0 AND spent_micro >= 0 AND held_micro >= 0", name="signs"),
        STRICT,
    )

    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT), primary_key=True)
    limit_micro: Mapped[int]
    spent_micro: Mapped[int]
    held_micro: Mapped[int]
