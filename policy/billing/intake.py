# SPDX-License-Identifier: Apache-2.0
"""Takes the records of one batch of usage: checks, prices, stores and charges them.

What a batch needs is read once, by a handful of queries, and what it leaves is written at once, however many
records it holds: batches wait for each other, and publications for them. Knows no journals and no batches
before this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from policy.billing import ledger
from policy.errors import InvalidUsage, OverReservation, UnknownReservation
from policy.records.billing import UsageRecord
from policy.records.record import PUBLIC
from policy.tables import (
    BudgetRow,
    ExpertRow,
    ListingRow,
    ReservationRow,
    UsageRecordRow,
    UsageShareRow,
)
from tenants.accounts.schema import insert_new
from tenants.roles import PLATFORM_TENANT


class Intake:
    """One batch, within one unit of work.

    Args:
        session: the unit of work.
        now_us: its time.
        records: in journal order.
    """

    def __init__(self, session: Session, now_us: int, records: Sequence[UsageRecord]) -> None:
        self._session = session
        self._now_us = now_us
        self._records = records
        self._requests = self._locked_requests()
        self._budgets = self._locked_budgets()
        self._owners, self._prices = self._read_experts()

    def take(self, server_id: str, sequence: int, current_epoch: int) -> list[tuple[str, ledger.Charge]]:
        """Stores every record and charges its tenant.

        Args:
            server_id: whose batch.
            sequence: its number.
            current_epoch: no record may be of a later one.

        Returns:
            Charges to book, each with the slug of the tenant that pays.

        Raises:
            UnknownReservation: a record's request was never admitted.
            OverReservation: more tokens than were reserved.
            InvalidUsage: a record contradicts itself or the register.
        """
        stored: list[dict[str, Any]] = []
        parts: list[dict[str, Any]] = []
        booked: list[tuple[str, ledger.Charge]] = []
        for n, record in enumerate(self._records):
            row = self._requests.get(record.request_id)
            if row is None:
                raise UnknownReservation("No such request was admitted.", request_id=record.request_id)
            _check_record(record, row, current_epoch)
            place: dict[str, Any] = {"server_id": server_id, "sequence": sequence, "n": n}
            fields = record.model_dump(exclude={"experts", "final"})
            stored.append({**place, **fields, "tenant": row.tenant, "final": int(record.final)})
            shares = [self._share(bundle, ppm, record.epoch, row) for bundle, ppm in record.experts.items()]
            charges, row.remainder = ledger.price(shares, row.remainder)
            parts += [{**place, **_columns(charge)} for charge in charges]
            self._charge(row, record, sum(charge.amount_micro for charge in charges))
            booked += [(row.tenant, charge) for charge in charges]
        if stored:
            self._session.execute(insert(UsageRecordRow), stored)
        if parts:
            self._session.execute(insert(UsageShareRow), parts)
        self._session.flush()
        return booked

    def _locked_requests(self) -> dict[str, ReservationRow]:
        ids = sorted({record.request_id for record in self._records})
        query = select(ReservationRow).where(ReservationRow.request_id.in_(ids))
        rows = self._session.scalars(query.order_by(ReservationRow.request_id).with_for_update())
        return {row.request_id: row for row in rows}

    def _locked_budgets(self) -> dict[str, BudgetRow]:
        # In one order, so that two batches never deadlock.
        tenants = sorted({row.tenant for row in self._requests.values()})
        query = select(BudgetRow).where(BudgetRow.tenant.in_(tenants)).order_by(BudgetRow.tenant)
        fresh = query.with_for_update().execution_options(populate_existing=True)
        rows = self._session.scalars(fresh)
        found = {row.tenant: row for row in rows}
        return found | {tenant: budget_of(self._session, tenant) for tenant in tenants if tenant not in found}

    def _read_experts(self) -> tuple[dict[str, tuple[str, str]], dict[str, list[tuple[int, int]]]]:
        """Expert id and owner by bundle, and by expert id its prices with their epochs, newest first."""
        bundles = {bundle for record in self._records for bundle in record.experts} - {PUBLIC}
        if not bundles:
            return {}, {}
        experts = select(
            ExpertRow.bundle_digest,
            ExpertRow.expert_id,
            ExpertRow.tenant,
            ListingRow.epoch,
            ListingRow.price_micro_per_1k_tokens,
        )
        listed = experts.outerjoin(ListingRow, ListingRow.expert_id == ExpertRow.expert_id)
        query = listed.where(ExpertRow.bundle_digest.in_(sorted(bundles))).order_by(ListingRow.epoch.desc())
        owners: dict[str, tuple[str, str]] = {}
        prices: dict[str, list[tuple[int, int]]] = {}
        for bundle, expert_id, tenant, epoch, price in self._session.execute(query):
            owners[bundle] = (expert_id, tenant)
            if epoch is not None:
                prices.setdefault(expert_id, []).append((epoch, price))
        return owners, prices

    def _share(self, bundle: str, ppm_tokens: int, epoch: int, row: ReservationRow) -> ledger.Share:
        if bundle == PUBLIC:
            return ledger.Share(
                bundle=PUBLIC, owner=PLATFORM_TENANT, ppm_tokens=ppm_tokens, price_micro_per_1k_tokens=0
            )
        if bundle not in self._owners:
            raise InvalidUsage("A record names an expert that the register does not hold.", bundle=bundle)
        expert_id, owner = self._owners[bundle]
        listed = (price for since, price in self._prices.get(expert_id, ()) if since <= epoch)
        return ledger.Share(
            bundle=bundle,
            owner=owner,
            ppm_tokens=ppm_tokens,
            # Never above what was held: a request costs at most what its admission said.
            price_micro_per_1k_tokens=min(next(listed, 0), row.price_ceiling_micro_per_1k),
        )

    def _charge(self, row: ReservationRow, record: UsageRecord, amount: int) -> None:
        row.used_tokens += record.completion_tokens
        budget = self._budgets[row.tenant]
        budget.spent_micro += amount
        if row.state == "held":
            still = ledger.hold_micro(row.max_tokens - row.used_tokens, row.price_ceiling_micro_per_1k)
            budget.held_micro += still - row.held_micro
            row.held_micro = still
            if record.final:
                free(row, budget, "closed", self._now_us)


def budget_of(session: Session, tenant: str) -> BudgetRow:
    """A tenant's budget, locked; it is opened without money where there is none."""
    row = session.get(BudgetRow, tenant, with_for_update=True)
    if row is None:
        empty = {"tenant": tenant, "limit_micro": 0, "spent_micro": 0, "held_micro": 0}
        insert_new(session, BudgetRow, [empty])
        row = session.get_one(BudgetRow, tenant, with_for_update=True)
    return row


def free(row: ReservationRow, budget: BudgetRow, state: str, now_us: int) -> None:
    """Ends a reservation and gives its hold back."""
    budget.held_micro -= row.held_micro
    row.held_micro, row.state, row.closed_at_us = 0, state, now_us


def _columns(charge: ledger.Charge) -> dict[str, Any]:
    return {
        "bundle": charge.share.bundle,
        "owner": charge.share.owner,
        "ppm_tokens": charge.share.ppm_tokens,
        "price_micro_per_1k_tokens": charge.share.price_micro_per_1k_tokens,
        "amount_micro": charge.amount_micro,
        "fee_micro": charge.fee_micro,
    }


def _check_record(record: UsageRecord, row: ReservationRow, current_epoch: int) -> None:
    facts = {"request_id": record.request_id}
    if record.deployment != row.deployment or not row.epoch <= record.epoch <= current_epoch:
        raise InvalidUsage("A record names another deployment or epoch than its request.", **facts)
    whole = record.completion_tokens * ledger.PPM
    if any(ppm < 0 for ppm in record.experts.values()) or sum(record.experts.values()) != whole:
        raise InvalidUsage("The experts' parts of a record do not add up to its tokens.", **facts)
    if row.used_tokens + record.completion_tokens > row.max_tokens:
        raise OverReservation("A request has more tokens than were reserved for it.", **facts)
