# SPDX-License-Identifier: Apache-2.0
"""The books: transactions that sum to zero, statements that can be written again byte for byte.

Entries are stored before the row that closes them, and the database refuses that row unless they sum to zero.
Balances are never stored, they are sums. Knows nothing of how usage comes about.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from model_core.packing.canonical import canonical_bytes, digest_bytes
from model_core.packing.ids import new_id
from policy.billing import ledger
from policy.billing.statements import Statements
from policy.errors import InvalidUsage, NotFound
from policy.records.billing import Balance, BudgetRecord, EntryRecord, Statement
from policy.tables import (
    BudgetRow,
    LedgerAccountRow,
    LedgerEntryRow,
    LedgerTransactionRow,
    SettledBatchRow,
    SettlementRow,
    StatementRow,
    UsageBatchRow,
    UsageRecordRow,
    UsageShareRow,
)
from tenants.accounts.accounts import Accounts
from tenants.accounts.database import lock_for_writing
from tenants.accounts.schema import insert_new
from tenants.roles import PLATFORM_TENANT, Principal


class Ledger:
    """The ledger room, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us

    def book(
        self, idempotency_key: str, kind: str, charges: Sequence[tuple[str, ledger.Charge]]
    ) -> str | None:
        """Books charges as one transaction; nothing where they cost nothing.

        Args:
            idempotency_key: a second booking under it is refused by the database.
            kind: what the transaction is about.
            charges: each with the slug of the tenant that pays.

        Returns:
            The transaction's id.
        """
        found = ledger.entries(charges, PLATFORM_TENANT)
        if not found:
            return None
        accounts = [{"id": entry.account_id, "tenant": entry.tenant, "kind": entry.kind} for entry in found]
        self._open_accounts(accounts)
        transaction_id = new_id("txn")
        entries = [
            {
                "transaction_id": transaction_id,
                "n": n,
                "account_id": entry.account_id,
                "amount_micro": entry.amount_micro,
                "memo": idempotency_key,
            }
            for n, entry in enumerate(found)
        ]
        self._session.execute(insert(LedgerEntryRow), entries)
        transaction = {"id": transaction_id, "idempotency_key": idempotency_key, "kind": kind}
        self._session.execute(insert(LedgerTransactionRow), [{**transaction, "at_us": self._now_us}])
        return transaction_id

    def settle(self, principal: Principal) -> list[Statement]:
        """Writes statements over all usage that no earlier settlement covers.

        Returns:
            One statement per tenant that paid or earned, by slug; none when everything is settled.
        """
        lock_for_writing(self._session, "settlement")
        settled = select(SettledBatchRow.server_id).where(
            SettledBatchRow.server_id == UsageBatchRow.server_id,
            SettledBatchRow.sequence == UsageBatchRow.sequence,
        )
        query = select(UsageBatchRow.server_id, UsageBatchRow.sequence).where(~settled.exists())
        batches = list(self._session.execute(query.order_by(UsageBatchRow.server_id, UsageBatchRow.sequence)))
        if not batches:
            return []
        settlement_id = new_id("set")
        self._session.add(SettlementRow(id=settlement_id, principal_id=principal.id, at_us=self._now_us))
        self._session.flush()
        self._session.add_all(
            SettledBatchRow(server_id=server_id, sequence=sequence, settlement_id=settlement_id)
            for server_id, sequence in batches
        )
        self._session.flush()
        documents = self._documents(settlement_id)
        for tenant, document in sorted(documents.items()):
            data = canonical_bytes(document)
            self._session.add(
                StatementRow(
                    id=new_id("stm"),
                    settlement_id=settlement_id,
                    tenant=tenant,
                    document=data.decode(),
                    digest=digest_bytes(data),
                    at_us=self._now_us,
                )
            )
        self._session.flush()
        return self._statements(StatementRow.settlement_id == settlement_id)

    def statements(self, tenant: str | None = None) -> list[Statement]:
        """Statements, oldest first; of one tenant, or of all with None."""
        return self._statements(*([] if tenant is None else [StatementRow.tenant == tenant]))

    def statement(self, statement_id: str) -> Statement:
        """One statement.

        Raises:
            NotFound: there is none with this id.
        """
        found = self._statements(StatementRow.id == statement_id)
        if not found:
            raise NotFound("There is no such statement; list the statements.", id=statement_id)
        return found[0]

    def replay(self, statement_id: str) -> bytes:
        """Writes a statement anew from the metered usage behind it; equals ``document`` byte for byte.

        Raises:
            NotFound: there is no such statement.
        """
        statement = self.statement(statement_id)
        return canonical_bytes(self._documents(statement.settlement_id)[statement.tenant])

    def balances(self, tenant: str | None = None) -> list[Balance]:
        """Every account with its sum, by id. Over all accounts they sum to zero."""
        query = (
            select(
                LedgerAccountRow.id,
                LedgerAccountRow.tenant,
                LedgerAccountRow.kind,
                func.coalesce(func.sum(LedgerEntryRow.amount_micro), 0),
            )
            .join(LedgerEntryRow, LedgerEntryRow.account_id == LedgerAccountRow.id, isouter=True)
            .group_by(LedgerAccountRow.id, LedgerAccountRow.tenant, LedgerAccountRow.kind)
            .order_by(LedgerAccountRow.id)
        )
        if tenant is not None:
            query = query.where(LedgerAccountRow.tenant == tenant)
        return [
            Balance(account_id=account_id, tenant=whose, kind=kind, balance_micro=int(balance))
            for account_id, whose, kind, balance in self._session.execute(query)
        ]

    def entries(self, account_id: str | None = None, after: str = "", limit: int = 1000) -> list[EntryRecord]:
        """Entries in order of booking, after a transaction; of one account, or of all with None."""
        query = (
            select(LedgerEntryRow, LedgerTransactionRow)
            .join(LedgerTransactionRow, LedgerTransactionRow.id == LedgerEntryRow.transaction_id)
            .where(LedgerEntryRow.transaction_id > after)
            .order_by(LedgerEntryRow.transaction_id, LedgerEntryRow.n)
            .limit(limit)
        )
        if account_id is not None:
            query = query.where(LedgerEntryRow.account_id == account_id)
        return [
            EntryRecord(
                transaction_id=entry.transaction_id,
                n=entry.n,
                account_id=entry.account_id,
                amount_micro=entry.amount_micro,
                memo=entry.memo,
                kind=transaction.kind,
                at_us=transaction.at_us,
            )
            for entry, transaction in self._session.execute(query)
        ]

    def set_budget(self, tenant: str, limit_micro: int) -> BudgetRecord:
        """Sets what a tenant may spend in all; a limit below what is spent stops it at once.

        Raises:
            InvalidUsage: a negative limit.
            UnknownObject: no such tenant.
        """
        if limit_micro < 0:
            raise InvalidUsage("A budget is not negative.", limit_micro=limit_micro)
        Accounts(self._session, self._now_us).tenant(tenant)
        empty = {"tenant": tenant, "limit_micro": 0, "spent_micro": 0, "held_micro": 0}
        insert_new(self._session, BudgetRow, [empty])
        row = self._session.get_one(BudgetRow, tenant, with_for_update=True)
        row.limit_micro = limit_micro
        self._session.flush()
        return self.budget(tenant)

    def budget(self, tenant: str) -> BudgetRecord:
        """What a tenant may spend, has spent and has on hold."""
        row = self._session.get(BudgetRow, tenant)
        if row is None:
            return BudgetRecord(tenant=tenant, limit_micro=0, spent_micro=0, held_micro=0)
        return BudgetRecord(
            tenant=tenant,
            limit_micro=row.limit_micro,
            spent_micro=row.spent_micro,
            held_micro=row.held_micro,
        )

    def _open_accounts(self, accounts: list[dict[str, Any]]) -> None:
        known = set(
            self._session.scalars(
                select(LedgerAccountRow.id).where(LedgerAccountRow.id.in_([one["id"] for one in accounts]))
            )
        )
        missing = [one for one in accounts if one["id"] not in known]
        insert_new(self._session, LedgerAccountRow, missing)

    def _statements(self, *conditions: Any) -> list[Statement]:
        query = select(StatementRow).where(*conditions).order_by(StatementRow.at_us, StatementRow.id)
        return [_statement(row) for row in self._session.scalars(query)]

    def _documents(self, settlement_id: str) -> dict[str, dict[str, Any]]:
        """Statement documents of a settlement by tenant, from append-only rows alone."""
        settlement = self._session.get_one(SettlementRow, settlement_id)
        writer = Statements(settlement_id, settlement.at_us)
        record, share, batch = UsageRecordRow, UsageShareRow, SettledBatchRow
        in_batch = (batch.server_id == record.server_id) & (batch.sequence == record.sequence)
        key = (record.tenant, record.deployment)
        totals = (
            select(
                *key,
                func.sum(record.prompt_tokens),
                func.sum(record.completion_tokens),
                func.count(record.request_id.distinct()),
            )
            .join(batch, in_batch)
            .where(batch.settlement_id == settlement_id)
            .group_by(*key)
        )
        for tenant, deployment, prompt, completion, requests in self._session.execute(totals):
            writer.add_total(tenant, deployment, int(prompt), int(completion), int(requests))
        columns = (*key, share.bundle, share.owner, share.price_micro_per_1k_tokens)
        in_record = (
            (share.server_id == record.server_id)
            & (share.sequence == record.sequence)
            & (share.n == record.n)
        )
        lines = (
            select(
                *columns, func.sum(share.ppm_tokens), func.sum(share.amount_micro), func.sum(share.fee_micro)
            )
            .join(batch, in_batch)
            .join(share, in_record)
            .where(batch.settlement_id == settlement_id)
            .group_by(*columns)
        )
        for tenant, deployment, bundle, owner, price, ppm, amount, fee in self._session.execute(lines):
            line = {
                "deployment": deployment,
                "expert": bundle,
                "price_micro_per_1k_tokens": int(price),
                "ppm_tokens": int(ppm),
            }
            writer.add_line(tenant, owner, line, int(amount), int(fee))
        return writer.documents()


def _statement(row: StatementRow) -> Statement:
    document = json.loads(row.document)
    return Statement(
        id=row.id,
        settlement_id=row.settlement_id,
        tenant=row.tenant,
        at_us=row.at_us,
        digest=row.digest,
        document=row.document,
        charged_micro=document["charged_micro"],
        earned_micro=document["earned_micro"],
        net_micro=document["net_micro"],
    )
