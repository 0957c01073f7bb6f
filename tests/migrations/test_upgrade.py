# SPDX-License-Identifier: Apache-2.0
"""Migrations: one line of revisions that ends at the schema the code knows, on both engines."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, inspect, text

import migrations
import policy.tables
from tenants.accounts.database import Database
from tenants.accounts.schema import Base


@pytest.fixture(params=["sqlite", "postgresql"])
def unmigrated_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that was never upgraded."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres").unmigrated())
    return f"sqlite:///{tmp_path}/new.db"


def test_upgrade_works_from_any_folder_and_twice(
    unmigrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another working directory a new database reaches the head, and again nothing happens."""
    monkeypatch.chdir(tmp_path)
    database = Database(unmigrated_url)
    assert migrations.current(database.engine) is None
    migrations.upgrade(database.engine)
    migrations.upgrade(database.engine)
    assert migrations.current(database.engine) == migrations.head()
    database.close()


def test_migrated_schema_is_the_one_the_code_knows(database: Database) -> None:
    """Nothing is left for a migration to add, remove or change, and every table is covered."""
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    tables = set(inspect(database.engine).get_table_names()) - {"alembic_version"}
    assert tables == set(Base.metadata.tables)


def test_checks_and_strictness_are_the_same(database: Database) -> None:
    """Check constraints, which the comparison above does not see, are those of the metadata."""
    inspector = inspect(database.engine)
    for name, table in Base.metadata.tables.items():
        known = {one.name for one in table.constraints if isinstance(one, CheckConstraint)}
        assert {one["name"] for one in inspector.get_check_constraints(name)} == known, name
    if database.is_sqlite:
        with database.reading() as session:
            loose = session.execute(
                text(
                    "SELECT name FROM pragma_table_list "
                    "WHERE type = 'table' AND strict = 0 AND schema = 'main'"
                )
            )
            assert {row[0] for row in loose} <= {"alembic_version", "sqlite_schema", "sqlite_sequence"}


def test_guards_cover_what_the_code_calls_append_only(database: Database) -> None:
    """Every append-only and latched table has its triggers under their names."""
    query = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    if not database.is_sqlite:
        query = "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal"
    with database.reading() as session:
        triggers = {row[0] for row in session.execute(text(query))}
    for table in policy.tables.APPEND_ONLY:
        assert {f"guard_{table}_update", f"guard_{table}_delete"} <= triggers
    for table in policy.tables.LATCHED:
        assert {f"guard_{table}_fixed", f"guard_{table}_stays", f"guard_{table}_delete"} <= triggers


def test_revisions_guard_what_the_code_names() -> None:
    """The revisions together freeze exactly the columns that the code does not move, and the same tables.

    Each revision names in ``APPEND_ONLY`` and ``LATCHED`` what it guards, so that a new table needs no
    change here.
    """
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    frozen: dict[str, set[str]] = {}
    append_only: set[str] = set()
    for script in scripts.walk_revisions():
        append_only |= set(getattr(script.module, "APPEND_ONLY", ()))
        for table, columns in getattr(script.module, "LATCHED", {}).items():
            frozen.setdefault(table, set()).update(columns)
    assert append_only == set(policy.tables.APPEND_ONLY)
    assert frozen.keys() == policy.tables.LATCHED.keys()
    for table, movable in policy.tables.LATCHED.items():
        columns = {column.name for column in Base.metadata.tables[table].columns}
        assert frozen[table] == columns - set(movable), table


def test_there_is_one_head() -> None:
    """Revisions form one line."""
    assert len(ScriptDirectory(str(Path(migrations.__file__).parent)).get_heads()) == 1


def test_several_nodes_may_upgrade_at_once(postgres: object) -> None:
    """Four nodes that start together leave one whole schema."""
    databases = [Database(url) for url in [postgres.unmigrated()] * 4]  # type: ignore[attr-defined]
    errors: list[Exception] = []

    def run(database: Database) -> None:
        try:
            migrations.upgrade(database.engine)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert migrations.current(databases[0].engine) == migrations.head()
    for one in databases:
        one.close()


def test_a_failed_upgrade_leaves_nothing(unmigrated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade that fails halfway is as if it never began."""
    database = Database(unmigrated_url)
    with monkeypatch.context() as patch:
        patch.setattr("migrations.guards.gapless", _fail)
        with pytest.raises(RuntimeError, match="halfway"):
            migrations.upgrade(database.engine)
    assert inspect(database.engine).get_table_names() == []
    migrations.upgrade(database.engine)
    assert migrations.current(database.engine) == migrations.head()
    database.close()


def _fail(*_words: object, **_named: object) -> None:
    raise RuntimeError("halfway")


def test_the_package_carries_its_migrations() -> None:
    """Environment and revisions lie in the package itself, readable wherever it is installed."""
    folder = Path(migrations.__file__).parent
    assert (folder / "env.py").is_file()
    assert list((folder / "versions").glob("*_founding.py"))
