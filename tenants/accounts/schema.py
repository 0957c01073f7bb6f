# SPDX-License-Identifier: Apache-2.0
"""The one metadata of all tables, and the column types that mean the same on SQLite and PostgreSQL.

Only four kinds of column exist: text, 64-bit integers, 64-bit floats and bytes. Times are microseconds since
the Unix epoch, money is micro-credits, flags are 0 or 1, documents are canonical JSON in text (hence the same
bytes on both engines). SQLite tables are STRICT, so that a wrong type is refused there as PostgreSQL refuses
it. Columns are NOT NULL unless the reason for the gap stands beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sqlalchemy import REAL, BigInteger, Double, Integer, LargeBinary, MetaData, Table, Text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.types import TypeEngine

from tenants.accounts.isolation import PLATFORM_ONLY, Isolation

Int64 = BigInteger().with_variant(Integer(), "sqlite")
Float64: TypeEngine[float] = Double().with_variant(REAL(), "sqlite")

STRICT: dict[str, Any] = {"sqlite_strict": True}


class Base(DeclarativeBase):
    """Parent of every row class on the tenants and policy floors.

    Attributes:
        __isolation__: whose the rows are; the platform's alone where a class does not say.
    """

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        int: Int64,
        float: Float64,
        str: Text(),
        bytes: LargeBinary(),
    }
    __table_args__: Any = STRICT
    __isolation__: ClassVar[Isolation] = PLATFORM_ONLY


def insert_new(session: Session, table: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Inserts rows and leaves those whose key exists as they are."""
    if rows:
        session.execute(_insert(session, table).values(list(rows)).on_conflict_do_nothing())


def upsert(session: Session, table: Any, row: Mapping[str, Any], key: Sequence[str]) -> None:
    """Inserts one row, or overwrites the other columns of the row with the same key."""
    statement = _insert(session, table).values(dict(row))
    changed = {name: statement.excluded[name] for name in row if name not in key}
    session.execute(statement.on_conflict_do_update(index_elements=list(key), set_=changed))


def _insert(session: Session, row_class: Any) -> Any:
    table: Table = row_class.__table__
    is_postgres = session.get_bind().dialect.name == "postgresql"
    return postgresql.insert(table) if is_postgres else sqlite.insert(table)
