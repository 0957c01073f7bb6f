# SPDX-License-Identifier: Apache-2.0
"""Metering: budget holds before a token is made, usage exactly once afterwards.

Usage is priced and booked in the very unit of work that stores it, not at settlement: so a tenant's spending
is always exact, a hold is freed by precisely what became a charge, and no crash can part tokens from money.
Settlement later only sums up what is booked.

A server uploads its journal in batches numbered 1, 2, 3, …; a batch that arrives again is recognised, a gap
is refused. Knows nothing of how tokens are made.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from model_core.packing.canonical import canonical_bytes, digest_bytes
from model_core.packing.ids import new_id
from policy.billing import ledger
from policy.billing.books import Ledger
from policy.billing.intake import Intake, budget_of, free
from policy.errors import (
    BudgetExceeded,
    InvalidUsage,
    PayloadMismatch,
    SequenceGap,
    UnknownDeployment,
    UnknownReservation,
)
from policy.publishing.publication import Publisher
from policy.records.billing import Reservation, UsageRecord, UsageRow, UsageTotal
from policy.tables import (
    BudgetRow,
    ExpertRow,
    ReservationRow,
    UsageBatchRow,
    UsageRecordRow,
    UsageShareRow,
)
from tenants.accounts.database import lock_for_writing
from tenants.roles import Principal


class Metering:
    """The metering room, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us
        self._publisher = Publisher(session, now_us)

    def reserve(
        self, principal: Principal, deployment: str, max_tokens: int, continues: str = ""
    ) -> Reservation:
        """Holds budget for a request before any of its tokens is made.

        The hold assumes that the dearest member computes every token; a price that rises while the request
        runs does not raise what it costs.

        Args:
            principal: who asks; the deployment must be its tenant's.
            deployment: which endpoint.
            max_tokens: the most completion tokens of all answers together.
            continues: the first request of an answer that lost its replica and goes on. The new request is
                named after it (``req_….2``), so that the books show what belongs to one answer.

        Raises:
            UnknownDeployment: no such deployment, or another tenant's.
            UnknownReservation: ``continues`` names no request of this principal.
            BudgetExceeded: limit less spending and other holds does not cover the hold.
            InvalidUsage: no tokens are asked for.
        """
        if max_tokens < 1:
            raise InvalidUsage("A request needs at least one token; raise max_tokens.", max_tokens=max_tokens)
        standing = self._publisher.standing()
        snapshot = standing.snapshot
        fact = snapshot.deployments_by_name.get(deployment)
        if fact is None or fact.tenant != principal.tenant:
            raise UnknownDeployment("There is no such deployment; list the models.", deployment=deployment)
        composition = standing.composition(deployment, self._now_us)
        ceiling = max((member.price_micro_per_1k_tokens for member in composition.members), default=0)
        held = ledger.hold_micro(max_tokens, ceiling)
        if held:  # free answers need no budget
            self._hold(principal.tenant, held)
        request_id = self._after(continues, principal) if continues else new_id("req")
        row = {
            "request_id": request_id,
            "tenant": principal.tenant,
            "principal_id": principal.id,
            "key_id": principal.key_id,
            "deployment": deployment,
            "epoch": snapshot.epoch,
            "composition_digest": composition.digest,
            "max_tokens": max_tokens,
            "price_ceiling_micro_per_1k": ceiling,
            "held_micro": held,
            "used_tokens": 0,
            "remainder": 0,
            "state": "held",
            "created_at_us": self._now_us,
            "closed_at_us": None,
        }
        self._session.execute(insert(ReservationRow), [row])
        return Reservation(
            request_id=request_id,
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
        if sequence <= last and self._is_known(server_id, sequence, payload):
            return last
        if sequence != last + 1:
            raise SequenceGap(
                f"The next batch of this server is {last + 1}; upload it first.",
                server_id=server_id,
                sequence=sequence,
                expected=last + 1,
            )
        batch = {"server_id": server_id, "sequence": sequence, "payload_digest": payload}
        self._session.execute(insert(UsageBatchRow), [{**batch, "at_us": self._now_us}])
        intake = Intake(self._session, self._now_us, records)
        charges = intake.take(server_id, sequence, self._publisher.current_epoch())
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
            self._free(row)

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
            budget_of(self._session, tenant)  # in one order, so that two units of work never deadlock
        for row in rows:
            self._free(row)
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

    def _is_known(self, server_id: str, sequence: int, payload: str) -> bool:
        """Whether a batch came before; refuses another one under its number."""
        known = self._session.get(UsageBatchRow, (server_id, sequence))
        if known is not None and known.payload_digest != payload:
            raise PayloadMismatch(
                "This batch was uploaded before with other records; keep the journal and raise an alarm.",
                server_id=server_id,
                sequence=sequence,
            )
        return known is not None

    def _after(self, first: str, principal: Principal) -> str:
        """The name of the next request behind the answer that ``first`` began."""
        row = self._session.get(ReservationRow, first)
        if row is None or row.principal_id != principal.id:
            raise UnknownReservation("There is no such request to go on with.", request_id=first)
        names = (f"{first}.{number}" for number in itertools.count(2))
        return next(name for name in names if self._session.get(ReservationRow, name) is None)

    def _hold(self, tenant: str, held: int) -> None:
        budget = BudgetRow
        covered = budget.limit_micro - budget.spent_micro - budget.held_micro >= held
        taken = update(budget).where(budget.tenant == tenant, covered)
        holding = taken.values(held_micro=budget.held_micro + held).returning(budget.tenant)
        if self._session.execute(holding).first() is None:
            row = budget_of(self._session, tenant)
            available = row.limit_micro - row.spent_micro - row.held_micro
            raise BudgetExceeded(
                "The tenant's budget does not cover this request; lower max_tokens or have it raised.",
                tenant=tenant,
                needed_micro=held,
                available_micro=max(available, 0),
            )

    def _free(self, row: ReservationRow) -> None:
        free(row, budget_of(self._session, row.tenant), "released", self._now_us)
        self._session.flush()


def _within(tenant: str | None, since_us: int, until_us: int | None) -> list[Any]:
    record = UsageRecordRow
    conditions: list[Any] = [record.at_us >= since_us]
    if until_us is not None:
        conditions.append(record.at_us < until_us)
    if tenant is not None:
        conditions.append(record.tenant == tenant)
    return conditions
