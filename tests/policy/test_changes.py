# SPDX-License-Identifier: Apache-2.0
"""Law 10: widening takes two people who may, and a digest; nothing else lets a change through."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from town import Town, consent, deployment, digest

from policy.errors import (
    ChangeClosed,
    DigestChanged,
    InvalidChange,
    InvalidLicenseExpression,
    NotAllowed,
    NotFound,
    NotYours,
    PolicyError,
    SelfApproval,
    UnknownTerm,
)
from policy.facts.snapshot import LicenseFact
from policy.records.items import (
    ChangeItem,
    ConsentGive,
    ExpertResume,
    GrantGive,
    LicensePut,
    ListingPut,
    RulePermit,
    TenantResume,
)

FACT = LicenseFact(
    key="LicenseRef-Town",
    hosted_use=True,
    use_commercial=True,
    derivatives=True,
    distribution_weights=False,
    attribution=True,
    reviewed_by="carl",
)


def test_nothing_takes_effect_before_approval(town: Town) -> None:
    """A proposal and its preview publish nothing; the approval publishes exactly what was previewed."""
    expert = town.expert()
    town.open_all(expert)
    given = town.act(lambda register: register.consents("acme"))[0]
    town.act(lambda register: register.withdraw_consent(given.id, town.ada))
    epoch = town.act(lambda register: register.current_epoch())
    change = town.propose(town.ada, consent(expert))
    assert change.preview is not None
    [row] = [one for one in change.preview.deployments if one.deployment == "shop-ask"]
    assert (row.before, row.after, row.gained, row.lost) == (
        (),
        (expert.expert_id,),
        (expert.expert_id,),
        (),
    )
    with town.register() as register:
        assert register.current_epoch() == epoch
        assert len(register.consents("acme")) == 1
        assert register.preview(change.id) == change.preview
    assert town.members() == set()
    publication = town.act(lambda register: register.approve(change.id, change.digest, town.alan))
    assert (publication.epoch, publication.change_id) == (epoch + 1, change.id)
    assert town.members() == {expert.expert_id}
    with town.register() as register:
        done = register.change(change.id)
        assert (done.state, done.decided_by, done.epoch, done.preview) == (
            "approved",
            town.alan.id,
            epoch + 1,
            None,
        )


def test_preview_says_why_others_stay_out(town: Town) -> None:
    """A draft that does not let an expert in names the reason."""
    expert = town.expert()
    town.widen(town.dora, town.carl, deployment(town.base))
    change = town.propose(
        town.ada, ListingPut(expert_id=expert.expert_id, price_micro_per_1k_tokens=1, license="MIT")
    )
    assert change.preview is not None
    [row] = change.preview.deployments
    assert "consent" in row.reasons[expert.expert_id]


def test_nobody_approves_their_own(town: Town) -> None:
    """The author is refused with every key and role; the database refuses it as well."""
    expert = town.expert()
    change = town.propose(town.ada, consent(expert))
    mighty = town.ada.model_copy(update={"roles": frozenset(town.carl.roles | town.olga.roles)})
    for principal in (town.ada, mighty):
        with pytest.raises(SelfApproval), town.register() as register:
            register.approve(change.id, change.digest, principal)
    with pytest.raises(DBAPIError), town.database.unit_of_work() as session:
        session.execute(
            text(
                "UPDATE changes SET state = 'approved', decided_by = author_id, decided_at_us = 1, epoch = 1"
            )
        )
    with pytest.raises(DBAPIError), town.database.unit_of_work() as session:
        session.execute(
            text(
                "INSERT INTO publications (epoch, at_us, snapshot_digest, reason, subject, principal_id, "
                f"change_id) VALUES (1, 1, 'x', 'x', 'x', NULL, '{change.id}')"
            )
        )


def test_approval_is_bound_to_the_digest(town: Town) -> None:
    """Another digest is refused, and so is the right one once the stored edits were changed."""
    expert = town.expert()
    one, two = town.propose(town.ada, consent(expert)), town.propose(town.ada, consent(expert))
    assert one.digest != two.digest
    with town.register() as register, pytest.raises(DigestChanged):
        register.approve(one.id, two.digest, town.alan)
    with pytest.raises(DBAPIError), town.database.unit_of_work() as session:
        session.execute(text("UPDATE changes SET items = '[]'"))
    with town.database.engine.begin() as connection:
        if town.database.is_sqlite:
            connection.execute(text("DROP TRIGGER guard_changes_fixed"))
        else:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("UPDATE changes SET items = replace(items, '\"infer\"', '\"*\"')"))
    with town.register() as register, pytest.raises(DigestChanged):
        register.approve(one.id, one.digest, town.alan)


def test_a_decided_change_stays_decided(town: Town) -> None:
    """Approved and rejected changes can be neither approved nor rejected again."""
    expert = town.expert()
    for decide in ("reject", "approve"):
        change = town.propose(town.ada, consent(expert))
        with town.register() as register:
            if decide == "approve":
                register.approve(change.id, change.digest, town.alan)
            else:
                register.reject(change.id, town.carl, "no")
        with town.register() as register:
            with pytest.raises(ChangeClosed):
                register.approve(change.id, change.digest, town.carl)
            with pytest.raises(ChangeClosed):
                register.reject(change.id, town.carl, "no")


def test_changes_of_others_do_not_exist(town: Town) -> None:
    """Another tenant neither approves nor rejects; a colleague, compliance and the author may reject."""
    expert = town.expert()
    change = town.propose(town.ada, consent(expert))
    with town.register() as register:
        with pytest.raises(NotYours):
            register.approve(change.id, change.digest, town.bob)
        with pytest.raises(NotYours):
            register.reject(change.id, town.bob, "")
        with pytest.raises(NotFound):
            register.approve("chg_x", change.digest, town.bob)
        assert register.changes(tenant="beta") == []
        assert [one.id for one in register.changes("proposed")] == [change.id]
        assert register.reject(change.id, town.ada, "mistake").state == "withdrawn"


# Who may propose and approve each kind of edit; everybody else is refused.
def edits(town: Town, expert_id: str) -> list[tuple[ChangeItem, set[str], set[str]]]:
    """Edits of acme's expert and the shop's endpoint with their lawful authors and approvers."""
    owners, compliance, platform = {"ada", "alan"}, {"carl", "cleo"}, {"carl", "cleo", "olga"}
    return [
        (ConsentGive(expert_id=expert_id, purpose="research"), owners, owners | compliance),
        (GrantGive(expert_id=expert_id, consumer_tenant="shop"), owners, owners | compliance),
        (
            ListingPut(expert_id=expert_id, price_micro_per_1k_tokens=1, license="MIT"),
            owners,
            owners | compliance,
        ),
        (RulePermit(text="x"), compliance, platform),
        (LicensePut(fact=FACT), compliance, platform),
        (TenantResume(slug="beta"), platform, platform),
        (deployment(town.base), {"dora", "dirk"}, compliance),
    ]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(author=st.integers(0, 9), approver=st.integers(0, 9), kind=st.integers(0, 6))
def test_exactly_the_lawful_pairs_widen(town: Town, author: int, approver: int, kind: int) -> None:
    """Over all authors, approvers and edits: a change is published if and only if both may and differ."""
    town.letters = town.letters or town.expert()
    people = sorted(town.people)
    one, other = people[author], people[approver]
    item, authors, approvers = edits(town, town.letters.expert_id)[kind]
    before = town.act(lambda register: register.current_epoch())
    try:
        town.widen(town.people[one], town.people[other], item)
        published = True
    except PolicyError:
        published = False
    lawful = one in authors and other in approvers and one != other
    assert published == lawful, (one, other, item.kind)
    assert town.act(lambda register: register.current_epoch()) == before + int(lawful)


def test_mixed_changes_need_authority_over_every_edit(town: Town) -> None:
    """One edit that the author may not make spoils the whole change."""
    expert = town.expert()
    with town.register() as register, pytest.raises(NotAllowed):
        register.propose(town.ada, "both", [consent(expert), RulePermit(text="x")])
    with town.register() as register:
        assert register.changes() == []


def test_senseless_changes_are_refused(town: Town) -> None:
    """Empty, wordless, unknown, expired and contradicting edits never become a proposal."""
    expert = town.expert()
    with town.register() as register:
        wrong: list[tuple[type[Exception], ChangeItem]] = [
            (UnknownTerm, consent(expert, purpose="no-such-purpose")),
            (UnknownTerm, consent(expert, region="atlantis")),
            (UnknownTerm, consent(expert, action="steal")),
            (InvalidChange, consent(expert, valid_until_us=town.now - 1)),
            (NotFound, consent(expert, recipient="nobody")),
            (NotFound, consent(expert, expert_id="exp_none")),
            (NotFound, GrantGive(expert_id=expert.expert_id, consumer_tenant="nobody")),
            (
                InvalidLicenseExpression,
                ListingPut(expert_id=expert.expert_id, price_micro_per_1k_tokens=1, license="MIT OR"),
            ),
            (
                InvalidLicenseExpression,
                ListingPut(expert_id=expert.expert_id, price_micro_per_1k_tokens=1, license="NOASSERTION"),
            ),
            (InvalidChange, ExpertResume(expert_id=expert.expert_id)),
        ]
        for error, item in wrong:
            with pytest.raises(error):
                register.propose(town.ada, "wrong", [item])
        for title, items in (("", [consent(expert)]), ("nothing", [])):
            with pytest.raises(InvalidChange):
                register.propose(town.ada, title, items)
        with pytest.raises(NotFound):
            register.propose(town.dora, "x", [deployment(digest("no base"))])
        with pytest.raises(NotAllowed):
            register.propose(town.dora, "x", [deployment(town.base, tenant="club")])
        assert register.changes() == []


def test_a_deployment_name_belongs_to_its_first_tenant(town: Town) -> None:
    """Another tenant can not take over an endpoint by proposing its name."""
    town.widen(town.dora, town.carl, deployment(town.base))
    with town.register() as register, pytest.raises(InvalidChange):
        register.propose(town.clara, "mine", [deployment(town.base, tenant="club")])


def test_a_suspended_expert_needs_compliance_to_return(town: Town) -> None:
    """An owner and a colleague can not undo a suspension by listing again; compliance approves the return."""
    expert = town.expert()
    town.open_all(expert)
    town.act(lambda register: register.suspend_expert(expert.expert_id, town.carl))
    with town.register() as register, pytest.raises(InvalidChange):
        register.propose(
            town.ada,
            "again",
            [ListingPut(expert_id=expert.expert_id, price_micro_per_1k_tokens=1, license="MIT")],
        )
    change = town.propose(town.ada, ExpertResume(expert_id=expert.expert_id))
    with town.register() as register, pytest.raises(NotAllowed):
        register.approve(change.id, change.digest, town.alan)
    town.act(lambda register: register.approve(change.id, change.digest, town.carl))
    assert town.members() == {expert.expert_id}


def test_reviewed_license_terms_replace_the_shipped_ones(town: Town) -> None:
    """A put license gets the next version, appears in the snapshot, and can be listed under."""
    expert = town.expert()
    town.widen(town.carl, town.cleo, LicensePut(fact=FACT))
    town.widen(town.carl, town.cleo, LicensePut(fact=FACT.model_copy(update={"title": "Town 2"})))
    town.widen(
        town.ada,
        town.alan,
        ListingPut(expert_id=expert.expert_id, price_micro_per_1k_tokens=1, license="LicenseRef-Town"),
    )
    with town.register() as register:
        fact = register.snapshot().licenses_by_key["licenseref-town"]
        assert (fact.version, fact.title) == (2, "Town 2")
        assert fact in register.licenses()


def test_withdrawing_takes_no_more_acts_than_consenting(town: Town) -> None:
    """Consent takes a proposal and an approval; withdrawal takes one call by one person."""
    expert = town.expert()
    town.widen(town.ada, town.alan, consent(expert))
    before = town.act(lambda register: register.current_epoch())
    given = town.act(lambda register: register.consents("acme"))[0]
    publication = town.act(lambda register: register.withdraw_consent(given.id, town.alan))
    assert publication.epoch == before + 1
