# SPDX-License-Identifier: Apache-2.0
"""Emergency stops and rollback: at once and by one person where they narrow, never otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from town import WORKFLOW_TABLES, Town, consent, deployment

from policy.changing.changes import Changes
from policy.changing.drafts import Drafts
from policy.changing.rollback import Rollback
from policy.changing.schedule import Schedule
from policy.changing.stops import SIGNATURE_WITHIN_US, Stops
from policy.errors import (
    AlreadySigned,
    ChangeClosed,
    InvalidChange,
    NotAllowed,
    NotFound,
    PolicyError,
    SelfApproval,
)
from policy.facts.snapshot import Snapshot
from policy.records.changes import RollbackRecord, StopRecord
from policy.records.items import (
    ExpertResume,
    ForbidRule,
    GrantGive,
    LicensePut,
    ListingPut,
    RuleLift,
    RulePermit,
    TenantResume,
)
from policy.register import Register
from policy.tables import APPEND_ONLY, LATCHED, EvaluationRow, ImpactReportRow
from tenants.accounts.schema import Base


@contextmanager
def stops(town: Town, *, later_us: int = 1_000_000) -> Iterator[Stops]:
    """The emergency brake in a unit of work."""
    town.now += later_us
    with town.database.unit_of_work() as session:
        yield Stops(session, town.now)


def stop(town: Town, who: Any, kind: Any, subject: str) -> StopRecord:
    """Stops one thing."""
    with stops(town) as room:
        return room.stop(who, kind, subject, "an incident")


def roll_back(town: Town, change_id: str, who: Any) -> RollbackRecord:
    """Undoes one change."""
    town.now += 1_000_000
    with town.database.unit_of_work() as session:
        return Rollback(session, town.now).roll_back(change_id, who)


def facts(town: Town) -> Snapshot:
    """What is in force."""
    return town.act(lambda register: register.snapshot())


def test_every_kind_of_stop_empties_the_endpoint_at_once(town: Town) -> None:
    """One person, one epoch; lifting each takes the two people of any widening, and brings it back."""
    expert = town.expert()
    town.open_all(expert)
    assert town.members() == {expert.expert_id}
    terms = facts(town).licenses_by_key["mit"]
    lifts: list[tuple[str, str, Any]] = [
        (
            "expert",
            expert.expert_id,
            lambda _: (town.ada, town.carl, ExpertResume(expert_id=expert.expert_id)),
        ),
        ("tenant", "acme", lambda _: (town.carl, town.olga, TenantResume(slug="acme"))),
        ("license", "MIT", lambda _: (town.carl, town.olga, LicensePut(fact=terms))),
        ("purpose", "research", lambda made: (town.carl, town.olga, RuleLift(rule_id=made.fact_id))),
    ]
    for kind, subject, lift in lifts:
        epoch = facts(town).epoch
        made = stop(town, town.olga, kind, subject)
        assert (made.epoch, made.state, made.in_force) == (epoch + 1, "awaits_signature", True)
        assert town.members() == set(), kind
        town.widen(*lift(made))
        assert town.members() == {expert.expert_id}, kind
        with stops(town) as room:
            assert room.list()[0].in_force is False
    stop(town, town.olga, "deployment", "shop-ask")
    assert "shop-ask" not in facts(town).deployments_by_name


def test_a_signature_that_never_comes_undoes_nothing(town: Town) -> None:
    """Past its moment a stop shows as overdue and stays in force; a late signature is still taken, once."""
    expert = town.expert()
    town.open_all(expert)
    made = stop(town, town.olga, "expert", expert.expert_id)
    with stops(town, later_us=SIGNATURE_WITHIN_US - 1_000_000) as room:
        assert room.list()[0].state == "awaits_signature"
    with stops(town, later_us=2_000_000) as room:
        (late,) = room.list()
        assert (late.state, late.in_force) == ("overdue", True)
        with pytest.raises(SelfApproval):
            room.sign(made.id, town.olga)
        assert room.sign(made.id, town.carl).state == "signed"
        with pytest.raises(AlreadySigned):
            room.sign(made.id, town.cleo)
        assert room.list()[0].in_force
    assert town.members() == set()
    for assignment in ("signed_by = principal_id", "signed_by = NULL, signed_at_us = NULL", "reason = 'x'"):
        with pytest.raises(DBAPIError), town.database.unit_of_work() as session:
            session.execute(text(f"UPDATE stops SET {assignment}"))


def test_who_may_stop_what(town: Town) -> None:
    """Staff stop anything, owners and developers their own, others find nothing; whoever signs could stop."""
    expert, foreign = town.expert(), town.expert("beta")
    town.open_all(expert)
    staff = {"carl", "cleo", "olga"}
    allowed = {
        ("expert", expert.expert_id): staff | {"ada", "alan"},
        ("expert", foreign.expert_id): staff | {"bob"},
        ("tenant", "beta"): staff,
        ("license", "MIT"): staff,
        ("purpose", "research"): staff,
        ("deployment", "shop-ask"): staff | {"dora", "dirk"},
        ("expert", "exp_none"): set(),
        ("license", "LicenseRef-None"): set(),
        ("purpose", "no-such-purpose"): set(),
    }
    for (kind, subject), people in allowed.items():
        for name, who in town.people.items():
            town.now += 1
            with town.database.unit_of_work() as session:
                savepoint = session.begin_nested()
                try:
                    Stops(session, town.now).stop(who, kind, subject, "x")  # type: ignore[arg-type]
                    may = True
                except PolicyError:
                    may = False
                savepoint.rollback()
            assert may == (name in people), (kind, subject, name)
    made = stop(town, town.ada, "expert", expert.expert_id)
    with stops(town) as room:
        for who in (town.bob, town.dora, town.audit):
            with pytest.raises((NotFound, NotAllowed)):
                room.sign(made.id, who)
        assert room.list("beta") == []
        assert room.sign(made.id, town.alan).signed_by == town.alan.id


def test_rolling_back_a_consent_narrows_at_once(town: Town) -> None:
    """The inverse of what was only added is published in the same act, by one person who may do each."""
    expert = town.expert()
    town.open_all(expert)
    before = town.members()
    change = town.propose(
        town.ada,
        consent(expert, purpose="education"),
        GrantGive(expert_id=expert.expert_id, consumer_tenant="club"),
    )
    town.act(lambda register: register.approve(change.id, change.digest, town.alan))
    with pytest.raises((NotFound, NotAllowed)):
        roll_back(town, change.id, town.bob)
    done = roll_back(town, change.id, town.ada)
    assert done.change is None
    assert [one.reason for one in done.publications] == ["consent.withdraw", "grant.revoke"]
    assert town.members() == before
    with pytest.raises(InvalidChange):
        roll_back(town, change.id, town.ada)


def test_rolling_back_a_replaced_fact_takes_two(town: Town) -> None:
    """What was put in another's place comes back as it was, by a change that somebody else approves."""
    expert = town.expert()
    town.open_all(expert)
    listing = ListingPut(expert_id=expert.expert_id, price_micro_per_1k_tokens=9, license="MIT")
    put = deployment(town.base, top_k=1)
    for author, approver, item in ((town.ada, town.alan, listing), (town.dora, town.carl, put)):
        published = town.widen(author, approver, item)
        assert published.change_id is not None
        done = roll_back(town, published.change_id, author)
        assert done.publications == ()
        assert done.change is not None
        assert (done.change.state, done.change.rolls_back) == ("proposed", published.change_id)
        with pytest.raises(SelfApproval), town.register() as register:
            register.approve(done.change.id, done.change.digest, author)
        undo = done.change
        with town.register() as register:
            register.approve(undo.id, undo.digest, approver)
    now = facts(town)
    (fact,) = now.experts
    assert fact.price_micro_per_1k_tokens == 1_000
    assert now.deployments_by_name["shop-ask"].top_k == 2


def test_rolling_back_everything_that_was_ever_published(town: Town) -> None:
    """Undone from the newest to the oldest, no expert, endpoint, word or rule of the story is left."""
    expert = town.expert()
    town.open_all(expert)
    rule = town.act(lambda register: register.add_forbid_rule(ForbidRule(text="halt"), town.carl)).subject
    town.widen(town.carl, town.olga, RuleLift(rule_id=rule))
    changes = town.act(lambda register: register.changes("approved"))
    for change in changes:
        who = next(one for one in town.people.values() if one.id == change.author_id)
        assert roll_back(town, change.id, who).change is None
    now = facts(town)
    assert now.deployments == ()
    assert {one.state for one in now.consents} <= {"withdrawn"}
    assert {one.state for one in now.grants} <= {"revoked"}
    assert [one.effect for one in now.rules] == ["forbid"]
    assert {one.state for one in now.experts} == {"suspended"}


def test_what_a_later_epoch_changed_is_not_rolled_back(town: Town) -> None:
    """A fact that was changed again, and a change that was never published, are refused."""
    town.expert()
    first = town.widen(town.dora, town.carl, deployment(town.base))
    town.widen(town.dora, town.carl, deployment(town.base, top_k=1))
    open_one = town.propose(town.carl, RulePermit(text="x"))
    with pytest.raises(InvalidChange):
        roll_back(town, str(first.change_id), town.dora)
    with pytest.raises(ChangeClosed):
        roll_back(town, open_one.id, town.carl)


def test_workflow_tables_never_change(town: Town) -> None:
    """Raw UPDATE, DELETE and TRUNCATE fail on every table of the workflow, none of which is empty."""
    expert = town.expert()
    town.open_all(expert)
    stop(town, town.olga, "expert", expert.expert_id)
    town.now += 1_000_000
    with town.database.unit_of_work() as session:
        Drafts(session, town.now).begin(town.ada, "one", [consent(expert)])
        waiting = Changes(session, town.now).propose(
            town.carl, "later", [RulePermit(text="x")], town.now + 1_000_000
        )
        Register(session, town.now).schedule(waiting.id, waiting.digest, town.cleo)
        assert Schedule(session, town.now).next_due_us() == town.now + 1_000_000
        fields = {"expert_id": expert.expert_id, "tenant": "acme", "principal_id": town.ada.id, "at_us": 1}
        more = {"deployment": "*", "metric": "bits_per_byte", "value_micro": 1, "evidence_digest": "x"}
        session.add(EvaluationRow(id="evl_1", **fields, **more))
        report = {"change_id": waiting.id, "epoch": None, "change_digest": "x", "epoch_base": 1, "at_us": 1}
        session.add(ImpactReportRow(digest="x", document="{}", **report))
    for table in WORKFLOW_TABLES:
        assert table in APPEND_ONLY or table in LATCHED
        movable = LATCHED.get(table, ())
        fixed = [one.name for one in Base.metadata.tables[table].columns if one.name not in movable][-1]
        statements = [f"UPDATE {table} SET {fixed} = NULL", f"DELETE FROM {table}"]
        if not town.database.is_sqlite:
            statements.append(f"TRUNCATE {table} CASCADE")
        for statement in statements:
            with (
                pytest.raises(DBAPIError, match=r"append-only|never|denied"),
                town.database.unit_of_work() as session,
            ):
                session.execute(text(statement))
