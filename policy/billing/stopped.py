# SPDX-License-Identifier: Apache-2.0
"""Which open requests must end though no epoch says so: their key, their tenant or their money is gone.

The answer follows from the state of keys, tenants, budgets and holds alone, so nobody has to remember what
was said to whom. Knows neither servers nor how a request ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from policy.tables import BudgetRow, ReservationRow
from tenants.accounts.tables import KeyRow, TenantRow

Cause = Literal["key_revoked", "key_expired", "tenant_suspended", "budget_spent"]


_OVERDRAWN: Final = select(BudgetRow).where(
    BudgetRow.held_micro > 0, BudgetRow.spent_micro + BudgetRow.held_micro > BudgetRow.limit_micro
)


class Stopped:
    """Looks up open requests, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us

    def requests(self) -> dict[str, Cause]:
        """Open requests that must end, with the cause of each."""
        found = self._without_key_or_tenant()
        for budget in self._session.scalars(_OVERDRAWN):
            holds = self._holds(budget.tenant)
            ending = sum(held_micro for request_id, held_micro in holds if request_id in found)
            too_much = budget.spent_micro + budget.held_micro - budget.limit_micro - ending
            others = [one for one in holds if one[0] not in found]
            found |= dict.fromkeys(uncovered(others, too_much), "budget_spent")
        return found

    def _without_key_or_tenant(self) -> dict[str, Cause]:
        lapsed = and_(KeyRow.expires_at_us.is_not(None), KeyRow.expires_at_us <= self._now_us)
        query = (
            select(ReservationRow.request_id, TenantRow.status, KeyRow.revoked_at_us)
            .join(TenantRow, TenantRow.slug == ReservationRow.tenant)
            .outerjoin(KeyRow, KeyRow.key_id == ReservationRow.key_id)
            .where(ReservationRow.state == "held")
            .where(or_(TenantRow.status != "active", KeyRow.revoked_at_us.is_not(None), lapsed))
        )
        found: dict[str, Cause] = {}
        for request_id, status, revoked_at_us in self._session.execute(query):
            if status != "active":
                found[request_id] = "tenant_suspended"
            else:
                found[request_id] = "key_expired" if revoked_at_us is None else "key_revoked"
        return found

    def _holds(self, tenant: str) -> list[tuple[str, int]]:
        """Open requests that hold money, newest first."""
        query = (
            select(ReservationRow.request_id, ReservationRow.held_micro)
            .where(ReservationRow.state == "held", ReservationRow.tenant == tenant)
            .where(ReservationRow.held_micro > 0)
            .order_by(ReservationRow.created_at_us.desc(), ReservationRow.request_id.desc())
        )
        return [(request_id, held_micro) for request_id, held_micro in self._session.execute(query)]


def uncovered(holds: Iterable[tuple[str, int]], too_much_micro: int) -> list[str]:
    """The requests that end so that what stays on hold is covered: the newest first.

    Args:
        holds: (request, hold), newest first.
        too_much_micro: by how much spending and holds are above the limit.
    """
    ends = []
    for request_id, held_micro in holds:
        if too_much_micro <= 0:
            break
        ends.append(request_id)
        too_much_micro -= held_micro
    return ends
