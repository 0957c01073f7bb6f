# SPDX-License-Identifier: Apache-2.0
"""Refuses a PostgreSQL role that row-level security or the guards would not hold.

A superuser, a role that bypasses row-level security and the owner of the tables can each take every guard
away. SQLite has no roles: whoever may open the file may do everything with it, which its mode 0600 keeps to
one user.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Engine, text

from tenants.errors import UnsafeDatabaseRole

# What the role is by membership counts as well: SET ROLE is one statement away.
_POWERS: Final = text(
    "SELECT current_user AS role, "
    "COALESCE(bool_or(rolsuper), false) AS superuser, COALESCE(bool_or(rolbypassrls), false) AS bypass, "
    "EXISTS (SELECT 1 FROM pg_class AS c WHERE c.relkind = 'r' "
    "AND c.relnamespace = current_schema()::regnamespace AND pg_has_role(c.relowner, 'MEMBER')) AS owner "
    "FROM pg_roles WHERE pg_has_role(oid, 'MEMBER')"
)


def check_role(engine: Engine) -> None:
    """Lets a role pass that is held to every guard.

    Raises:
        UnsafeDatabaseRole: it is not; the sentence says why and what to do.
    """
    if engine.dialect.name != "postgresql":
        return
    with engine.connect() as connection:
        powers = connection.execute(_POWERS).one()
    found = {
        "it is a superuser": powers.superuser,
        "it bypasses row-level security": powers.bypass,
        "it owns tables": powers.owner,
    }
    why = [words for words, holds in found.items() if holds]
    if why:
        raise UnsafeDatabaseRole(
            f"The database role {powers.role} is not safe for the office: {' and '.join(why)}, itself or by "
            "membership. Point MARKETPLACE_DATABASE_URL at a role of marketplace_application; marketplace "
            "database roles prints the script that makes one.",
            role=powers.role,
            why=why,
        )
