# SPDX-License-Identifier: Apache-2.0
"""Law 14: the audit and everything else that only grows can not be changed, and tampering is found."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError
from town import ERASURE_TABLES, START, WORKFLOW_TABLES, Town, usage

from model_core.packing.keys import SigningKey, generate_key
from policy.audit.chain import ORIGIN, Audit, leaf_hash, verify_chain
from policy.records.audit import AuditRecord, Checkpoint
from policy.tables import APPEND_ONLY, LATCHED
from tenants.accounts.database import Database
from tenants.accounts.schema import Base

KEY: SigningKey = generate_key()


def chain(database: Database, length: int) -> list[AuditRecord]:
    """Appends records and returns all."""
    for n in range(length):
        with database.unit_of_work() as session:
            Audit(session, START + n).append("pri_x", "test.act", f"object-{n}", {"n": n, "word": "ä"})
    with database.reading() as session:
        return Audit(session, START).records(limit=1000)


def checkpoint(database: Database) -> Checkpoint:
    """A signed checkpoint of the chain as it is."""
    with database.reading() as session:
        return Audit(session, START).checkpoint(KEY)


def tamper(database: Database, *statements: str) -> None:
    """Changes the stored chain the way somebody with the database's password would."""
    with database.engine.begin() as connection:
        if database.is_sqlite:
            for name in connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")):
                connection.execute(text(f"DROP TRIGGER {name[0]}"))
        else:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_chain_verifies_and_pages(database: Database) -> None:
    """An untouched chain holds, says that its tail is not proven, and reads in pages."""
    records = chain(database, 5)
    with database.reading() as session:
        audit = Audit(session, START)
        report = audit.verify()
        assert (report.ok, report.length, report.tail) == (True, 5, "not proven")
        assert report.head == records[-1].leaf_hash
        assert [one.seq for one in audit.records(after=2, limit=2)] == [3, 4]
        assert verify_chain(records).ok
        assert audit.verify([audit.checkpoint(KEY)], {KEY.public_key}).tail == "proven"


@pytest.mark.parametrize(
    ("statements", "first_bad", "reason"),
    [
        (["UPDATE audit SET actor = 'pri_y' WHERE seq = 3"], 3, "content"),
        (["UPDATE audit SET facts = '{\"n\":7}' WHERE seq = 3"], 3, "content"),
        (["UPDATE audit SET facts = 'not json' WHERE seq = 3"], 3, "content"),
        (["UPDATE audit SET at_us = at_us + 1 WHERE seq = 1"], 1, "content"),
        (["DELETE FROM audit WHERE seq = 3"], 4, "missing_or_inserted"),
        (["DELETE FROM audit WHERE seq = 1"], 2, "missing_or_inserted"),
        (
            [
                "DELETE FROM audit WHERE seq = 3",
                "UPDATE audit SET seq = 3 WHERE seq = 4",
                "UPDATE audit SET seq = 4 WHERE seq = 5",
            ],
            3,
            "link",
        ),
        (
            [
                "UPDATE audit SET seq = 9 WHERE seq = 2",
                "UPDATE audit SET seq = 2 WHERE seq = 3",
                "UPDATE audit SET seq = 3 WHERE seq = 9",
            ],
            2,
            "link",
        ),
        (["UPDATE audit SET leaf_hash = prev_hash WHERE seq = 5"], 5, "content"),
    ],
)
def test_tampering_is_found_at_its_record(
    database: Database, statements: list[str], first_bad: int, reason: str
) -> None:
    """Editing, deleting and reordering behind the guards is found, and the first bad record is named."""
    chain(database, 5)
    tamper(database, *statements)
    with database.reading() as session:
        report = Audit(session, START).verify()
    assert (report.ok, report.first_bad, report.reason) == (False, first_bad, reason)


def test_truncation_needs_a_checkpoint(database: Database) -> None:
    """A cut-off tail goes unnoticed without a checkpoint and is found with one."""
    chain(database, 5)
    point = checkpoint(database)
    tamper(database, "DELETE FROM audit WHERE seq > 3")
    with database.reading() as session:
        audit = Audit(session, START)
        assert audit.verify().tail == "not proven"
        report = audit.verify([point], {KEY.public_key})
        assert (report.ok, report.first_bad, report.reason) == (False, 4, "truncated")


def test_a_full_rewrite_needs_a_checkpoint(database: Database) -> None:
    """A chain that was written anew holds by itself and fails against an earlier checkpoint."""
    chain(database, 3)
    point = checkpoint(database)
    tamper(database, "DELETE FROM audit")
    for n in range(3):
        with database.unit_of_work() as session:
            Audit(session, START + n).append("pri_x", "other.act", f"object-{n}", {})
    with database.reading() as session:
        audit = Audit(session, START)
        assert audit.verify().ok
        report = audit.verify([point], {KEY.public_key})
        assert (report.ok, report.first_bad, report.reason) == (False, 3, "rewritten")


def test_checkpoints_must_be_signed_by_a_trusted_key(database: Database) -> None:
    """A checkpoint that was edited, or made by another key, proves nothing."""
    chain(database, 3)
    point = checkpoint(database)
    with database.reading() as session:
        audit = Audit(session, START)
        for wrong in (point.model_copy(update={"length": 2}), audit.checkpoint(generate_key())):
            report = audit.verify([wrong], {KEY.public_key})
            assert (report.ok, report.reason) == (False, "checkpoint_signature")


def test_raw_sql_can_not_fork_or_skip(database: Database) -> None:
    """The database refuses a gap, a second record of a number, and SQLite's replacing insert."""
    chain(database, 3)
    columns = "(seq, at_us, actor, action, object, facts, prev_hash, leaf_hash)"
    verbs = ["INSERT INTO"] + (["INSERT OR REPLACE INTO", "REPLACE INTO"] if database.is_sqlite else [])
    for verb in verbs:
        for seq in (2, 3, 5):
            with pytest.raises(DBAPIError), database.unit_of_work() as session:
                session.execute(
                    text(f"{verb} audit {columns} VALUES ({seq}, 1, 'x', 'x', 'x', '', 'x', 'x')")
                )
    with database.reading() as session:
        assert Audit(session, START).verify().length == 3


def test_no_append_only_table_can_be_changed(database: Database) -> None:
    """Raw UPDATE, DELETE and TRUNCATE fail on every append-only table that holds rows, and none is empty."""
    town = Town(database)
    town.open_all(town.expert())
    town.budget("shop", 1_000_000)
    held = town.reserve()
    bundle = town.act(lambda register: register.experts("acme"))[0].bundle_digest
    with town.metering() as metering:
        metering.record("host", 1, [usage(held, {bundle: 50_000_000}, 50, final=True)])
    with town.ledger() as ledger:
        ledger.settle(town.olga)
    given = town.act(lambda register: register.consents("acme"))[0].id
    with town.register() as register:
        register.record_decisions(register.deployment("shop-ask").composition)
        register.withdraw_consent(given, town.ada)
    # These rows come about in other stories, which hold them to the same.
    elsewhere = {"job_events", "licenses", *WORKFLOW_TABLES, *ERASURE_TABLES}
    for table in sorted({*APPEND_ONLY, *LATCHED} - elsewhere):
        with database.reading() as session:
            assert session.execute(text(f"SELECT count(*) FROM {table}")).scalar(), table
        movable = LATCHED.get(table, ())
        fixed = [one.name for one in Base.metadata.tables[table].columns if one.name not in movable][-1]
        statements = [f"UPDATE {table} SET {fixed} = NULL", f"DELETE FROM {table}"]
        if not database.is_sqlite:
            statements.append(f"TRUNCATE {table} CASCADE")
        for statement in statements:
            with pytest.raises(DBAPIError, match=r"append-only|never"):
                _with_every_right(database, statement)


def _with_every_right(database: Database, statement: str) -> None:
    """Raw SQL of somebody whom no missing right holds back, only a guard."""
    with database.unit_of_work() as session:
        if not database.is_sqlite:
            session.execute(text("SET LOCAL ROLE postgres"))
        session.execute(text(statement))


def test_states_do_not_go_back(database: Database) -> None:
    """Raw SQL revives no withdrawn consent, revoked grant, decided change or released hold."""
    town = Town(database)
    expert = town.expert()
    town.open_all(expert)
    town.budget("shop", 1_000_000)
    held = town.reserve()
    with town.metering() as metering:
        metering.release(held.request_id)
    with town.register() as register:
        register.withdraw_consent(register.consents("acme")[0].id, town.ada)
        register.revoke_grant(register.grants("acme")[0].id, town.ada)
    for statement in (
        "UPDATE consents SET state = 'given'",
        "UPDATE grants SET state = 'given'",
        "UPDATE changes SET state = 'proposed'",
        "UPDATE reservations SET state = 'held'",
    ):
        with pytest.raises(DBAPIError, match="never go back"), database.unit_of_work() as session:
            session.execute(text(statement))


def test_every_epoch_is_chained(database: Database) -> None:
    """Each publication has its record with the snapshot's digest, and the chain over them holds."""
    town = Town(database)
    town.open_all(town.expert())
    with town.database.reading() as session:
        audit = Audit(session, START)
        records = [one for one in audit.records() if one.action == "epoch.publish"]
        assert audit.verify().ok
    with town.register() as register:
        published = {f"epoch:{one.epoch}": one.snapshot_digest for one in register.publications()}
    assert {one.object: one.facts["snapshot_digest"] for one in records} == published


def test_metadata_names_every_guarded_table(database: Database) -> None:
    """The tables that this release calls append-only or latched exist under those names."""
    names = set(inspect(database.engine).get_table_names())
    assert names >= {*APPEND_ONLY, *LATCHED}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), length=st.integers(2, 8))
def test_any_rearrangement_is_found(data: st.DataObject, length: int) -> None:
    """Over all subsets and orders of a chain: only the chain itself, or a prefix of it, verifies."""
    records: list[AuditRecord] = []
    for n in range(length):
        records.append(_link(records, n))
    order = data.draw(st.lists(st.sampled_from(range(length)), max_size=length + 2))
    report = verify_chain([records[place] for place in order])
    assert report.ok == (order == list(range(len(order))))


def _link(records: list[AuditRecord], n: int) -> AuditRecord:
    draft = AuditRecord(
        seq=n + 1,
        at_us=START,
        actor="a",
        action="b",
        object="c",
        facts={"n": n},
        prev_hash=records[-1].leaf_hash if records else ORIGIN,
        leaf_hash="",
    )
    return draft.model_copy(update={"leaf_hash": leaf_hash(draft)})
