# SPDX-License-Identifier: Apache-2.0
"""Rows of the double-entry ledger and of settling."""

from __future__ import annotations

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from tenants.accounts.isolation import SHARED, owned, part_of
from tenants.accounts.schema import STRICT, Base
from tenants.accounts.tables import PrincipalRow, TenantRow

# Keys point down to the account rooms; taken from the classes, so that those tables are declared first.
_TENANT = TenantRow.__table__.c.slug
_PRINCIPAL = PrincipalRow.__table__.c.id


class LedgerAccountRow(Base):
    """An account of the double-entry ledger."""

    __tablename__ = "ledger_accounts"
    __isolation__ = owned("tenant")

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    kind: Mapped[str]


class LedgerTransactionRow(Base):
    """Closes a group of entries, which must sum to zero; written after them."""

    __tablename__ = "ledger_transactions"
    __isolation__ = SHARED  # what it is about stands in its entries
    __table_args__ = (UniqueConstraint("idempotency_key"), STRICT)

    id: Mapped[str] = mapped_column(primary_key=True)
    idempotency_key: Mapped[str]
    kind: Mapped[str]
    at_us: Mapped[int]


class LedgerEntryRow(Base):
    """One amount on one account; positive is owed to the account's tenant."""

    __tablename__ = "ledger_entries"
    __isolation__ = part_of(LedgerAccountRow, account_id="id")
    __table_args__ = (Index("ix_ledger_entries_account_id", "account_id"), STRICT)

    transaction_id: Mapped[str] = mapped_column(
        # Deferred: entries come first, and the row that closes them is refused unless they sum to zero.
        ForeignKey("ledger_transactions.id", deferrable=True, initially="DEFERRED"),
        primary_key=True,
    )
    n: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    account_id: Mapped[str] = mapped_column(ForeignKey("ledger_accounts.id"))
    amount_micro: Mapped[int]
    memo: Mapped[str]


class SettlementRow(Base):
    """One act of settling."""

    __tablename__ = "settlements"

    id: Mapped[str] = mapped_column(primary_key=True)
    principal_id: Mapped[str] = mapped_column(ForeignKey(_PRINCIPAL))
    at_us: Mapped[int]


class SettledBatchRow(Base):
    """A usage batch belongs to exactly one settlement."""

    __tablename__ = "settled_batches"
    __table_args__ = (
        ForeignKeyConstraint(
            ["server_id", "sequence"], ["usage_batches.server_id", "usage_batches.sequence"]
        ),
        STRICT,
    )

    server_id: Mapped[str] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    settlement_id: Mapped[str] = mapped_column(ForeignKey("settlements.id"), index=True)


class StatementRow(Base):
    """What a tenant owes and is owed by one settlement, in canonical bytes."""

    __tablename__ = "statements"
    __isolation__ = owned("tenant")
    __table_args__ = (UniqueConstraint("settlement_id", "tenant"), STRICT)

    id: Mapped[str] = mapped_column(primary_key=True)
    settlement_id: Mapped[str] = mapped_column(ForeignKey("settlements.id"))
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    document: Mapped[str]
    digest: Mapped[str]
    at_us: Mapped[int]
