# SPDX-License-Identifier: Apache-2.0
"""Roles on PostgreSQL: who owns, who works, who reads, and who is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

import migrations
from cluster.bootstrap import open_database, upgrade_database
from cluster.cli.main import root
from cluster.settings import Settings
from migrations.rights import APPLICATION, DECIDED_FROM
from policy.publishing.publication import Publisher
from policy.records.items import RulePermit
from policy.tables import APPEND_ONLY, LATCHED
from tenants.accounts.database import Database
from tenants.accounts.role_check import check_role
from tenants.accounts.schema import Base
from tenants.errors import SchemaBehind, UnsafeDatabaseRole
from tests.policy.town import Town

EVERY_RIGHT = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")


@pytest.fixture
def clean_role(postgres: Any) -> str:
    """A login of the application's group and of no other."""
    return str(postgres.login("clean_office", APPLICATION))


def test_the_application_has_the_rights_that_guards_leave(postgres: Any) -> None:
    """It adds and reads; it updates what may move and deletes what may go; it truncates and owns nothing."""
    engine = create_engine(postgres.url("blank"))
    with engine.connect() as connection:

        def may(right: str, table: str, column: str | None = None) -> bool:
            kind, what = ("column", f"'{table}', '{column}'") if column else ("table", f"'{table}'")
            query = f"SELECT has_{kind}_privilege('{APPLICATION}', {what}, '{right}')"
            return bool(connection.scalar(text(query)))

        for table in Base.metadata.tables:
            held = {right for right in EVERY_RIGHT if may(right, table)}
            assert {"SELECT", "INSERT"} <= held
            assert not held & {"TRUNCATE", "REFERENCES", "TRIGGER"}
            if table in APPEND_ONLY:
                assert held == {"SELECT", "INSERT"}, table
            if table in LATCHED:
                assert held == {"SELECT", "INSERT"}, table
                columns = [column.name for column in Base.metadata.tables[table].columns]
                assert {one for one in columns if may("UPDATE", table, one)} == set(LATCHED[table])
        owners = connection.scalars(
            text("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
        )
        assert list(owners) == ["marketplace_migrator"]
        unforced = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname = ANY(:names) "
        loose = text(unforced + "AND NOT (relrowsecurity AND relforcerowsecurity)")
        assert list(connection.scalars(loose, {"names": list(Base.metadata.tables)})) == []
    engine.dispose()


def test_the_decider_reads_publications_and_nothing_else(postgres: Any) -> None:
    """It sees what is published, writes nothing, and is refused at every other table."""
    engine = create_engine(postgres.url("blank", "marketplace_reader"))
    for table in Base.metadata.tables:
        with engine.connect() as connection:
            if table in DECIDED_FROM:
                connection.execute(text(f"SELECT count(*) FROM {table}"))
            else:
                with pytest.raises(DBAPIError, match="permission denied"):
                    connection.execute(text(f"SELECT count(*) FROM {table}"))
    with engine.connect() as connection, pytest.raises(DBAPIError, match="permission denied"):
        connection.execute(text("DELETE FROM publications"))
    engine.dispose()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_the_decider_can_read_what_it_decides_from(postgres: Any, database: Database) -> None:
    """As the role that only decides, a published epoch is read whole, and checked against its digest."""
    town = Town(database)
    town.widen(town.carl, town.cleo, RulePermit(text="to begin with"))
    town.widen(town.carl, town.cleo, RulePermit(text="and on", purpose="research"))
    published = town.act(lambda register: register.snapshot())
    reader = Database(postgres.url("blank", "marketplace_reader"))
    with reader.reading() as session:
        read = Publisher(session, town.now).snapshot()
    reader.close()
    assert (read.epoch, read.rules) == (2, published.rules)


@pytest.mark.parametrize(
    ("role", "why"),
    [
        (None, "it is a superuser"),
        ("marketplace_migrator", "it owns tables"),
        ("bypassing", "it bypasses row-level security"),
        ("marketplace_office", "it is a superuser"),  # here it is a member of the superuser's role
    ],
)
def test_roles_that_get_around_the_guards_are_refused(postgres: Any, role: str | None, why: str) -> None:
    """A superuser, the owner, one with BYPASSRLS and a member of such a role do not pass."""
    if role == "bypassing":
        postgres.login(role, APPLICATION, "BYPASSRLS")
    engine = create_engine(postgres.url("blank", role))
    with pytest.raises(UnsafeDatabaseRole) as refusal:
        check_role(engine)
    assert why in refusal.value.facts["why"]
    assert "marketplace database roles" in refusal.value.sentence
    engine.dispose()


def test_up_upgrades_as_the_owner_and_works_as_the_office(
    postgres: Any, clean_role: str, tmp_path: Path
) -> None:
    """Without the owner's URL an old schema is refused; with it the office then opens the database."""
    migrator = postgres.unmigrated()
    name = migrator.rpartition("/")[2].partition("?")[0]
    office = Settings(home=tmp_path, database_url=postgres.url(name, clean_role))
    with pytest.raises(SchemaBehind, match="MIGRATOR"):
        upgrade_database(office)
    with pytest.raises(SchemaBehind):
        open_database(office)
    upgrade_database(office.model_copy(update={"migrator_database_url": migrator}))
    upgrade_database(office)
    database = open_database(office)
    assert migrations.current(database.engine) == migrations.head()
    database.close()


def test_rights_are_laid_down_once(postgres: Any) -> None:
    """A second upgrade changes no policy, so that running offices are not locked out."""
    database = Database(postgres.url("blank", "marketplace_migrator"))
    query = text("SELECT max(oid) FROM pg_policy")
    with database.engine.connect() as connection:
        before = connection.scalar(query)
    migrations.upgrade(database.engine)
    with database.engine.connect() as connection:
        assert connection.scalar(query) == before
    database.close()


def test_the_owners_url_stays_where_it_is_read(tmp_path: Path) -> None:
    """Neither the document for other processes nor what people are shown holds it."""
    settings = Settings(home=tmp_path, migrator_database_url="postgresql://owner:canary@h/d")
    assert "canary" not in str(settings.model_dump()) + settings.model_dump_json() + str(settings.public())


def test_the_script_is_printed() -> None:
    """An administrator gets the script from the command line."""
    said = CliRunner().invoke(root, ["database", "roles"])
    assert said.exit_code == 0
    assert "CREATE ROLE" in said.output
