# SPDX-License-Identifier: Apache-2.0
"""Who somebody is at this moment, by the keys that are live: for acts that take effect after a decision.

A key carries roles, a person holds keys. What a person may do without a key at hand is what its live keys
allow together. Knows nothing of what a role may do.
"""

from __future__ import annotations

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from tenants.accounts.tables import KeyRow, PrincipalRow, TenantRow
from tenants.roles import Principal, Role


def principal_now(session: Session, principal_id: str, now_us: int) -> Principal | None:
    """The person with the roles of all its live keys, or None where it may not act at all.

    Args:
        session: the open unit of work.
        principal_id: whose.
        now_us: keys that ended before this moment do not count.
    """
    query = (
        select(PrincipalRow.tenant, PrincipalRow.name, KeyRow.roles)
        .join(KeyRow, KeyRow.principal_id == PrincipalRow.id)
        .join(TenantRow, TenantRow.slug == PrincipalRow.tenant)
        .where(PrincipalRow.id == principal_id, TenantRow.status == "active")
        .where(KeyRow.revoked_at_us.is_(None))
        .where(or_(KeyRow.expires_at_us.is_(None), KeyRow.expires_at_us > now_us))
    )
    held = session.execute(query).all()
    if not held:
        return None
    roles = frozenset(Role(word) for _, _, words in held for word in words.split())
    return Principal(id=principal_id, tenant=held[0][0], name=held[0][1], roles=roles)
