# SPDX-License-Identifier: Apache-2.0
"""Metering: budget holds before a token is made, usage exactly once afterwards.

Usage is priced and booked in the very unit of work that stores it, not at settlement: so a tenant's spending
is always exact, a hold is freed by precisely what became a charge, and no crash can part tokens from money.
Settlement later only sums up what is booked.

A server uploads its journal in batches numbered 1, 2, 3, …; a batch that arrives again is recognised, a gap
is refused. Knows nothing of how tokens are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from model_core.packing.canonical import canonical_bytes, digest_bytes
from model_core.packing.ids import new_id
from policy import ledger
from policy.accounts_ledger import Ledger
from policy.composition import compose
from policy.errors import (
    BudgetExceeded,
    InvalidUsage,
    OverReservation,
    PayloadMismatch,
    SequenceGap,
    UnknownDeployment,
    UnknownReservation,
)
from policy.publication import Publisher
from policy.questions import Question
from policy.records import PUBLIC, Reservation, UsageRecord, UsageRow, UsageTotal
from policy.tables import (
    BudgetRow,
    ExpertRow,
    ListingRow,
    ReservationRow,
    UsageBatchRow,
    UsageRecordRow,
    UsageShareRow,
)
from tenants.accounts.database import lock_for_writing
from tenants.accounts.schema import insert_new
from tenants.roles import PLATFORM_TENANT, Principal


class Metering:
    """The metering room, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us
        self._publisher = Publisher(session, now_us)

    def reserve(self, principal: Principal, deployment: str, max_tokens: int) -> Reservation:
        """Holds budget for a request before any of its tokens is made.

        The hold assumes that the dearest member computes every token; a price that rises while the request
        runs does not raise what it costs.

        Args:
            principal: who asks; the deployment must be its tenant's.
            deployment: which endpoint.
            max_tokens: the most completion tokens of all answers together.

        Raises:
            UnknownDeployment: no such deployment, or another tenant's.
            BudgetExceeded: limit less spending and other holds does not cover the hold.
            InvalidUsage: no tokens are asked for.
        """
        if max_tokens < 1:
            raise InvalidUsage("A request needs at least one token; raise max_tokens.", max_tokens=max_tokens)
        snapshot = self._publisher.snapshot()
        fact = snapshot.deployments_by_name.get(deployment)
        if fact is None or fact.tenant != principal.tenant:
            raise UnknownDeployment("There is no such deployment; list the models.", deployment=deployment)
        composition = compose(snapshot, Question(at_us=self._now_us, deployment=deployment))
        ceiling = max((member.price_micro_per_1k_tokens for member in composition.members), default=0)
        held = ledger.hold_micro(max_tokens, ceiling)
        if held:  # free answers need no budget
            self._hold(principal.tenant, held)
        row = ReservationRow(
            request_id=new_id("req"),
            tenant=principal.tenant,
            principal_id=principal.id,
            key_id=principal.key_id,
            deployment=deployment,
            epoch=snapshot.epoch,
            composition_digest=composition.digest,
            max_tokens=max_tokens,
            price_ceiling_micro_per_1k=ceiling,
            held_micro=held,
            used_tokens=0,
            remainder=0,
            state="held",
            created_at_us=self._now_us,
            closed_at_us=None,
        )
        self._session.add(row)
        self._session.flush()
        return Reservation(
            request_id=row.request_id,
            deployment=deployment,
            tenant=principal.tenant,
            principal_id=principal.id,
            base_digest=fact.base_digest,
            epoch=snapshot.epoch,
            composition_digest=composition.digest,
            max_tokens=max_tokens,
            price_ceiling_micro_per_1k=ceiling,
            held_micro=held,
            created_at_us=self._now_us,
        )

    def record(self, server_id: str, sequence: int, records: Sequence[UsageRecord]) -> int:
        """Takes one batch of a server's journal, exactly once.

        Args:
            server_id: the journal's owner; a journal that starts anew needs a new id.
            sequence: number of the batch, from 1 without gaps.
            records: in journal order.

        Returns:
            The highest sequence number accepted from this server.

        Raises:
            PayloadMismatch: this number came before with other records; nothing changed.
            SequenceGap: an earlier batch is missing (``facts["expected"]``); nothing changed.
            UnknownReservation: a record's request was never admitted.
            OverReservation: more tokens than were reserved.
            InvalidUsage: a record contradicts itself or the register.
        """
        lock_for_writing(self._session, f"usage:{server_id}")
        payload = digest_bytes(canonical_bytes([record.model_dump(mode="json") for record in records]))
        last = self.accepted(server_id)
        known = self._session.get(UsageBatchRow, (server_id, sequence))
        if known is not None:
            if known.payload_digest != payload:
                raise PayloadMismatch(
                    "This batch was uploaded before with other records; keep the journal and raise an alarm.",
                    server_id=server_id,
                    sequence=sequence,
                )
            return last
        if sequence != last + 1:
            raise SequenceGap(
                f"The next batch of this server is {last + 1}; upload it first.",
                server_id=server_id,
                sequence=sequence,
                expected=last + 1,
            )
        self._session.add(
            UsageBatchRow(server_id=server_id, sequence=sequence, payload_digest=payload, at_us=self._now_us)
        )
        self._session.flush()
        self._lock_rows(records)
        current_epoch = self._publisher.current_epoch()
        charges: list[tuple[str, ledger.Charge]] = []
        for n, record in enumerate(records):
            charges += self._take(server_id, sequence, n, record, current_epoch)
        Ledger(self._session, self._now_us).book(f"usage:{server_id}:{sequence}", "usage", charges)
        return sequence

    def accepted(self, server_id: str) -> int:
        """The highest sequence number accepted from a server; 0 before the first."""
        query = select(func.max(UsageBatchRow.sequence)).where(UsageBatchRow.server_id == server_id)
        return self._session.scalar(query) or 0

    def release(self, request_id: str) -> None:
        """Frees what a request still holds, when it is known that nothing more of it will be made."""
        row = self._session.get(ReservationRow, request_id, with_for_update=True)
        if row is None:
            raise UnknownReservation("No such request was admitted.", request_id=request_id)
        if row.state == "held":
            self._free(row, "released")

    def release_expired(self, before_us: int) -> list[str]:
        """Frees the holds of requests admitted before a moment that never reported their end.

        Usage that is uploaded for them later (a server was down for long) is still booked: tokens that were
        made are never lost. So choose the moment earlier than any server could still be generating.

        Returns:
            The requests whose holds were freed.
        """
        query = select(ReservationRow).where(
            ReservationRow.state == "held", ReservationRow.created_at_us < before_us
        )
        rows = list(self._session.scalars(query.order_by(ReservationRow.request_id).with_for_update()))
        for tenant in sorted({row.tenant for row in rows}):
            self._budget(tenant)  # in one order, so that two units of work never deadlock
        for row in rows:
            self._free(row, "released")
        return [row.request_id for row in rows]

    def usage(
        self,
        tenant: str | None = None,
        since_us: int = 0,
        until_us: int | None = None,
        owner: str | None = None,
    ) -> list[UsageRow]:
        """Tokens and money by deployment and expert, in [since, until).

        Args:
            tenant: of one consumer, or of all with None.
            since_us: from here on.
            until_us: up to here; None for no end.
            owner: computed by one tenant's experts, or by all with None.
        """
        record, share = UsageRecordRow, UsageShareRow
        key = (record.tenant, record.deployment, share.bundle, share.owner)
        query = (
            select(*key, func.sum(share.ppm_tokens), func.sum(share.amount_micro), func.sum(share.fee_micro))
            .join(
                share,
                (share.server_id == record.server_id)
                & (share.sequence == record.sequence)
                & (share.n == record.n),
            )
            .where(*_within(tenant, since_us, until_us))
            .group_by(*key)
            .order_by(*key)
        )
        if owner is not None:
            query = query.where(share.owner == owner)
        experts = {row.bundle_digest: row for row in self._session.scalars(select(ExpertRow))}
        rows = []
        for consumer, deployment, bundle, whose, ppm, amount, fee in self._session.execute(query):
            expert = experts.get(bundle)
            rows.append(
                UsageRow(
                    tenant=consumer,
                    deployment=deployment,
                    bundle=bundle,
                    expert_id=None if expert is None else expert.expert_id,
                    expert_name=bundle if expert is None else expert.name,
                    owner=whose,
                    ppm_tokens=int(ppm),
                    amount_micro=int(amount),
                    fee_micro=int(fee),
                )
            )
        return rows

    def totals(
        self, tenant: str | None = None, since_us: int = 0, until_us: int | None = None
    ) -> list[UsageTotal]:
        """Tokens and requests by deployment, in [since, until)."""
        record = UsageRecordRow
        key = (record.tenant, record.deployment)
        query = (
            select(
                *key,
                func.sum(record.prompt_tokens),
                func.sum(record.completion_tokens),
                func.count(record.request_id.distinct()),
            )
            .where(*_within(tenant, since_us, until_us))
            .group_by(*key)
            .order_by(*key)
        )
        return [
            UsageTotal(
                tenant=consumer,
                deployment=deployment,
                prompt_tokens=int(prompt),
                completion_tokens=int(completion),
                requests=int(requests),
            )
            for consumer, deployment, prompt, completion, requests in self._session.execute(query)
        ]

    def _hold(self, tenant: str, held: int) -> None:
        row = self._budget(tenant)
        available = row.limit_micro - row.spent_micro - row.held_micro
        if held > available:
            raise BudgetExceeded(
                "The tenant's budget does not cover this request; lower max_tokens or have it raised.",
                tenant=tenant,
                needed_micro=held,
                available_micro=max(available, 0),
            )
        row.held_micro += held

    def _budget(self, tenant: str) -> BudgetRow:
        empty = {"tenant": tenant, "limit_micro": 0, "spent_micro": 0, "held_micro": 0}
        row = self._session.get(BudgetRow, tenant, with_for_update=True)
        if row is None:
            insert_new(self._session, BudgetRow, [empty])
            row = self._session.get_one(BudgetRow, tenant, with_for_update=True)
        return row

    def _lock_rows(self, records: Sequence[UsageRecord]) -> None:
        """Locks the requests and budgets of a batch in one order, so that two batches never deadlock."""
        ids = {record.request_id for record in records}
        query = select(ReservationRow).where(ReservationRow.request_id.in_(ids))
        rows = self._session.scalars(query.order_by(ReservationRow.request_id).with_for_update())
        for tenant in sorted({row.tenant for row in rows}):
            self._budget(tenant)

    def _take(
        self, server_id: str, sequence: int, n: int, record: UsageRecord, current_epoch: int
    ) -> list[tuple[str, ledger.Charge]]:
        row = self._session.get(ReservationRow, record.request_id)
        if row is None:
            raise UnknownReservation("No such request was admitted.", request_id=record.request_id)
        _check_record(record, row, current_epoch)
        place: dict[str, Any] = {"server_id": server_id, "sequence": sequence, "n": n}
        self._session.add(
            UsageRecordRow(
                **place,
                **record.model_dump(exclude={"experts", "final"}),
                tenant=row.tenant,
                final=int(record.final),
            )
        )
        self._session.flush()
        shares = [self._share(bundle, ppm, record.epoch, row) for bundle, ppm in record.experts.items()]
        charges, row.remainder = ledger.price(shares, row.remainder)
        for charge in charges:
            self._session.add(
                UsageShareRow(
                    **place,
                    bundle=charge.share.bundle,
                    owner=charge.share.owner,
                    ppm_tokens=charge.share.ppm_tokens,
                    price_micro_per_1k_tokens=charge.share.price_micro_per_1k_tokens,
                    amount_micro=charge.amount_micro,
                    fee_micro=charge.fee_micro,
                )
            )
        self._charge(row, record, sum(charge.amount_micro for charge in charges))
        return [(row.tenant, charge) for charge in charges]

    def _share(self, bundle: str, ppm_tokens: int, epoch: int, row: ReservationRow) -> ledger.Share:
        if bundle == PUBLIC:
            return ledger.Share(
                bundle=PUBLIC, owner=PLATFORM_TENANT, ppm_tokens=ppm_tokens, price_micro_per_1k_tokens=0
            )
        expert = self._session.scalar(select(ExpertRow).where(ExpertRow.bundle_digest == bundle))
        if expert is None:
            raise InvalidUsage("A record names an expert that the register does not hold.", bundle=bundle)
        listed = select(ListingRow.price_micro_per_1k_tokens).where(
            ListingRow.expert_id == expert.expert_id, ListingRow.epoch <= epoch
        )
        price = self._session.scalar(listed.order_by(ListingRow.epoch.desc()).limit(1)) or 0
        return ledger.Share(
            bundle=bundle,
            owner=expert.tenant,
            ppm_tokens=ppm_tokens,
            # Never above what was held: a request costs at most what its admission said.
            price_micro_per_1k_tokens=min(price, row.price_ceiling_micro_per_1k),
        )

    def _charge(self, row: ReservationRow, record: UsageRecord, amount: int) -> None:
        row.used_tokens += record.completion_tokens
        budget = self._budget(row.tenant)
        budget.spent_micro += amount
        if row.state == "held":
            still = ledger.hold_micro(row.max_tokens - row.used_tokens, row.price_ceiling_micro_per_1k)
            budget.held_micro += still - row.held_micro
            row.held_micro = still
            if record.final:
                self._free(row, "closed")
        self._session.flush()

    def _free(self, row: ReservationRow, state: str) -> None:
        if row.held_micro:
            self._budget(row.tenant).held_micro -= row.held_micro
        row.held_micro, row.state, row.closed_at_us = 0, state, self._now_us
        self._session.flush()


def _check_record(record: UsageRecord, row: ReservationRow, current_epoch: int) -> None:
    facts = {"request_id": record.request_id}
    if record.deployment != row.deployment or not row.epoch <= record.epoch <= current_epoch:
        raise InvalidUsage("A record names another deployment or epoch than its request.", **facts)
    whole = record.completion_tokens * ledger.PPM
    if any(ppm < 0 for ppm in record.experts.values()) or sum(record.experts.values()) != whole:
        raise InvalidUsage("The experts' parts of a record do not add up to its tokens.", **facts)
    if row.used_tokens + record.completion_tokens > row.max_tokens:
        raise OverReservation("A request has more tokens than were reserved for it.", **facts)


def _within(tenant: str | None, since_us: int, until_us: int | None) -> list[Any]:
    record = UsageRecordRow
    conditions: list[Any] = [record.at_us >= since_us]
    if until_us is not None:
        conditions.append(record.at_us < until_us)
    if tenant is not None:
        conditions.append(record.tenant == tenant)
    return conditions
