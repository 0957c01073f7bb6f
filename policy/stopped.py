# SPDX-License-Identifier: Apache-2.0
"""Which open requests must end though no epoch says so: their key, their tenant or their money is gone.

The answer follows from the state of keys, tenants, budgets and holds alone, so nobody has to remember what
was said to whom. Knows neither servers nor how a request ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from policy.tables import BudgetRow, ReservationRow
from tenants.accounts.tables import KeyRow, TenantRow

Cause = Literal["key_revoked", "key_expired", "tenant_suspended", "budget_spent"]


class Stopped:
    """Looks up open requests, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us

    def requests(self) -> dict[str, Cause]:
        """Open requests that must end, with the cause of each."""
        query = (
            select(
                ReservationRow.request_id,
                ReservationRow.tenant,
                ReservationRow.held_micro,
                KeyRow.revoked_at_us,
                KeyRow.expires_at_us,
                TenantRow.status,
            )
            .join(TenantRow, TenantRow.slug == ReservationRow.tenant)
            .outerjoin(KeyRow, KeyRow.key_id == ReservationRow.key_id)
            .where(ReservationRow.state == "held")
            .order_by(ReservationRow.created_at_us.desc(), ReservationRow.request_id.desc())
        )
        found: dict[str, Cause] = {}
        held: dict[str, list[tuple[str, int]]] = {}
        for request_id, tenant, held_micro, revoked_at_us, expires_at_us, status in self._session.execute(
            query
        ):
            if status != "active":
                found[request_id] = "tenant_suspended"
            elif revoked_at_us is not None:
                found[request_id] = "key_revoked"
            elif expires_at_us is not None and self._now_us >= expires_at_us:
                found[request_id] = "key_expired"
            elif held_micro:
                held.setdefault(tenant, []).append((request_id, held_micro))
        if held:
            overdrawn = select(BudgetRow).where(
                BudgetRow.tenant.in_(held),
                BudgetRow.spent_micro + BudgetRow.held_micro > BudgetRow.limit_micro,
            )
            for row in self._session.scalars(overdrawn):
                too_much = row.spent_micro + row.held_micro - row.limit_micro
                found |= dict.fromkeys(uncovered(held[row.tenant], too_much), "budget_spent")
        return found


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
