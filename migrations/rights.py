# SPDX-License-Identifier: Apache-2.0
"""Who may do what with each table on PostgreSQL, written anew whenever it is not what the code says.

Rights are no history: they follow from the tables as they are now, so they are no revision but are laid down
after the last one. Row-level security comes from each row class's isolation, grants from the guards: what a
trigger refuses to everybody is not granted to begin with. SQLite has neither roles nor policies. Knows the
names of the two groups of ``roles.sql`` and nothing of who is in them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib import resources
from typing import Any, Final

from sqlalchemy import Connection, func, literal_column, select, text
from sqlalchemy.dialects import postgresql

import policy.tables
from tenants.accounts.isolation import EVERYBODY, SETTING
from tenants.accounts.schema import Base

APPLICATION: Final = "marketplace_application"
DECIDER: Final = "marketplace_decider"

#: What the decider reads: enough to answer from published snapshots, and nobody's rows.
DECIDED_FROM: Final = ("publications", "snapshots", "published_facts")

_POSTGRES: Final[Any] = postgresql.dialect()  # type: ignore[no-untyped-call]
_TENANT: Final = f"(SELECT current_setting('{SETTING}', true))"


def roles_sql() -> str:
    """The script that makes the roles, for somebody who may."""
    return resources.files("migrations").joinpath("roles.sql").read_text(encoding="utf-8")


def lay_down(connection: Connection) -> None:
    """Makes policies and grants what they should be; does nothing where they are."""
    statements = [*_policies(), *_grants(connection)]
    mark = "rights " + hashlib.sha256("\n".join(statements).encode()).hexdigest()
    if (
        connection.scalar(select(func.obj_description(text("'alembic_version'::regclass"), "pg_class")))
        == mark
    ):
        return
    for statement in statements:
        connection.exec_driver_sql(statement)
    connection.exec_driver_sql(f"COMMENT ON TABLE alembic_version IS '{mark}'")


def _policies() -> Iterator[str]:
    for mapper in sorted(Base.registry.mappers, key=lambda one: one.class_.__tablename__):
        table, isolation = mapper.class_.__tablename__, mapper.class_.__isolation__
        yield f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
        yield f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY"
        tenant: Any = literal_column(_TENANT)

        def column(name: str, table: str = table) -> Any:
            return literal_column(f"{table}.{name}")

        whole = f"{_TENANT} = '{EVERYBODY}'"
        # Guards look beyond the scope: what a tenant can not see must not be hidden from a check on it.
        reads = f"{whole} OR pg_trigger_depth() > 0 OR ({_sql(isolation.readable(column, tenant))})"
        writes = f"{whole} OR ({_sql(isolation.writable(column, tenant))})"
        notes = f"{writes} OR pg_trigger_depth() > 0"  # what a trigger writes down about a row
        for name, event, rule in (
            ("reads", "SELECT", f"USING ({reads})"),
            ("adds", "INSERT", f"WITH CHECK ({notes})"),
            ("changes", "UPDATE", f"USING ({writes}) WITH CHECK ({writes})"),
            ("deletes", "DELETE", f"USING ({writes})"),
        ):
            yield f"DROP POLICY IF EXISTS {name} ON {table}"
            yield f"CREATE POLICY {name} ON {table} FOR {event} {rule}"


def _grants(connection: Connection) -> Iterator[str]:
    known = set(connection.scalars(text("SELECT rolname FROM pg_roles WHERE rolname LIKE 'marketplace_%'")))
    guards = set(connection.scalars(text("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal")))
    for role in (APPLICATION, DECIDER):
        if role in known:
            yield f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}"
            yield f"GRANT USAGE ON SCHEMA public TO {role}"
            yield f"GRANT SELECT ON alembic_version TO {role}"
    if APPLICATION in known:
        yield f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {APPLICATION}"
        for table in sorted(Base.metadata.tables):
            yield f"GRANT {', '.join(_rights(table, guards))} ON {table} TO {APPLICATION}"
    if DECIDER in known:
        for table in DECIDED_FROM:
            yield f"GRANT SELECT ON {table} TO {DECIDER}"
            yield f"DROP POLICY IF EXISTS decides ON {table}"
            yield f"CREATE POLICY decides ON {table} FOR SELECT TO {DECIDER} USING (true)"


def _rights(table: str, guards: set[str]) -> Iterator[str]:
    yield "SELECT"
    yield "INSERT"
    if f"guard_{table}_fixed" in guards:
        yield f"UPDATE ({', '.join(policy.tables.LATCHED.get(table, ()))})"
    elif f"guard_{table}_update" not in guards:
        yield "UPDATE"
    if f"guard_{table}_delete" not in guards:
        yield "DELETE"


def _sql(condition: Any) -> str:
    return str(condition.compile(dialect=_POSTGRES, compile_kwargs={"literal_binds": True}))
