# SPDX-License-Identifier: Apache-2.0
"""Whose rows a unit of work sees: nobody's, one tenant's, or everybody's.

The scope stands in the session. On PostgreSQL it is also a setting of the transaction, which the policies of
row-level security read, so that even raw SQL is held to it. SQLite has no such thing: there every statement
of the ORM gets the same conditions as criteria, and statements that can not get them are refused; who opens
the file by other means sees all of it. Knows no table and no principal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Connection, Table, TextClause, event, literal, text
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction, UOWTransaction, with_loader_criteria
from sqlalchemy.sql import visitors

from tenants.accounts.isolation import EVERYBODY, SETTING
from tenants.accounts.schema import Base


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose rows are seen.

    Attributes:
        word: slug of a tenant, ``*`` for everybody's, empty for nobody's.
    """

    word: str


NOBODY: Final = Scope("")
PLATFORM: Final = Scope(EVERYBODY)

_SCOPE: Final = "scope"
_TOLD: Final = "scope_told"
_SET: Final = text(f"SELECT set_config('{SETTING}', :word, true)")


class OutOfScope(RuntimeError):
    """A statement reaches, or might reach, beyond its unit of work's scope: a bug, and never a refusal."""


def tenant_scope(slug: str) -> Scope:
    """One tenant's rows, and what is shown to it of others'."""
    if slug in {"", EVERYBODY}:
        raise ValueError("a scope needs the slug of a tenant")
    return Scope(slug)


class ScopedSession(Session):
    """A session that sees the rows of its scope only; made by ``Database``."""

    def get(self, entity: Any, ident: Any, **options: Any) -> Any:
        """As of ``Session``; also a row that was read in a wider scope does not exist in a narrower one."""
        row = super().get(entity, ident, **options)
        scope = scope_of(self)
        if row is None or scope == PLATFORM:
            return row
        return row if _is_shown(row, scope.word) else None


def scope_of(session: Session) -> Scope:
    """Whose rows a session sees."""
    scope: Scope = session.info.get(_SCOPE, NOBODY)
    return scope


def see(session: Session, scope: Scope) -> None:
    """Lets a session see the rows of a scope from now on; what is pending is written in the old one."""
    if scope == scope_of(session):
        return
    session.flush()
    # Connected first: what begins here begins in the old scope, to which a savepoint goes back.
    connection = session.connection() if session.in_transaction() else None
    session.info[_SCOPE] = scope
    if connection is not None:
        _tell(session, connection)


@contextmanager
def whole_register(session: Session) -> Iterator[None]:
    """Lets a block see and write everybody's rows, as publication does, which speaks of all tenants.

    Keep the block small and decide before it what the caller may do.
    """
    before = scope_of(session)
    see(session, PLATFORM)
    try:
        yield
    except BaseException:
        try:
            see(session, before)
        except (DBAPIError, InvalidRequestError):
            # The transaction is dead: nothing is read in it until it is rolled back, and with it the setting.
            session.info[_SCOPE] = before
        raise
    see(session, before)


def _tell(session: Session, connection: Connection) -> None:
    """Tells the database the session's scope; where that fails, the next statement tries again."""
    session.info[_TOLD] = None
    scope = scope_of(session)
    if connection.dialect.name == "postgresql":
        connection.execute(_SET, {"word": scope.word})
    session.info[_TOLD] = scope


def _tell_again(session: Session) -> None:
    if session.in_transaction() and session.info.get(_TOLD, NOBODY) != scope_of(session):
        _tell(session, session.connection())


@event.listens_for(ScopedSession, "after_begin")
def _on_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    if not transaction.nested:
        session.info[_TOLD] = NOBODY  # what the database takes it for by itself
        if scope_of(session) != NOBODY:
            _tell(session, connection)


@event.listens_for(ScopedSession, "after_soft_rollback")
def _on_rollback(session: Session, previous: SessionTransaction) -> None:
    # The setting goes back to what it was at the savepoint, which need not be what the session says.
    if previous.nested:
        session.info[_TOLD] = None


@event.listens_for(ScopedSession, "do_orm_execute")
def _on_execute(state: ORMExecuteState) -> None:
    scope = scope_of(state.session)
    _tell_again(state.session)
    if scope == PLATFORM or state.session.get_bind().dialect.name != "sqlite":
        return
    if isinstance(state.statement, TextClause):
        raise OutOfScope("raw SQL is not held to a scope; use the ORM, or the whole register")
    if state.is_insert:
        return
    statement: Any = state.statement
    criteria = _criteria(scope.word)
    tables = _tables_of(statement)
    touched = [criteria[name] for name in sorted(tables) if name in criteria]
    if state.is_update or state.is_delete:
        # Whoever is shown a row need not be whoever may change it; both conditions then hold.
        touched.append(_criteria(scope.word, writes=True)[statement.table.name])
    if touched and not state.is_orm_statement:
        raise OutOfScope("a statement without row classes is not held to a scope; name the classes")
    if not state.is_column_load and not state.is_relationship_load:
        state.statement = statement.options(*touched)


@event.listens_for(ScopedSession, "before_flush")
def _on_flush(session: Session, _context: UOWTransaction, _objects: Any) -> None:
    scope = scope_of(session)
    _tell_again(session)
    if scope == PLATFORM or session.get_bind().dialect.name != "sqlite":
        return
    for row in session.new:
        isolation = row.__isolation__
        if isolation.owners and all(getattr(row, name) != scope.word for name in isolation.owners):
            raise OutOfScope(f"a row of {row.__tablename__} is written for another tenant")


def _is_shown(row: Any, word: str) -> bool:
    """Whether a row's own columns show it; what belongs to a row above it is held back by the statement."""
    isolation = row.__isolation__
    if isolation.shared or isolation.parent is not None:
        return True
    if any(getattr(row, name) == word for name in (*isolation.owners, *isolation.readers)):
        return True
    return any(getattr(row, name) == value for name, value in isolation.open_where.items())


def _tables_of(statement: Any) -> set[str]:
    """Names of the tables that a statement touches anywhere, those of columns and subqueries among them."""
    found = set()
    part: Any
    for part in visitors.iterate(statement):
        if part.__visit_name__ == "table":
            found.add(part.name)
        elif part.__visit_name__ == "column" and isinstance(part.table, Table):
            found.add(part.table.name)
    return found


@lru_cache(maxsize=256)
def _criteria(word: str, *, writes: bool = False) -> dict[str, Any]:
    """What every statement gets that touches a table, by its name."""
    found = {}
    for mapper in Base.registry.mappers:
        row = mapper.class_
        condition = row.__isolation__.writable if writes else row.__isolation__.readable
        if writes or not row.__isolation__.shared:
            where = condition(lambda name, row=row: getattr(row, name), literal(word))
            found[row.__tablename__] = with_loader_criteria(row, where, include_aliases=True)
    return found
