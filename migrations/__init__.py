# SPDX-License-Identifier: Apache-2.0
"""The schema's history: brings a database of any past release to the present one.

Works from any working directory, in one transaction: a database is upgraded as a whole or not at all.
Knows tables and triggers, not what they mean.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from migrations import rights
from tenants.accounts.isolation import EVERYBODY, SETTING

_LOCK_KEY: Final = 7_305_441_020_517_113


def upgrade(engine: Engine) -> None:
    """Brings the schema to this release. Does nothing to a database that is there already.

    Several nodes may call it at the same time: on PostgreSQL they wait for each other, on SQLite there is
    but one.
    """
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
            # The owner is held to row-level security as well, and migrations move everybody's rows.
            connection.execute(text(f"SELECT set_config('{SETTING}', '{EVERYBODY}', true)"))
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if connection.dialect.name == "postgresql":
            rights.lay_down(connection)


def current(engine: Engine) -> str | None:
    """The revision that the database is at; None when it was never upgraded."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


@cache
def head() -> str:
    """The revision of this release; the files of its history are read once a process."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise RuntimeError("the package was built without its migrations")
    return revision


def _config() -> Config:
    config = Config()
    # Alembic reads options with interpolation, hence the doubled percent signs of an odd folder name.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
