# SPDX-License-Identifier: Apache-2.0
"""The release before on the schema of this one, and databases of every past revision on their way here.

``previous_release/story.json`` holds the statements that the code of the previous release (revision 0003)
sent while a small marketplace ran through its acts, in their order, with their values; ``columns.json`` the
columns that it knew. Neither is ever written anew: whatever that code sent must go on working.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

import migrations
from tenants.accounts.database import Database

FROZEN = Path(__file__).parent / "previous_release"
STORY: list[Any] = json.loads((FROZEN / "story.json").read_text(encoding="utf-8"))
COLUMNS: dict[str, list[str]] = json.loads((FROZEN / "columns.json").read_text(encoding="utf-8"))
SCRIPTS = ScriptDirectory(str(Path(migrations.__file__).parent))
REVISIONS = [script.revision for script in reversed(list(SCRIPTS.walk_revisions()))]
PREVIOUS, HEAD = "0003", REVISIONS[-1]
# A new PostgreSQL database takes seconds, and each step stands between the same two there.
ON_POSTGRES = ("0001", PREVIOUS, REVISIONS[-2])


def values(parameters: list[Any]) -> tuple[Any, ...]:
    """Parameters as the driver takes them."""
    return tuple(base64.b64decode(one["bytes"]) if isinstance(one, dict) else one for one in parameters)


def told_until(revision: str) -> list[Any]:
    """As much of the story as the schema of a revision can take."""
    if revision >= PREVIOUS:
        return STORY
    later = ("operation_repeats", "key_id, deployment")
    end = next(
        place
        for place, one in enumerate(STORY)
        if not isinstance(one, str) and any(word in one[0] for word in later)
    )
    return STORY[: max(place for place, one in enumerate(STORY[:end]) if one == "commit") + 1]


def replay(database: Database, story: list[Any]) -> None:
    """Sends the statements of the story, as the previous release did."""
    words = {"savepoint": "SAVEPOINT s", "undo": "ROLLBACK TO SAVEPOINT s", "keep": "RELEASE SAVEPOINT s"}
    with database.engine.connect() as connection:
        see_everything(connection)
        for one in story:
            if isinstance(one, str) and one in words:
                connection.exec_driver_sql(words[one])
            elif isinstance(one, str):
                getattr(connection, one)()
                see_everything(connection)
            else:
                sql = one[0] if database.is_sqlite else one[0].replace("?", "%s")
                connection.exec_driver_sql(sql, values(one[1]))


def see_everything(connection: Connection) -> None:
    """What ``ALTER ROLE … SET marketplace.tenant = '*'`` does for code that names no scope."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT set_config('marketplace.tenant', '*', true)"))


def contents(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Every row in the columns that the previous release knew."""
    with database.engine.connect() as connection:
        see_everything(connection)
        known = {
            name: columns
            for name, columns in COLUMNS.items()
            if database.engine.dialect.has_table(connection, name)
        }
        return {
            name: sorted(
                (tuple(row) for row in connection.execute(text(f"SELECT {', '.join(columns)} FROM {name}"))),
                key=repr,
            )
            for name, columns in known.items()
        }


def upgrade_to(database: Database, revision: str) -> None:
    """Brings a database to a revision that is not the last."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with database.engine.begin() as connection:
        see_everything(connection)
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


@pytest.fixture(scope="session")
def as_it_was(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Any, ...]]]:
    """What the story left under the previous release's own schema."""
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('previous')}/m.db")
    upgrade_to(database, PREVIOUS)
    replay(database, STORY)
    found = contents(database)
    database.close()
    return found


def test_the_story_is_told_in_every_table(as_it_was: dict[str, list[tuple[Any, ...]]]) -> None:
    """The frozen statements fill every table of that release but one, and both write and read."""
    assert {name for name, rows in as_it_was.items() if not rows} <= {"licenses"}
    verbs = {one[0].split()[0] for one in STORY if not isinstance(one, str)}
    assert verbs == {"SELECT", "INSERT", "UPDATE"}


@pytest.mark.parametrize(
    ("engine", "revision"),
    [("sqlite", one) for one in REVISIONS[:-1]] + [("postgresql", one) for one in ON_POSTGRES],
)
def test_rows_survive_the_way_from_every_revision(
    request: pytest.FixtureRequest, tmp_path: Path, engine: str, revision: str
) -> None:
    """A database with rows that stopped at any revision reaches the last one with every row as it was."""
    url = f"sqlite:///{tmp_path}/m.db"
    if engine == "postgresql":
        url = request.getfixturevalue("postgres").unmigrated()
    database = Database(url)
    upgrade_to(database, revision)
    replay(database, told_until(revision))
    before = contents(database) if revision >= PREVIOUS else {}
    count = {name: len(rows) for name, rows in before.items()}
    migrations.upgrade(database.engine)
    after = contents(database)
    assert count == {} or before == after
    assert len(after["tenants"]) == 5
    assert migrations.current(database.engine) == HEAD
    database.close()


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_old_code_works_on_the_new_schema(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    sqlite_template: Path,
    as_it_was: dict[str, list[tuple[Any, ...]]],
    engine: str,
) -> None:
    """The previous release reads and writes this release's schema, with the office's rights, as its own."""
    if engine == "postgresql":
        url = request.getfixturevalue("postgres").emptied()
    else:
        url = f"sqlite:///{tmp_path}/m.db"
        (tmp_path / "m.db").write_bytes(sqlite_template.read_bytes())
    database = Database(url)
    replay(database, STORY)
    assert contents(database) == as_it_was
    database.close()


def test_what_is_kept_for_ever_is_not_downgraded() -> None:
    """Going back over a revision that guards rows is refused."""
    for script in SCRIPTS.walk_revisions():
        if getattr(script.module, "APPEND_ONLY", None) or getattr(script.module, "LATCHED", None):
            with pytest.raises(NotImplementedError):
                script.module.downgrade()
