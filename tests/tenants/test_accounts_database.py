# SPDX-License-Identifier: Apache-2.0
"""The database: one owner, whole units of work, the pragmas that durability rests on."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tenants.accounts.accounts import Accounts
from tenants.accounts.database import Database
from tenants.accounts.scope import PLATFORM
from tenants.errors import DatabaseInUse, UnsupportedDatabase

HOLDER = """
import sys, time
from tenants.accounts.database import Database
database = Database(sys.argv[1])
print("open", flush=True)
time.sleep(60)
"""


def test_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    """Another process is refused with the sentence that names PostgreSQL; SIGKILL leaves no lock behind."""
    url = f"sqlite:///{tmp_path}/m.db"
    root = Path(__file__).parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, url], cwd=root, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(DatabaseInUse, match="PostgreSQL"):
            Database(url)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    Database(url).close()


def test_same_file_by_another_path_is_refused(tmp_path: Path) -> None:
    """A symbolic link to the file does not get around the lock, and closing gives it back."""
    first = Database(f"sqlite:///{tmp_path}/m.db")
    (tmp_path / "link.db").symlink_to(tmp_path / "m.db")
    with pytest.raises(DatabaseInUse):
        Database(f"sqlite:///{tmp_path}/link.db")
    first.close()
    Database(f"sqlite:///{tmp_path}/link.db").close()


def test_sqlite_is_opened_durable_and_private(tmp_path: Path) -> None:
    """WAL, full synchronisation and foreign keys are on, and nobody else can read the file."""
    database = Database(f"sqlite:///{tmp_path}/m.db", scope=PLATFORM)
    with database.unit_of_work() as session:
        values = [
            session.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
        assert values == ["wal", 2, 1]
        session.execute(text("CREATE TABLE t (x INTEGER)"))
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    database.close()


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "nonsense", ""])
def test_other_databases_are_refused(url: str) -> None:
    """Whatever is neither a SQLite file nor PostgreSQL is refused with a sentence."""
    with pytest.raises(UnsupportedDatabase):
        Database(url)


def test_unit_of_work_is_whole_or_nothing(database: Database) -> None:
    """An error anywhere in the block leaves nothing of it."""

    def fail_late() -> None:
        with database.unit_of_work() as session:
            Accounts(session, 1).create_tenant("acme", "Acme")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_late()
    with database.reading() as session:
        assert Accounts(session, 1).list_tenants() == []


def test_reading_sees_one_state_and_can_not_write(database: Database) -> None:
    """A reader keeps its state while a writer commits, and writing in it fails."""
    with database.unit_of_work() as session:
        Accounts(session, 1).create_tenant("acme", "Acme")
    with database.reading() as reader:
        before = Accounts(reader, 1).list_tenants()
        with database.unit_of_work() as session:
            Accounts(session, 1).create_tenant("beta", "Beta")
        assert Accounts(reader, 1).list_tenants() == before
        with pytest.raises(DBAPIError):
            Accounts(reader, 1).create_tenant("gamma", "Gamma")
    with database.unit_of_work() as session:
        Accounts(session, 1).create_tenant("gamma", "Gamma")


def test_concurrent_writers_all_commit(database: Database) -> None:
    """Eight threads that each write ten times lose nothing."""

    def write(worker: int) -> None:
        for n in range(10):
            with database.unit_of_work() as session:
                Accounts(session, 1).create_tenant(f"t-{worker}-{n}", "T")

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as session:
        assert len(Accounts(session, 1).list_tenants()) == 80
