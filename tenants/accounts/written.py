# SPDX-License-Identifier: Apache-2.0
"""What a unit of work wrote: every row it touched, by table and key, as the row stands at the end.

Flushed objects and statements of the ORM are both heard of. A row whose values were given whole is taken at
its word; any other is read again at the end, so that what is said of it is what the database holds. What a
savepoint undid is forgotten with it. Statements in plain text are not heard of. Knows no table, and nothing
of what is done with the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Table, and_, event, or_, select
from sqlalchemy import inspect as describe
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction, sessionmaker

Key = tuple[Any, ...]
Values = Mapping[str, Any]

_INFO: Final = "written"
_REREAD: Final = object()  # the values are not known here
_AT_ONCE: Final = 200


class Written:
    """The rows that a unit of work wrote, each once, in the order of their last writing."""

    def __init__(self) -> None:
        self._rows: dict[tuple[Table, Key], Any] = {}
        self._saved: dict[SessionTransaction, dict[tuple[Table, Key], Any]] = {}

    def __bool__(self) -> bool:
        return bool(self._rows)

    def touches(self, table: str) -> bool:
        """Whether a row of the table was written."""
        return any(found.name == table for found, _ in self._rows)

    def add(self, other: Written) -> None:
        """Takes over what a later part of the same unit wrote."""
        for place, what in other._rows.items():
            self._rows.pop(place, None)
            self._rows[place] = what

    def note(self, table: Table, row: Values, *, whole: bool) -> None:
        """Notes one row.

        Args:
            table: of which table.
            row: its values by column; at least those of the primary key.
            whole: whether these are what the database holds now; otherwise it is read again.
        """
        names, keys = _names(table)
        place = (table, tuple(row[name] for name in keys))
        earlier = self._rows.pop(place, None)
        known = whole and earlier is not _REREAD and len(row) == len(names)
        self._rows[place] = row if known else _REREAD

    def note_object(self, row: Any) -> None:
        """Notes an object that was flushed; its values are taken at the end."""
        state = describe(row)
        place = (state.mapper.local_table, tuple(state.mapper.primary_key_from_instance(row)))
        if self._rows.pop(place, None) is _REREAD:
            self._rows[place] = _REREAD  # a statement changed columns that the object does not know of
        else:
            self._rows[place] = state.dict

    def rows(self, session: Session) -> Iterator[tuple[Table, Key, Values | None]]:
        """Every row as it stands: table, key, values by column (None: the row is gone)."""
        again: dict[Table, list[Key]] = {}
        for (table, key), what in self._rows.items():
            if what is _REREAD or not _names(table)[0] <= what.keys():
                again.setdefault(table, []).append(key)
        read = {
            (table, key): row for table, keys in again.items() for key, row in _read(session, table, keys)
        }
        for (table, key), what in self._rows.items():
            yield table, key, read.get((table, key), what)

    def save(self, savepoint: SessionTransaction) -> None:
        """Remembers what was written before a savepoint."""
        self._saved[savepoint] = dict(self._rows)

    def restore(self, undone: SessionTransaction) -> None:
        """Forgets what was written since a savepoint that was rolled back; all of it with the whole unit."""
        self._rows = self._saved.pop(undone, self._rows) if undone.nested else {}


def watch(sessions: sessionmaker[Session]) -> None:
    """Makes every session of a maker keep what it wrote; see ``written_in``."""
    event.listen(sessions, "after_flush", _after_flush)
    event.listen(sessions, "do_orm_execute", _on_execute)
    event.listen(sessions, "after_transaction_create", _after_create)
    event.listen(sessions, "after_soft_rollback", _after_rollback)


def written_in(session: Session) -> Written:
    """What a watched session wrote so far."""
    found: Written = session.info.setdefault(_INFO, Written())
    return found


@lru_cache(maxsize=256)
def _names(table: Table) -> tuple[frozenset[str], tuple[str, ...]]:
    """Names of all columns, and of those of the primary key in order."""
    return frozenset(table.columns.keys()), tuple(column.name for column in table.primary_key)


def _after_flush(session: Session, _context: Any) -> None:
    written = written_in(session)
    for row in session.new:
        written.note_object(row)
    for row in session.dirty:
        if session.is_modified(row):
            written.note_object(row)
    for row in session.deleted:
        state = describe(row)
        names = [column.name for column in state.mapper.primary_key]
        key = dict(zip(names, state.mapper.primary_key_from_instance(row), strict=True))
        written.note(state.mapper.local_table, key, whole=False)


def _on_execute(state: ORMExecuteState) -> None:
    if state.is_select or not (state.is_insert or state.is_update or state.is_delete):
        return
    statement: Any = state.statement
    table: Table = statement.table
    written = written_in(state.session)
    if state.is_insert:
        whole = statement._post_values_clause is None
        for row in _inserted(statement, state.parameters):
            written.note(table, row, whole=whole)
        return
    keys = table.primary_key.columns
    found = state.session.connection().execute(select(*keys).where(*statement._where_criteria))
    names = [column.name for column in keys]
    for key in found.all():
        written.note(table, dict(zip(names, key, strict=True)), whole=False)


def _inserted(statement: Any, parameters: Any) -> Sequence[Values]:
    """The rows of an insertion, by column name."""
    if parameters:
        return [parameters] if isinstance(parameters, Mapping) else parameters
    several = [row for rows in statement._multi_values for row in rows] or [statement._values or {}]
    return [{getattr(name, "name", name): _plain(value) for name, value in row.items()} for row in several]


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


def _after_create(session: Session, transaction: SessionTransaction) -> None:
    if transaction.nested:
        written_in(session).save(transaction)


def _after_rollback(session: Session, previous: SessionTransaction) -> None:
    written_in(session).restore(previous)


def _read(session: Session, table: Table, keys: Sequence[Key]) -> Iterator[tuple[Key, Values | None]]:
    columns = list(table.primary_key.columns)
    connection = session.connection()
    for start in range(0, len(keys), _AT_ONCE):
        asked = keys[start : start + _AT_ONCE]
        pairs = [zip(columns, key, strict=True) for key in asked]
        query = select(table).where(or_(*(and_(*(name == value for name, value in one)) for one in pairs)))
        found = {
            tuple(row[column.name] for column in columns): dict(row)
            for row in connection.execute(query).mappings()
        }
        for key in asked:
            yield key, found.get(key)
