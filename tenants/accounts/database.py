# SPDX-License-Identifier: Apache-2.0
"""Opens the one database: SQLite by file or PostgreSQL by URL, and hands out units of work.

Both engines give the same guarantees: a unit of work commits as a whole or leaves nothing, and what was
committed survives a power cut. SQLite gets there with WAL, ``synchronous=FULL``, ``BEGIN IMMEDIATE`` and one
process; PostgreSQL by itself. Whoever seals what is written is asked before every commit. This module knows
no table.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session, sessionmaker

from tenants.accounts.scope import NOBODY, PLATFORM, Scope, ScopedSession, see
from tenants.accounts.written import Written, watch, written_in
from tenants.errors import DatabaseInUse, UnsupportedDatabase

_BUSY_TIMEOUT_MS: Final = 10_000

#: Called before every commit with a session of that unit of work and the rows that it wrote.
Seal = Callable[[Session, Written], None]


class Database:
    """One open database.

    A second process that opens the same SQLite file is refused. The refusal rests on a kernel lock
    (``flock``) of a file beside the database, so it vanishes with its holder, however that died, and a stale
    file means nothing.

    Args:
        url: ``sqlite:////path/to/file`` or ``postgresql://…`` (psycopg 3 is the driver).
        scope: whose rows the units of work see that do not say; nobody's unless told otherwise.

    Raises:
        DatabaseInUse: another process has this SQLite file open.
        UnsupportedDatabase: the URL names another engine, or SQLite without a file.
    """

    def __init__(self, url: str, *, scope: Scope = NOBODY) -> None:
        parsed = _parse(url)
        self._scope = scope
        self._lock_fd: int | None = None
        self._writers: threading.Lock | None = None
        self._seal: Seal | None = None
        self._sessions: sessionmaker[Any] = sessionmaker(class_=ScopedSession, expire_on_commit=False)
        if parsed.get_backend_name() == "sqlite":
            self._lock_fd = _lock_file(Path(parsed.database or ""))
            self._writers = threading.Lock()
            # IMMEDIATE: a reader that becomes a writer later could fail with SQLITE_BUSY halfway.
            self.engine = _open_sqlite(parsed, "BEGIN IMMEDIATE")
            self._readers = _open_sqlite(parsed, "BEGIN DEFERRED", "query_only=1")
        else:
            self.engine = create_engine(parsed, pool_pre_ping=True, pool_size=8, max_overflow=8)
            self._readers = self.engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )

    @property
    def is_sqlite(self) -> bool:
        """Whether this is the embedded engine."""
        return self._writers is not None

    def seal_with(self, seal: Seal) -> None:
        """Has every unit of work from now on sealed right before it commits."""
        if self._seal is None:
            watch(self._sessions)
        self._seal = seal

    @contextmanager
    def unit_of_work(self, scope: Scope | None = None) -> Iterator[Session]:
        """Yields a session that commits at the end, or rolls everything back when an error leaves the block.

        On SQLite writers wait for each other here, in the order of a lock, and not in SQLite's busy loop.

        Args:
            scope: whose rows it sees and writes; the database's own with None.
        """
        session = self._open(self.engine, scope)
        with self._writers or nullcontext(), session, session.begin():
            yield session
            if self._seal is not None:
                session.flush()
                see(session, PLATFORM)
                self._seal(session, written_in(session))

    @contextmanager
    def shared_unit(self) -> Iterator[SharedUnit]:
        """Yields a unit of work that several take part in: one commit, but each part is kept or undone alone.

        When an error leaves the block, no part is kept. Made for one writer at a time: on PostgreSQL the
        locks of every part would be held until the last one is done.
        """
        with self._writers or nullcontext(), self.engine.begin() as connection:
            unit = SharedUnit(connection, self._sessions, self._scope)
            yield unit
            if self._seal is not None:
                session = self._sessions(
                    bind=connection, join_transaction_mode="rollback_only", info={"scope": PLATFORM}
                )
                with session:
                    self._seal(session, unit.written)

    @contextmanager
    def reading(self, scope: Scope | None = None) -> Iterator[Session]:
        """Yields a session for reading alone: one consistent state, no waiting for writers, nothing kept.

        Args:
            scope: whose rows it sees; the database's own with None.
        """
        with self._open(self._readers, scope) as session:
            try:
                yield session
            finally:
                session.rollback()

    def _open(self, engine: Engine, scope: Scope | None) -> Session:
        info = {"scope": self._scope if scope is None else scope}
        session: Session = self._sessions(bind=engine, info=info)
        return session

    def close(self) -> None:
        """Closes every connection and lets another process open the file."""
        self._readers.dispose()
        self.engine.dispose()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


class SharedUnitLost(RuntimeError):
    """The database undid a whole shared unit where one part failed."""


class SharedUnit:
    """A unit of work for several; see ``Database.shared_unit``.

    Attributes:
        written: what the parts that were kept wrote.
    """

    def __init__(self, connection: Connection, sessions: sessionmaker[Any], scope: Scope) -> None:
        self._connection = connection
        self._sessions = sessions
        self._scope = scope
        self.written = Written()

    @contextmanager
    def part(self) -> Iterator[Session]:
        """Yields a session of its own whose changes are undone alone when an error leaves the block.

        Raises:
            SharedUnitLost: the error undid the whole unit, as a full disk does.
        """
        session = self._sessions(
            bind=self._connection,
            join_transaction_mode="create_savepoint",
            info={"scope": self._scope},
        )
        try:
            with session, session.begin():
                yield session
            self.written.add(written_in(session))
        except BaseException as error:
            if not self._is_open():
                raise SharedUnitLost from error
            raise

    def _is_open(self) -> bool:
        driver: Any = self._connection.connection.dbapi_connection
        # SQLite undoes the whole transaction for some errors; PostgreSQL always keeps the savepoint.
        return bool(getattr(driver, "in_transaction", True))


def lock_for_writing(session: Session, name: str) -> None:
    """Makes everyone who names the same thing wait until this unit of work ends.

    PostgreSQL takes an advisory transaction lock. On SQLite ``BEGIN IMMEDIATE`` already made this the only
    writer.
    """
    if session.get_bind().dialect.name == "postgresql":
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise UnsupportedDatabase(
            "The database URL can not be read; write sqlite:////path/to/file or postgresql://user@host/name."
        ) from error
    backend = parsed.get_backend_name()
    if backend in {"postgresql", "postgres"}:
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and parsed.database and parsed.database != ":memory:":
        return parsed.set(drivername="sqlite+pysqlite")
    raise UnsupportedDatabase(
        f"The marketplace runs on a SQLite file or on PostgreSQL, not on {backend!r} as given.",
        backend=backend,
    )


def _lock_file(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    real = path.resolve()
    fd = os.open(f"{real}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise DatabaseInUse(
            f"Another process has the database {real.name} open, and SQLite serves exactly one. Stop "
            "that process, or use PostgreSQL (MARKETPLACE_DATABASE_URL=postgresql://…) for more nodes.",
            database=real.name,
        ) from error
    # SQLite gives the WAL and its index the mode of the main file, so one restricted creation covers all.
    os.close(os.open(real, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return fd


def _open_sqlite(url: URL, begin: str, *pragmas: str) -> Engine:
    engine = create_engine(url, connect_args={"check_same_thread": False, "timeout": _BUSY_TIMEOUT_MS / 1000})

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        # The driver's own transaction handling begins late; ours is in _on_begin.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", *pragmas):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
