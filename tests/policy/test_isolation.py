# SPDX-License-Identifier: Apache-2.0
"""Whose rows a unit of work sees, on both engines by one suite: own ones, what is shown, nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, exists, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, aliased
from town import Town, usage

from policy.records.items import GrantGive
from policy.tables import (
    BudgetRow,
    ConsentEventRow,
    ConsentRow,
    DecisionRow,
    ExpertRow,
    GrantRow,
    ListingRow,
    ReservationRow,
)
from tenants.accounts.schema import Base
from tenants.accounts.scope import NOBODY, PLATFORM, OutOfScope, scope_of, see, tenant_scope, whole_register
from tenants.accounts.tables import DatasetRow, KeyRow, PrincipalRow

ROWS: list[Any] = sorted((one.class_ for one in Base.registry.mappers), key=lambda one: one.__tablename__)
OWNED = [row for row in ROWS if row.__isolation__.owners]
TENANTS = ("acme", "beta", "shop", "club")
REFUSED = (DBAPIError, OutOfScope)


@pytest.fixture
def full(town: Town) -> Town:
    """A town in which two owners and two consumers have rows in many tables."""
    ours, theirs = town.expert("acme", "one"), town.expert("beta", "two")
    town.open_all(ours, theirs)
    town.widen(town.ada, town.alan, GrantGive(expert_id=ours.expert_id, consumer_tenant="club"))
    town.budget("shop", 1_000_000)
    town.budget("club", 1_000)
    held = town.reserve()
    with town.metering() as metering:
        metering.record("host", 1, [usage(held, {ours.bundle_digest: 50_000_000}, 50, final=True)])
    with town.ledger() as ledger:
        ledger.settle(town.olga)
    given = town.act(lambda register: register.consents("beta"))[0].id
    town.act(lambda register: register.withdraw_consent(given, town.bob))
    return town


def seen(session: Session, row: Any) -> list[Any]:
    """The rows that a session sees."""
    return list(session.scalars(select(row)))


def test_a_unit_of_work_that_names_nobody_sees_nothing(full: Town) -> None:
    """Every row that is somebody's is hidden from an unset scope, as a whole and by its key."""
    for row in ROWS:
        with full.database.reading(PLATFORM) as session:
            there = [tuple(row.__mapper__.primary_key_from_instance(one)) for one in seen(session, row)]
        with full.database.reading(NOBODY) as session:
            found = seen(session, row)
            if row.__isolation__.shared:
                assert len(found) == len(there)
            elif not row.__isolation__.open_where:
                assert found == [], row
                assert all(session.get(row, key) is None for key in there[:1])


def test_a_tenant_sees_all_of_its_own_and_none_of_others(full: Town) -> None:
    """For every table the rows in a tenant's scope are exactly those that name it as owner or reader."""
    for slug in TENANTS:
        assert filled_tables(full, slug) >= 4


def filled_tables(full: Town, slug: str) -> int:
    """Compares every table in a tenant's scope with its declaration, and counts those with rows."""
    filled = 0
    for row in OWNED:
        isolation = row.__isolation__
        with full.database.reading(PLATFORM) as session:
            expected = {
                tuple(row.__mapper__.primary_key_from_instance(one))
                for one in seen(session, row)
                if slug in {getattr(one, name) for name in (*isolation.owners, *isolation.readers)}
                or any(getattr(one, name) == value for name, value in isolation.open_where.items())
            }
        with full.database.reading(tenant_scope(slug)) as session:
            found = {tuple(row.__mapper__.primary_key_from_instance(one)) for one in seen(session, row)}
        assert found == expected, row
        filled += bool(expected)
    return filled


def test_what_belongs_to_a_row_is_hidden_with_it(full: Town) -> None:
    """Keys, events of consents and lines of others are seen by whoever owns the row above them."""
    for slug in ("acme", "beta"):
        with full.database.reading(PLATFORM) as session:
            joined = select(ConsentEventRow.consent_id).join(
                ConsentRow, ConsentRow.id == ConsentEventRow.consent_id
            )
            events = set(session.scalars(joined.where(ConsentRow.tenant == slug)))
            people = select(KeyRow.key_id).join(PrincipalRow, PrincipalRow.id == KeyRow.principal_id)
            own_keys = set(session.scalars(people.where(PrincipalRow.tenant == slug)))
        assert events
        with full.database.reading(tenant_scope(slug)) as session:
            assert set(session.scalars(select(ConsentEventRow.consent_id))) == events
            assert set(session.scalars(select(KeyRow.key_id))) == own_keys


def test_no_form_of_a_question_gets_around_it(full: Town) -> None:
    """Counting, aliases, subqueries, joins and unions find nothing of others that would be there."""
    table = aliased(ConsentRow)
    inner = select(ConsentRow.id).where(ConsentRow.tenant == "beta")
    joined = select(func.count(ExpertRow.expert_id)).join(
        ConsentRow, ConsentRow.expert_id == ExpertRow.expert_id
    )
    forms: list[Any] = [
        select(func.count()).select_from(ConsentRow).where(ConsentRow.tenant == "beta"),
        select(func.count(table.id)).where(table.tenant == "beta"),
        select(func.count()).select_from(inner.subquery()),
        select(func.count(ConsentEventRow.n)).where(ConsentEventRow.consent_id.in_(inner)),
        select(exists(inner)),
        joined.where(ConsentRow.tenant == "beta"),
        select(func.count()).select_from(inner.union_all(inner).subquery()),
        select(func.count()).select_from(inner.cte()),
    ]
    with full.database.reading(PLATFORM) as session:
        assert all(session.scalar(form) for form in forms)
    with full.database.reading(tenant_scope("acme")) as session:
        assert not any(session.scalar(form) for form in forms)


def test_others_rows_are_neither_changed_nor_deleted(full: Town) -> None:
    """An update or deletion that matches another tenant's rows by id touches none of them."""
    with full.database.reading(PLATFORM) as session:
        before = session.scalar(select(BudgetRow.limit_micro).where(BudgetRow.tenant == "shop"))
    with full.database.unit_of_work(tenant_scope("acme")) as session:
        changed: Any = session.execute(
            update(BudgetRow).where(BudgetRow.tenant == "shop").values(limit_micro=0)
        )
        gone: Any = session.execute(delete(BudgetRow).where(BudgetRow.tenant == "shop"))
        assert (changed.rowcount, gone.rowcount) == (0, 0)
        assert session.get(BudgetRow, "shop") is None
    with full.database.reading(PLATFORM) as session:
        assert session.scalar(select(BudgetRow.limit_micro).where(BudgetRow.tenant == "shop")) == before


def test_nothing_is_written_for_another_tenant(full: Town) -> None:
    """A new row that names somebody else is refused, and one's own is taken."""

    def add(tenant: str) -> None:
        with full.database.unit_of_work(tenant_scope("acme")) as session:
            session.add(PrincipalRow(id=f"pri_{tenant}", tenant=tenant, name="new", created_at_us=1))

    add("acme")
    with pytest.raises(REFUSED):
        add("beta")


def test_a_grant_is_seen_from_both_sides_and_written_from_one(full: Town) -> None:
    """Owner and consumer see it, a third tenant does not, and the consumer can not revoke it."""
    counts = {}
    for slug in TENANTS:
        with full.database.reading(tenant_scope(slug)) as session:
            counts[slug] = len(seen(session, GrantRow))
    assert counts == {"acme": 2, "beta": 1, "shop": 2, "club": 1}
    with full.database.unit_of_work(PLATFORM) as session:
        [grant] = session.scalars(select(GrantRow.id).where(GrantRow.consumer_tenant == "club"))
    with full.database.unit_of_work(tenant_scope("club")) as session:
        done: Any = session.execute(update(GrantRow).where(GrantRow.id == grant).values(state="revoked"))
        assert done.rowcount == 0


def test_offers_are_shown_to_everybody(full: Town) -> None:
    """Listed experts and prices are what strangers see of an owner, and suspended ones leave the shelf."""
    with full.database.reading(tenant_scope("club")) as session:
        assert len(seen(session, ExpertRow)) == len(seen(session, ListingRow)) == 2
        assert seen(session, DatasetRow) == []
    [ours] = full.act(lambda register: register.experts("acme"))
    full.act(lambda register: register.suspend_expert(ours.expert_id, full.ada))
    with full.database.reading(tenant_scope("club")) as session:
        assert [row.tenant for row in seen(session, ExpertRow)] == ["beta"]


def test_the_whole_register_is_lifted_for_a_block_only(full: Town) -> None:
    """Inside everything is seen, afterwards nothing of it: neither anew nor what was read inside."""
    with full.database.unit_of_work(tenant_scope("club")) as session:
        assert seen(session, ReservationRow) == []
        with whole_register(session):
            held = seen(session, ReservationRow)
            assert len(held) == 1
        assert scope_of(session) == tenant_scope("club")
        assert session.get(ReservationRow, held[0].request_id) is None
        assert seen(session, ReservationRow) == []
        with pytest.raises(KeyError), whole_register(session):
            raise KeyError
        assert seen(session, DecisionRow) == []
        see(session, NOBODY)
        assert seen(session, BudgetRow) == []


def test_a_savepoint_that_is_rolled_back_takes_no_scope_with_it(full: Town) -> None:
    """Undoing a part that failed within the whole register leaves the unit in its own scope."""
    with full.database.unit_of_work(tenant_scope("club")) as session:
        with pytest.raises(DBAPIError), session.begin_nested(), whole_register(session):
            session.execute(
                insert(BudgetRow), [{"tenant": "club", "limit_micro": 1, "spent_micro": 0, "held_micro": 0}]
            )
        assert [row.tenant for row in seen(session, BudgetRow)] == ["club"]


def test_raw_statements_are_held_to_it_or_refused(full: Town) -> None:
    """PostgreSQL hides rows from raw SQL too; SQLite can not, so such statements are refused there."""
    counting = text("SELECT count(*) FROM consents")
    core = select(func.count()).select_from(ConsentRow.__table__)
    with full.database.unit_of_work(tenant_scope("club")) as session:
        if full.database.is_sqlite:
            for statement in (counting, core):
                with pytest.raises(OutOfScope):
                    session.execute(statement)
        else:
            assert [session.scalar(one) for one in (counting, core)] == [0, 0]


def test_guards_see_what_the_scope_hides(full: Town) -> None:
    """A check inside the database is not fooled by what the writer can not see."""
    with pytest.raises(REFUSED), full.database.unit_of_work(tenant_scope("club")) as session:
        session.execute(
            insert(ReservationRow),
            [
                {
                    "request_id": "r",
                    "tenant": "club",
                    "principal_id": full.dora.id,
                    "epoch": 99,
                    "deployment": "x",
                }
            ],
        )


#: Raw SQL that touches no tenant's row: locks, the scope itself, and the rights of a role.
RAW = {
    "policy/audit/sealing.py",
    "tenants/accounts/database.py",
    "tenants/accounts/role_check.py",
    "tenants/accounts/scope.py",
}


def test_no_raw_sql_is_sent_above_the_migrations() -> None:
    """Statements are made of row classes, which SQLite's criteria can be put on."""
    root = Path(__file__).parents[2]
    sending = re.compile(r"\b(execute|scalars?|stream)\(\s*(sa\.)?text\(|exec_driver_sql|: Final = text\(")
    paths = [path for floor in ("tenants", "policy", "cluster") for path in (root / floor).rglob("*.py")]
    found = {str(path.relative_to(root)) for path in paths if sending.search(path.read_text("utf-8"))}
    assert found == RAW
