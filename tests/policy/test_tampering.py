# SPDX-License-Identifier: Apache-2.0
"""Whoever has the database changes a stored row behind every guard: the verifier finds it and names it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, insert, select, text
from sqlalchemy.orm import Session
from town import START, Town, usage

import policy.tables
from model_core.packing.keys import generate_key
from policy.audit.adopting import adopt
from policy.audit.chain import Audit
from policy.audit.rows import RECOMPUTED, UNSEALED, key_text
from policy.audit.sealing import _lock_key, append_seal, make_seal, seal_database, seal_of
from policy.audit.verifying import sealed_tables, verify_rows
from policy.records.audit import AuditReport, Checkpoint
from policy.records.items import RulePermit
from policy.tables.seals import SealRow
from tenants.accounts.accounts import Accounts
from tenants.accounts.database import Database
from tenants.accounts.schema import Base
from tenants.accounts.scope import PLATFORM
from tenants.accounts.tables import KeyRow

KEY = generate_key()
TABLES = sorted(table.name for table in sealed_tables())
assert policy.tables.AuditRow.__tablename__ in TABLES

Row = dict[str, Any]


def story(database: Database) -> Town:
    """Two owners, two experts, money, a withdrawal: rows in most tables, by the acts that make them."""
    town = Town(database)
    letters, numbers = town.expert(), town.expert("beta", "numbers")
    town.open_all(letters, numbers)
    town.budget("shop", 1_000_000)
    town.budget("club", 1_000)
    bundles = [one.bundle_digest for one in town.act(lambda register: register.experts())]
    for sequence in (1, 2):
        held = town.reserve()
        shares = dict.fromkeys(bundles, 25_000_000)
        with town.metering() as metering:
            metering.record("host", sequence, [usage(held, shares, 50, final=True)])
    town.reserve()
    with town.ledger() as ledger:
        ledger.settle(town.olga)
    with town.register() as register:
        register.withdraw_consent(register.consents("acme")[0].id, town.ada)
    return town


def test_everything_that_is_written_is_sealed(database: Database) -> None:
    """After a busy story every row of every table is the one that the seals speak of."""
    story(database)
    with database.reading() as session:
        report = Audit(session, START).verify()
    assert (report.ok, report.bad, report.tail) == (True, (), "not proven")
    assert report.rows > 100
    assert report.seals > 10


def test_every_table_is_sealed_or_says_why_not() -> None:
    """Only the seals, the notes for the next epoch, and sums that are added up again, are left out."""
    assert UNSEALED & set(Base.metadata.tables) == {"seals", "seal_drafts", "unpublished"}
    assert {(table, name) for table, names in RECOMPUTED.items() for name in names} == {
        ("budgets", "spent_micro"),
        ("budgets", "held_micro"),
    }


# -- every table, every kind of tampering -----------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[Engine]:
    """A database with at least two rows in every table, without its guards."""
    path = tmp_path_factory.mktemp("tampering") / "stored.db"
    path.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{path}", scope=PLATFORM)
    event.listen(database.engine, "connect", _unguarded)
    seal_database(database)
    story(database)
    with database.engine.begin() as connection:
        drop_triggers(connection)
    with database.unit_of_work() as session:
        for mapper in Base.registry.mappers:
            table: Any = mapper.local_table
            if table.name in UNSEALED:
                continue
            for number in range(2 - len(session.connection().execute(select(table)).all())):
                session.execute(insert(mapper.class_), [made_up(table, number)])
    with database.unit_of_work() as session:
        Audit(session, START).append("platform", "story.end", "story", {})
    database.close()
    engine = create_engine(f"sqlite:///{path}")
    event.listen(engine, "connect", _unguarded)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    yield engine
    engine.dispose()


def _unguarded(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=OFF")
    connection.execute("PRAGMA ignore_check_constraints=ON")


def made_up(table: Any, number: int) -> Row:
    """A row for a table that the story leaves empty."""
    return {column.name: _other(column, number + 1, "made up") for column in table.columns}


def _other(column: Any, number: int, word: str) -> Any:
    kind = column.type.python_type
    if kind is str:
        return f"{word} {number}"
    return kind(number) if kind is not bytes else zlib.compress(f"{word} {number}".encode())


def drop_triggers(connection: Connection) -> None:
    """What somebody with the database's password does first."""
    for (name,) in connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
        connection.exec_driver_sql(f"DROP TRIGGER {name}")


def rows_of(connection: Connection, table: Any) -> list[Row]:
    """Every row, by primary key."""
    found = connection.execute(select(table).order_by(*table.primary_key.columns))
    return [dict(row) for row in found.mappings()]


def key_of(table: Any, row: Row) -> str:
    """A row's key as reports name it."""
    return f"{table.name} {key_text(tuple(row[column.name] for column in table.primary_key))}"


def where(table: Any, row: Row) -> Any:
    """The condition that finds a row."""
    conditions = [column == row[column.name] for column in table.primary_key]
    return conditions[0] if len(conditions) == 1 else conditions[0] & where_rest(conditions[1:])


def where_rest(conditions: list[Any]) -> Any:
    """All of several conditions."""
    first, *rest = conditions
    return first & where_rest(rest) if rest else first


def verify_after(engine: Engine, act: Callable[[Connection], None]) -> AuditReport:
    """What the verifier says after an act that is undone afterwards."""
    with engine.connect() as connection, connection.begin() as transaction:
        act(connection)
        with Session(connection, join_transaction_mode="rollback_only") as session:
            report = Audit(session, START).verify()
        transaction.rollback()
    return report


def test_untouched_rows_hold(stored: Engine) -> None:
    """Nothing is found where nothing was done."""
    report = verify_after(stored, lambda connection: None)
    assert (report.ok, report.bad) == (True, ())


@pytest.mark.parametrize("name", TABLES)
def test_every_edited_column_is_found(stored: Engine, name: str) -> None:
    """Each column of each table, changed alone, makes the report name exactly that row first."""
    table: Any = Base.metadata.tables[name]
    with stored.connect() as connection:
        row = rows_of(connection, table)[0]
    for column in table.columns:
        if column.primary_key:
            continue
        value = row[column.name]
        other = _other(column, 7_777, "other") if column.type.python_type is not bytes else value + b"x"

        def edit(connection: Connection, change: Row = {column.name: other}) -> None:  # noqa: B006
            connection.execute(table.update().where(where(table, row)).values(change))

        report = verify_after(stored, edit)
        assert not report.ok, column.name
        assert report.bad[0] == key_of(table, row), (column.name, report.sentence)
        assert report.bad[0] in report.sentence


@pytest.mark.parametrize("name", TABLES)
def test_deleted_inserted_swapped_and_truncated_rows_are_found(stored: Engine, name: str) -> None:
    """A row that is missing, put in or exchanged with another, and a table that was emptied, are named."""
    table: Any = Base.metadata.tables[name]
    with stored.connect() as connection:
        first, second, *_ = rows_of(connection, table)
    keys = {column.name for column in table.primary_key}
    added = {**first, **{name: _other(table.columns[name], 9_999, "added") for name in keys}}
    swapped = [
        {**second, **{name: first[name] for name in keys}},
        {**first, **{name: second[name] for name in keys}},
    ]
    gone = where(table, first)
    both = gone | where(table, second)

    def put(connection: Connection, *rows: Row) -> None:
        connection.execute(table.insert(), list(rows))

    def swap(connection: Connection) -> None:
        connection.execute(table.delete().where(both))
        put(connection, *swapped)

    acts: dict[str, tuple[Callable[[Connection], Any], Row]] = {
        "delete": (lambda connection: connection.execute(table.delete().where(gone)), first),
        "truncate": (lambda connection: connection.execute(table.delete()), first),
        "swap": (swap, first),
        "insert": (lambda connection: put(connection, added), added),
    }
    for column in table.columns:
        if column.unique or any(column.name in one.columns for one in _uniques(table)):
            added[column.name] = _other(column, 9_999, "added")
    for act, (do, row) in acts.items():
        if act == "swap" and swapped[0] == first:
            continue  # they say the same but for their keys: exchanging them changes nothing
        report = verify_after(stored, do)
        assert not report.ok, act
        named = {bad.partition(" ")[0] for bad in report.bad}
        assert name in named, (act, report.sentence)
        if act != "truncate" and name != "audit":
            assert key_of(table, row) in report.bad, (act, report.bad)


def _uniques(table: Any) -> list[Any]:
    from sqlalchemy import UniqueConstraint

    return [one for one in table.constraints if isinstance(one, UniqueConstraint)]


# -- the seals themselves ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statements", "seal", "reason"),
    [
        (["UPDATE seals SET at_us = at_us + 1 WHERE seq = 3"], 3, "seal_content"),
        (["UPDATE seals SET rows = rows + 1 WHERE seq = 3"], 3, "seal_content"),
        (
            ["UPDATE seals SET document = (SELECT document FROM seals WHERE seq = 4) WHERE seq = 3"],
            3,
            "seal_content",
        ),
        (["UPDATE seals SET prev_hash = leaf_hash WHERE seq = 3"], 3, "seal_link"),
        (["DELETE FROM seals WHERE seq = 3"], 4, "seal_missing_or_inserted"),
        (
            [
                "UPDATE seals SET seq = -1 WHERE seq = 3",
                "UPDATE seals SET seq = 3 WHERE seq = 4",
                "UPDATE seals SET seq = 4 WHERE seq = -1",
            ],
            3,
            "seal_link",
        ),
    ],
)
def test_tampering_with_seals_is_found(stored: Engine, statements: list[str], seal: int, reason: str) -> None:
    """A seal that was changed, removed or moved is the first bad record."""

    def act(connection: Connection) -> None:
        for statement in statements:
            connection.exec_driver_sql(statement)

    report = verify_after(stored, act)
    assert (report.ok, report.reason, report.bad[0]) == (False, reason, f"seals {seal}")


def checkpoint(engine: Engine) -> Checkpoint:
    """A checkpoint that was exported before anything happened."""
    with engine.connect() as connection, Session(connection) as session:
        return Audit(session, START).checkpoint(KEY)


def reseal(connection: Connection, first: int, keep: Callable[[Any], bool]) -> None:
    """Writes the seals from one on anew, over the rows as they are now: what a patient forger does."""
    seals = [seal_of(row) for row in connection.execute(select(SealRow.__table__).order_by(SealRow.seq))]
    connection.execute(SealRow.__table__.delete().where(SealRow.seq >= first))  # type: ignore[attr-defined]
    last = seals[first - 2].leaf_hash
    for seq, old in enumerate(seals[first - 1 :], first):
        new = make_seal(seq, old.at_us, last, [entry for entry in old.entries() if keep(entry)])
        row = {name: getattr(new, name) for name in type(new).__slots__}
        connection.execute(insert(SealRow), [{**row, "document": zlib.compress(new.document)}])
        last = new.leaf_hash


def test_a_full_rewrite_needs_a_checkpoint(stored: Engine) -> None:
    """Seals written anew over a table that lost its rows hold by themselves, and fail a kept checkpoint."""
    point = checkpoint(stored)

    def rewrite(connection: Connection) -> None:
        connection.execute(Base.metadata.tables["statements"].delete())
        reseal(connection, 5, lambda entry: entry.table != "statements")

    with stored.connect() as connection, connection.begin() as transaction:
        rewrite(connection)
        with Session(connection, join_transaction_mode="rollback_only") as session:
            audit = Audit(session, START)
            assert audit.verify().tail == "not proven"
            assert audit.verify().ok
            report = audit.verify([point], {KEY.public_key})
        transaction.rollback()
    assert (report.ok, report.reason) == (False, "seals_rewritten")


def test_a_truncation_needs_a_checkpoint(stored: Engine) -> None:
    """The last seal and all it speaks of can vanish together, unless a checkpoint counts it."""
    point = checkpoint(stored)

    def cut(connection: Connection) -> None:
        last = connection.execute(select(SealRow.__table__).order_by(SealRow.seq.desc()).limit(1)).one()
        for entry in seal_of(last).entries():
            table = Base.metadata.tables[entry.table]
            (column,) = table.primary_key.columns
            connection.execute(table.delete().where(column == column.type.python_type(entry.key)))
        connection.execute(SealRow.__table__.delete().where(SealRow.seq == last.seq))  # type: ignore[attr-defined]

    with stored.connect() as connection, connection.begin() as transaction:
        cut(connection)
        with Session(connection, join_transaction_mode="rollback_only") as session:
            audit = Audit(session, START)
            assert audit.verify().ok
            report = audit.verify([point], {KEY.public_key})
            assert (report.ok, report.reason) == (False, "truncated")
            older = point.model_copy(update={"length": 0, "head": "sha256:" + "0" * 64})
            held = verify_rows(session, asked={older.seals})
            assert held.seals == point.seals - 1
        transaction.rollback()


# -- what follows from the acts ---------------------------------------------------------------------------


def test_what_was_written_by_the_product_itself_must_follow_from_the_acts(database: Database) -> None:
    """Rows changed through the product's own sessions are sealed; that no act explains them is found."""
    town = story(database)
    if database.is_sqlite:
        with database.engine.begin() as connection:
            drop_triggers(connection)
    row = policy.tables
    changes: list[tuple[Any, str, Callable[[Any], Any], str]] = [
        (row.PublicationRow, "reason", lambda _: "nothing", "publication_unexplained"),
        (row.ChangeRow, "epoch", lambda epoch: epoch + 1, "change_unexplained"),
        (row.DeploymentRow, "document", _with_other_purpose, "deployment_differs"),
        (row.BudgetRow, "spent_micro", lambda spent: spent + 1, "budget_differs"),
    ]
    for kind, column, change, reason in changes:
        before: Any = None
        for back in (False, True):
            with database.unit_of_work() as session:
                if not database.is_sqlite:
                    session.execute(text("SET LOCAL session_replication_role = replica"))
                found: Any = session.scalars(
                    select(kind).order_by(*kind.__table__.primary_key.columns)
                ).first()
                before = before if back else getattr(found, column)
                setattr(found, column, before if back else change(before))
            with database.reading() as session:
                report = Audit(session, START).verify()
            assert (report.ok, report.reason) == ((True, "") if back else (False, reason))
    assert town.now > START


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("act", "stage", "others"),
    [
        ("changes.reject", "", ("failed", "revised")),
        ("changes.withdraw", "withdrawn", ("", "failed")),
        ("changes.revise", "revised", ("", "withdrawn")),
        ("changes.fail", "failed", ("", "withdrawn")),
    ],
)
def test_how_a_change_was_closed_follows_from_the_act(
    database: Database, act: str, stage: str, others: tuple[str, ...]
) -> None:
    """A closed change that says it ended otherwise, or is open again, or that no act closed, is found."""
    town = Town(database)
    with database.unit_of_work() as session:
        audit = Audit(session, START)
        audit.append("platform", "tenants.create", "tenants/platform", {})
        for key in session.scalars(select(KeyRow)).all():
            audit.append("platform", "keys.create", f"keys/{key.key_id}", {"roles": key.roles.split()})
    change = town.propose(town.carl, RulePermit(text="schools"))
    with database.engine.begin() as connection:
        drop_triggers(connection)

    def verified_as(state: str, said: str) -> AuditReport:
        with database.unit_of_work() as session:
            row = session.get_one(policy.tables.ChangeRow, change.id)
            row.state, row.stage = state, said
        with database.reading() as session:
            return Audit(session, START).verify()

    assert verified_as("proposed", "").ok
    unexplained = verified_as("rejected", stage)
    assert (unexplained.reason, unexplained.bad) == ("change_unexplained", (f"changes {change.id}",))
    with database.unit_of_work() as session:
        Audit(session, START).append("platform", act, f"changes/{change.id}", {})
    assert verified_as("rejected", stage).ok
    assert verified_as("proposed", "").reason == "change_unexplained"
    for other in others:
        assert verified_as("rejected", other).reason == "change_unexplained"


def _with_other_purpose(document: str) -> str:
    return json.dumps({**json.loads(document), "purpose": "advertising"})


def test_tampering_is_found_on_either_engine(database: Database) -> None:
    """The same statements behind the guards of either engine are named alike."""
    story(database)
    for statement, bad in (
        ("UPDATE consents SET state = 'given'", "consents"),
        ("DELETE FROM consent_events", "consent_events"),
        ("UPDATE usage_shares SET amount_micro = 0", "usage_shares"),
        ("DELETE FROM statements", "statements"),
    ):
        with database.engine.connect() as connection, connection.begin() as transaction:
            if database.is_sqlite:
                drop_triggers(connection)
            else:
                connection.execute(text("SET LOCAL session_replication_role = replica"))
                connection.execute(text("SELECT set_config('marketplace.tenant', '*', true)"))
            connection.exec_driver_sql(statement)
            with Session(connection, join_transaction_mode="rollback_only") as session:
                report = Audit(session, START).verify()
            transaction.rollback()
        assert (report.ok, report.bad[0].partition(" ")[0]) == (False, bad)


def test_rows_of_before_there_were_seals_are_adopted_once(tmp_path: Path, sqlite_template: Path) -> None:
    """A database of an earlier release is sealed as it is, the chain says so, and nothing is taken twice."""
    path = tmp_path / "earlier.db"
    path.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{path}", scope=PLATFORM)
    try:
        story(database)
        with database.reading() as session:
            assert Audit(session, START).verify().reason == "row_inserted"
        seal_database(database)
        with database.unit_of_work() as session:
            adopted = adopt(session, "0042", START)
        with database.unit_of_work() as session:
            assert adopt(session, "0042", START) == 0
        with database.reading() as session:
            audit = Audit(session, START)
            assert audit.verify().ok
            record = audit.last_of("schema:0042", "seals.adopt")
        assert record is not None
        assert record.facts == {"rows": adopted}
    finally:
        database.close()


def test_writers_that_find_the_chain_taken_leave_drafts(postgres: Any) -> None:
    """On PostgreSQL a busy chain keeps nobody waiting: what waits is held to as well, and sealed next."""
    database = Database(postgres.emptied(), scope=PLATFORM)
    seal_database(database)
    try:
        with database.unit_of_work() as session:
            Accounts(session, START).create_tenant("before", "Before")
        with database.engine.connect() as other, other.begin():
            other.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _lock_key()})
            for number in range(3):
                with database.unit_of_work() as session:
                    Accounts(session, START).create_tenant(f"busy-{number}", "Busy")
            with database.unit_of_work() as session:
                Accounts(session, START).suspend_tenant("busy-1")
        with database.reading() as session:
            report = verify_rows(session)
        assert (report.count, report.seals, report.waiting) == (0, 1, 4)
        with database.unit_of_work() as session:
            append_seal(session, (), START)
        with database.reading() as session:
            report = verify_rows(session)
        assert (report.count, report.seals, report.waiting) == (0, 2, 0)
        with database.reading() as session:
            assert append_seal(session, (), START) is None
    finally:
        database.close()


def test_many_writers_at_once_leave_one_chain(postgres: Any) -> None:
    """Eight writers on PostgreSQL, some in the audit: every row is sealed, in one chain without gaps."""
    database = Database(postgres.emptied(), scope=PLATFORM)
    seal_database(database)

    def write(number: int) -> None:
        for turn in range(6):
            with database.unit_of_work() as session:
                Accounts(session, START).create_tenant(f"tenant-{number}-{turn}", "One of many")
                if turn % 3 == number % 3:
                    Audit(session, START).append("platform", "tenants.make", f"{number}/{turn}", {})

    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
        with database.unit_of_work() as session:
            append_seal(session, (), START)
        with database.reading() as session:
            report = Audit(session, START).verify()
        assert (report.ok, report.sentence.partition(";")[0]) == (True, "Every record holds")
        assert report.rows == 8 * 6 + report.length
    finally:
        database.close()
