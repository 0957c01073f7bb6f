# SPDX-License-Identifier: Apache-2.0
"""Drafts and scheduled publication: every edit voids, nothing comes early, nothing lapsed is published."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from town import Town, consent

from policy.changing.drafts import Drafts
from policy.changing.schedule import Schedule
from policy.errors import (
    AuthorityLapsed,
    ChangeClosed,
    DigestChanged,
    InvalidChange,
    NotAllowed,
    NotFound,
    NotYetDue,
    NotYours,
    SelfApproval,
    StaleDraft,
)
from policy.preview.supposing import Supposition, suppose
from policy.records.changes import ChangeRecord
from policy.records.items import ChangeItem, ForbidRule, GrantGive, ListingPut, RuleLift, RulePermit
from policy.register import Register
from tenants.accounts.accounts import Accounts
from tenants.roles import Principal, Role

HOUR_US = 3_600_000_000


class Room:
    """One unit of work at the town's time, with every room of the workflow."""

    def __init__(self, town: Town, *, later_us: int = 1_000_000) -> None:
        town.now += later_us
        self._unit = town.database.unit_of_work()
        self._now = town.now

    def __enter__(self) -> Room:
        session = self._unit.__enter__()
        self.register = Register(session, self._now)
        self.drafts = Drafts(session, self._now)
        self.schedule = Schedule(session, self._now)
        self.accounts = Accounts(session, self._now)
        return self

    def __exit__(self, *error: object) -> None:
        self._unit.__exit__(*error)  # type: ignore[arg-type]


def scheduled(
    town: Town, author: Principal, approver: Principal, *items: ChangeItem, wait_us: int = HOUR_US
) -> ChangeRecord:
    """A change that is approved and waits for its moment."""
    moment = town.now + wait_us
    with Room(town) as room:
        change = room.register.propose(author, "later", items, moment)
    with Room(town) as room:
        return room.register.schedule(change.id, change.digest, approver)


def test_every_edit_of_a_draft_changes_its_digest(town: Town) -> None:
    """Title, edits and moment are under the digest, and an edit of an old version is refused."""
    expert = town.expert()
    with Room(town) as room:
        first = room.drafts.begin(town.ada, "one", [consent(expert)])
        assert (first.state, first.version) == ("draft", 1)
        assert room.register.changes() == []
        seen = {first.digest}
        later = town.now + HOUR_US
        for n, (title, moment) in enumerate((("two", None), ("two", later), ("two", later + 1)), start=1):
            edited = room.drafts.edit(first.id, town.ada, n, title, [consent(expert)], moment)
            assert edited.version == n + 1
            seen.add(edited.digest)
        assert len(seen) == 4
        with pytest.raises(StaleDraft):
            room.drafts.edit(first.id, town.ada, 1, "old", [consent(expert)])
        with pytest.raises(StaleDraft):
            room.drafts.submit(first.id, town.ada, 3)
        for who, error in ((town.alan, NotAllowed), (town.carl, NotAllowed), (town.bob, NotYours)):
            with pytest.raises(error):
                room.drafts.edit(first.id, who, 4, "mine", [consent(expert)])
    with Room(town) as room:
        proposed = room.drafts.submit(first.id, town.ada, 4)
        assert (proposed.id, proposed.state, proposed.effective_at_us) == (first.id, "proposed", later + 1)
        assert proposed.digest == edited.digest
        with pytest.raises(ChangeClosed):
            room.drafts.edit(first.id, town.ada, 4, "late", [consent(expert)])


def test_nobody_approves_a_draft(town: Town) -> None:
    """Before it is laid before reviewers a draft does not exist for them, and given up it never will."""
    expert = town.expert()
    with Room(town) as room:
        draft = room.drafts.begin(town.ada, "one", [consent(expert)])
        with pytest.raises(NotFound):
            room.register.approve(draft.id, draft.digest, town.alan)
        assert room.drafts.withdraw(draft.id, town.ada, "no").state == "withdrawn"
        with pytest.raises(ChangeClosed):
            room.drafts.submit(draft.id, town.ada, 1)


def test_the_database_keeps_drafts_in_order(town: Town) -> None:
    """Another content under the same version, an older version or a second life are refused in SQL too."""
    expert = town.expert()
    with Room(town) as room:
        draft = room.drafts.begin(town.ada, "one", [consent(expert)])
        room.drafts.edit(draft.id, town.ada, 1, "two", [consent(expert)])
        gone = room.drafts.begin(town.ada, "gone", [consent(expert)])
        room.drafts.withdraw(gone.id, town.ada, "")
    for assignment in ("digest = 'x'", "version = 1", "author_id = 'x'"):
        with pytest.raises(DBAPIError), town.database.unit_of_work() as session:
            session.execute(text(f"UPDATE change_drafts SET {assignment} WHERE state = 'draft'"))
    with pytest.raises(DBAPIError), town.database.unit_of_work() as session:
        session.execute(text("UPDATE change_drafts SET state = 'draft' WHERE state = 'withdrawn'"))


def test_revising_voids_the_approval(town: Town) -> None:
    """Once its author revises it, neither a scheduled change nor a digest that was read is good any more."""
    expert = town.expert()
    waiting = scheduled(town, town.ada, town.alan, consent(expert))
    with Room(town) as room:
        draft = room.drafts.revise(waiting.id, town.ada)
        assert (draft.state, draft.revises) == ("draft", waiting.id)
        assert draft.digest != waiting.digest
        again = room.drafts.submit(draft.id, town.ada, 1)
    with Room(town) as room:
        assert room.register.change(waiting.id).state == "revised"
        with pytest.raises(ChangeClosed):
            room.register.approve(waiting.id, waiting.digest, town.alan)
        with pytest.raises(DigestChanged):
            room.register.schedule(again.id, waiting.digest, town.alan)
    with Room(town, later_us=2 * HOUR_US) as room:
        assert room.schedule.publish_due() == []


def test_a_scheduled_change_is_published_at_its_moment(town: Town) -> None:
    """Not an instant before, exactly once, as a gapless epoch that names author and approver."""
    expert = town.expert()
    town.open_all(expert)
    given = town.act(lambda register: register.consents("acme"))[0]
    town.act(lambda register: register.withdraw_consent(given.id, town.ada))
    waiting = scheduled(town, town.ada, town.alan, consent(expert))
    assert waiting.state == "scheduled"
    assert waiting.approval is not None
    assert waiting.approval.principal_id == town.alan.id
    moment = waiting.effective_at_us
    assert moment is not None
    epoch = town.act(lambda register: register.current_epoch())
    with Room(town, later_us=moment - 1 - town.now) as room:
        assert room.schedule.next_due_us() == moment
        assert room.schedule.publish_due() == []
    with Room(town, later_us=1) as room:
        (done,) = room.schedule.publish_due()
        assert (done.state, done.epoch, done.decided_by) == ("approved", epoch + 1, town.alan.id)
        assert room.schedule.publish_due() == []
        assert room.schedule.next_due_us() is None
        assert room.register.publications()[-1].at_us == moment
    assert town.members() == {expert.expert_id}


def test_a_scheduled_change_is_approved_but_once(town: Town) -> None:
    """Not by its author, not by a wrong digest, not twice, and not at once."""
    expert = town.expert()
    moment = town.now + HOUR_US
    with Room(town) as room:
        change = room.register.propose(town.ada, "later", [consent(expert)], moment)
        with pytest.raises(NotYetDue):
            room.register.approve(change.id, change.digest, town.alan)
        with pytest.raises(SelfApproval):
            room.register.schedule(change.id, change.digest, town.ada)
        with pytest.raises(DigestChanged):
            room.register.schedule(change.id, "sha256:" + "0" * 64, town.alan)
        room.register.schedule(change.id, change.digest, town.alan)
        for act in (room.register.schedule, room.register.approve):
            with pytest.raises(ChangeClosed):
                act(change.id, change.digest, town.carl)
        plain = room.register.propose(town.ada, "now", [consent(expert)])
        with pytest.raises(InvalidChange):
            room.register.schedule(plain.id, plain.digest, town.alan)
        for wrong in (town.now, town.now - 1, town.now + 10**15):
            with pytest.raises(InvalidChange):
                room.register.propose(town.ada, "x", [consent(expert)], wrong)
    with pytest.raises(DBAPIError), town.database.unit_of_work() as session:
        session.execute(
            text(
                "INSERT INTO change_approvals (change_id, digest, principal_id, principal_name, at_us) "
                "SELECT id, digest, author_id, author_name, 1 FROM changes WHERE stage = ''"
            )
        )


def test_a_clock_that_was_set_back_publishes_nothing_early(town: Town) -> None:
    """The register's time never falls behind its last epoch, and no epoch is dated before its change."""
    expert, other = town.expert(), town.expert(name="other")
    town.open_all(expert)
    waiting = scheduled(town, town.ada, town.alan, consent(other))
    moment = waiting.effective_at_us
    assert moment is not None
    with Room(town, later_us=-10 * HOUR_US) as room:
        assert room.schedule.publish_due() == []
        with pytest.raises(NotYetDue):
            Schedule(room.schedule._session, town.now)._changes.publish_scheduled(waiting.id)
    # A clock that ran ahead and was set right: what it published stays the register's time.
    town.now = moment + HOUR_US
    town.widen(town.carl, town.cleo, RulePermit(text="from the future"))
    town.now = moment - HOUR_US
    with Room(town) as room:
        (done,) = room.schedule.publish_due()
        last = room.register.publications()[-1]
        assert (done.epoch, last.at_us >= moment) == (last.epoch, True)
    with pytest.raises(DBAPIError), town.database.unit_of_work() as session:
        session.execute(text(f"UPDATE publications SET at_us = {moment - 1} WHERE epoch = {done.epoch}"))


def test_the_database_refuses_an_early_epoch(town: Town) -> None:
    """Whatever the code above does: an epoch dated before its change's moment is not stored."""
    expert = town.expert()
    waiting = scheduled(town, town.ada, town.alan, consent(expert))
    with town.database.unit_of_work() as session:
        session.execute(
            text("UPDATE changes SET state = 'approved', decided_by = :who, decided_at_us = 1, epoch = 1"),
            {"who": town.alan.id},
        )
        early = text(
            "INSERT INTO publications (epoch, at_us, snapshot_digest, reason, subject, principal_id, "
            "change_id) VALUES (1, :at, 'x', 'x', 'x', NULL, :change)"
        )
        savepoint = session.begin_nested()
        with pytest.raises(DBAPIError, match="before its time"):
            session.execute(early, {"at": (waiting.effective_at_us or 0) - 1, "change": waiting.id})
        savepoint.rollback()


@pytest.mark.parametrize(
    "lapses", ["author_key", "approver_key", "approver_expired", "approver_role", "author_tenant", "expert"]
)
def test_what_lapsed_meanwhile_fails_visibly(town: Town, lapses: str) -> None:
    """Lost keys, roles, tenants and edits that make no sense any more fail the change with a sentence."""
    expert = town.expert()
    with Room(town) as room:
        brief = room.accounts.create_key("acme", "albert", {Role.OWNER}, town.now + HOUR_US).principal
    approvers = {"approver_role": town.carl, "approver_expired": brief}
    waiting = scheduled(
        town,
        town.ada,
        approvers.get(lapses, town.alan),
        ListingPut(expert_id=expert.expert_id, price_micro_per_1k_tokens=1, license="MIT"),
    )
    with Room(town) as room:
        match lapses:
            case "author_key":
                room.accounts.revoke_key(town.ada.key_id)
            case "approver_key":
                room.accounts.revoke_key(town.alan.key_id)
            case "approver_expired":
                pass  # its time is over by then
            case "approver_role":
                room.accounts.create_key("platform", "carl", {Role.AUDITOR})
                room.accounts.revoke_key(town.carl.key_id)
            case "author_tenant":
                room.register.suspend_tenant("acme", town.olga)
            case _:
                room.register.suspend_expert(expert.expert_id, town.carl)
        epoch = room.register.current_epoch()
    with Room(town, later_us=2 * HOUR_US) as room:
        (failed,) = room.schedule.publish_due()
        assert failed.state == "failed"
        assert failed.comment.endswith(".")
        assert room.register.current_epoch() == epoch
        assert room.register.changes("failed")[0].id == waiting.id
    with Room(town) as room:
        assert room.schedule.publish_due() == []
        with pytest.raises(ChangeClosed):
            room.register.approve(waiting.id, waiting.digest, town.carl)


def test_one_failure_does_not_hold_up_the_others(town: Town) -> None:
    """Of several that are due each is published or fails alone, in the order of their moments."""
    expert = town.expert()
    town.expert(name="other")
    rules = [
        scheduled(town, town.carl, town.cleo, RulePermit(text=str(n)), wait_us=HOUR_US - n) for n in (1, 2)
    ]
    broken = scheduled(
        town, town.ada, town.carl, GrantGive(expert_id=expert.expert_id, consumer_tenant="shop")
    )
    with Room(town) as room:
        room.accounts.revoke_key(town.ada.key_id)
    with Room(town, later_us=2 * HOUR_US) as room:
        done = room.schedule.publish_due()
        assert {one.id: one.state for one in done} == {
            rules[0].id: "approved",
            rules[1].id: "approved",
            broken.id: "failed",
        }
        assert [one.id for one in sorted(done, key=lambda one: one.epoch or 99)][:2] == [
            one.id for one in sorted(rules, key=lambda one: one.effective_at_us or 0)
        ]


def test_a_failed_change_leaves_none_of_its_edits(town: Town) -> None:
    """What was carried out before the edit that fails is undone with it."""
    good, bad = town.expert(), town.expert(name="other")
    listing = ListingPut(expert_id=bad.expert_id, price_micro_per_1k_tokens=1, license="MIT")
    scheduled(town, town.ada, town.alan, consent(good), listing)
    town.act(lambda register: register.suspend_expert(bad.expert_id, town.carl))
    with Room(town, later_us=2 * HOUR_US) as room:
        (failed,) = room.schedule.publish_due()
        assert failed.state == "failed"
    assert town.act(lambda register: register.consents("acme")) == []


def test_an_approval_at_once_asks_what_the_author_may_now(town: Town) -> None:
    """A change whose author lost the key or the role meanwhile is not published."""
    expert = town.expert()
    change = town.propose(town.ada, consent(expert))
    with Room(town) as room:
        room.accounts.create_key("acme", "ada", {Role.DEVELOPER})
        room.accounts.revoke_key(town.ada.key_id)
    with Room(town) as room, pytest.raises(AuthorityLapsed):
        room.register.approve(change.id, change.digest, town.alan)


def test_scheduled_changes_can_be_stopped(town: Town) -> None:
    """A qualified reviewer rejects, and the author withdraws, what was approved and not yet published."""
    expert = town.expert()
    one, two = (scheduled(town, town.ada, town.alan, consent(expert)) for _ in range(2))
    with Room(town) as room:
        with pytest.raises(NotYours):
            room.register.reject(one.id, town.bob, "no")
        assert room.register.reject(one.id, town.carl, "no").state == "rejected"
        with pytest.raises(NotAllowed):
            room.drafts.withdraw(two.id, town.alan, "mine")
        assert room.drafts.withdraw(two.id, town.ada, "thought better").state == "withdrawn"
    with Room(town, later_us=2 * HOUR_US) as room:
        assert room.schedule.publish_due() == []


def test_lifting_a_prohibition_takes_two(town: Town) -> None:
    """A forbidding rule goes by a reviewed change alone, and only once."""
    expert = town.expert()
    town.open_all(expert)
    rule = town.act(lambda register: register.add_forbid_rule(ForbidRule(text="halt"), town.carl)).subject
    assert town.members() == set()
    with town.register() as register:
        with pytest.raises(NotFound):
            register.remove_permit_rule(rule, town.carl)
        with pytest.raises(NotAllowed):
            register.propose(town.ada, "lift", [RuleLift(rule_id=rule)])
    before = town.act(lambda register: register.snapshot())
    supposed = suppose(
        before, Supposition(items=(RuleLift(rule_id=rule),)), tenant="platform", at_us=town.now
    )
    town.widen(town.carl, town.olga, RuleLift(rule_id=rule))
    assert supposed.rules == town.act(lambda register: register.snapshot()).rules != before.rules
    assert town.members() == {expert.expert_id}
    with town.register() as register, pytest.raises(NotFound):
        register.propose(town.carl, "again", [RuleLift(rule_id=rule)])
