# SPDX-License-Identifier: Apache-2.0
"""Legal holds: compliance says that something is kept, and nothing of it is erased until that is lifted.

A hold on a tenant covers all that belongs to it. Serving is another matter: what an owner withdrew stays
withdrawn. Set and lifted are events that never change.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from model_core.packing.ids import new_id
from policy.erasures.records import HeldKind, Hold
from policy.errors import LegalHold
from policy.guards.authority import Authority, unknown
from policy.tables import ExpertRow, HoldEventRow
from tenants.accounts.database import lock_for_writing
from tenants.accounts.tables import DatasetRow, TenantRow
from tenants.roles import Principal


class Holds:
    """The room of holds, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us

    def set(self, kind: HeldKind, subject_id: str, reason: str, principal: Principal) -> Hold:
        """Has something kept from now on.

        Raises:
            NotAllowed: the principal is not of compliance.
            NotFound: there is no such thing.
        """
        Authority.check_compliance(principal)
        owner = self._owner(kind, subject_id)
        hold_id = new_id("hld")
        self._append(hold_id, 1, "set", (owner, kind, subject_id, reason), principal)
        return self.get(hold_id)

    def lift(self, hold_id: str, reason: str, principal: Principal) -> Hold:
        """Ends a hold; again: nothing happens.

        Raises:
            NotAllowed: the principal is not of compliance.
            NotFound: there is no such hold.
        """
        Authority.check_compliance(principal)
        lock_for_writing(self._session, "legal_holds")
        hold = self.get(hold_id)
        if hold.stands:
            subject = (hold.tenant, hold.subject_kind, hold.subject_id, reason)
            self._append(hold_id, 2, "lifted", subject, principal)
        return self.get(hold_id)

    def get(self, hold_id: str) -> Hold:
        """One hold.

        Raises:
            NotFound: there is no such hold.
        """
        query = select(HoldEventRow).where(HoldEventRow.hold_id == hold_id).order_by(HoldEventRow.n)
        found = _folded(self._session.scalars(query))
        if not found:
            raise unknown("hold", hold_id)
        return found[0]

    def list(self, tenant: str | None = None) -> Found:
        """Holds, oldest first; of one tenant's things, or all with None."""
        query = select(HoldEventRow).order_by(HoldEventRow.hold_id, HoldEventRow.n)
        if tenant is not None:
            query = query.where(HoldEventRow.tenant == tenant)
        return _folded(self._session.scalars(query))

    def on(self, tenant: str, *subjects: tuple[str, str]) -> Found:
        """The holds that stand on any of these things, or on all of their owner's.

        Args:
            tenant: whose they are.
            *subjects: kind and id of each.
        """
        covered = {("tenant", tenant), *subjects}
        return [
            hold
            for hold in self.list(tenant)
            if hold.stands and (hold.subject_kind, hold.subject_id) in covered
        ]

    def check_none(self, tenant: str, *subjects: tuple[str, str]) -> None:
        """Lets pass what nobody ordered to keep; arguments as of ``on``.

        Raises:
            LegalHold: somebody did; the holds are named.
        """
        held = self.on(tenant, *subjects)
        if held:
            raise LegalHold(
                "A legal hold orders that this is kept, so it is not erased; it is not served for that. Ask "
                "compliance, and erase it when the hold is lifted.",
                holds=[hold.id for hold in held],
                reason="LEGAL_HOLD",
            )

    def _owner(self, kind: HeldKind, subject_id: str) -> str:
        if kind == "tenant":
            tenant = self._session.get(TenantRow, subject_id)
            owner = None if tenant is None else tenant.slug
        elif kind == "expert":
            expert = self._session.get(ExpertRow, subject_id)
            owner = None if expert is None else expert.tenant
        else:
            dataset = self._session.get(DatasetRow, subject_id)
            owner = None if dataset is None else dataset.tenant
        if owner is None:
            raise unknown(kind, subject_id)
        return owner

    def _append(
        self, hold_id: str, n: int, event: str, subject: tuple[str, str, str, str], principal: Principal
    ) -> None:
        tenant, kind, subject_id, reason = subject
        self._session.add(
            HoldEventRow(
                hold_id=hold_id,
                n=n,
                event=event,
                tenant=tenant,
                subject_kind=kind,
                subject_id=subject_id,
                reason=reason,
                principal_id=principal.id,
                at_us=self._now_us,
            )
        )
        self._session.flush()


# Named here because inside the class ``list`` is the method.
Found = list[Hold]


def _folded(rows: Iterable[HoldEventRow]) -> Found:
    holds: dict[str, Hold] = {}
    for row in rows:
        if row.event == "set":
            holds[row.hold_id] = Hold.model_validate(
                {
                    "id": row.hold_id,
                    "tenant": row.tenant,
                    "subject_kind": row.subject_kind,
                    "subject_id": row.subject_id,
                    "reason": row.reason,
                    "set_by": row.principal_id,
                    "set_at_us": row.at_us,
                }
            )
        else:
            lifted = {"lifted_by": row.principal_id, "lifted_at_us": row.at_us}
            holds[row.hold_id] = holds[row.hold_id].model_copy(update=lifted)
    return list(holds.values())
