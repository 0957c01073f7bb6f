# SPDX-License-Identifier: Apache-2.0
"""Laws of deciding: default deny, monotony, order, exact ends, sufficient reasons."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import (
    BASE,
    CONSUMERS,
    NOW_US,
    OWNERS,
    PURPOSES,
    REGIONS,
    TIMES,
    ask,
    bundle,
    consent,
    dataset,
    deployment,
    expert,
    grant,
    random_world,
    rule,
    world,
)

from policy.deciding.composition import Question, compose
from policy.deciding.decision import decide
from policy.deciding.reasons import CODES, is_denial
from policy.errors import IncompleteQuestion, UnknownDeployment
from policy.facts.snapshot import BaseFact, Fact, Snapshot, TenantFact

seeds = st.integers(min_value=0, max_value=2**32)
few = settings(max_examples=60, deadline=None)
KINDS = ("tenants", "bases", "licenses", "experts", "consents", "grants", "rules", "deployments")


def permitted(snapshot: Snapshot, question: Question) -> set[str]:
    """Bundle digests that pass all gates by themselves."""
    asked = question
    return {
        fact.bundle_digest for fact in snapshot.experts if decide(snapshot, asked, fact).verdict == "permit"
    }


def words(draw: Any) -> dict[str, Any]:
    """Any scope, sometimes of words that nobody knows."""
    return {
        "action": draw(st.sampled_from(("infer", "*", "export_weights", "gibberish"))),
        "purpose": draw(st.sampled_from((*PURPOSES, "*", "gibberish"))),
        "region": draw(st.sampled_from((*REGIONS, "*", "gibberish"))),
    }


@few
@given(seeds, st.data())
def test_adding_a_forbid_never_permits_more(seed: int, data: st.DataObject) -> None:
    """Neither an owner's prohibition nor a forbidding rule, readable or not, turns a no into a yes."""
    snapshot, question = random_world(seed)
    draw = data.draw
    new_rule = rule(99, effect="forbid", **words(draw), expert_id=draw(st.sampled_from(("*", "exp_1"))))
    new_consent = consent(
        99,
        effect="forbid",
        **words(draw),
        tenant=draw(st.sampled_from(OWNERS)),
        dataset_id=draw(st.sampled_from((None, "ds_10"))),
        expert_id=draw(st.sampled_from(("*", "exp_1"))),
        recipient=draw(st.sampled_from(("*", *CONSUMERS))),
        valid_from_us=draw(st.sampled_from(TIMES)),
    )
    before = permitted(snapshot, question)
    for update in (
        {"rules": (*snapshot.rules, new_rule)},
        {"consents": (*snapshot.consents, new_consent)},
    ):
        assert permitted(snapshot.model_copy(update=update), question) <= before


@few
@given(seeds)
def test_removing_or_withdrawing_a_permit_never_permits_more(seed: int) -> None:
    """Whichever consent, grant or permitting rule goes, no expert gains by it."""
    snapshot, question = random_world(seed)
    before = permitted(snapshot, question)
    for fact in snapshot.consents:
        if fact.effect == "permit":
            rest = tuple(c for c in snapshot.consents if c != fact)
            gone = fact.model_copy(update={"state": "withdrawn"})
            assert permitted(snapshot.model_copy(update={"consents": rest}), question) <= before
            assert permitted(snapshot.model_copy(update={"consents": (*rest, gone)}), question) <= before
    for access in snapshot.grants:
        others = tuple(g for g in snapshot.grants if g != access)
        assert permitted(snapshot.model_copy(update={"grants": others}), question) <= before


@few
@given(seeds)
def test_order_and_repetition_of_facts_are_immaterial(seed: int) -> None:
    """Law 7: the same facts in any order and number have the same bytes, digest and answer."""
    snapshot, question = random_world(seed)
    dice = random.Random(seed)

    def shuffled(facts: tuple[Fact, ...]) -> tuple[Fact, ...]:
        again = [*facts, *dice.choices(facts, k=2)] if facts else []
        dice.shuffle(again)
        return tuple(again)

    mixed = snapshot.model_copy(update={kind: shuffled(getattr(snapshot, kind)) for kind in KINDS})
    assert mixed.to_json() == snapshot.to_json()
    assert mixed.digest == snapshot.digest
    assert compose(mixed, question).to_json() == compose(snapshot, question).to_json()


@few
@given(seeds)
def test_widening_the_purpose_or_region_never_permits_more(seed: int) -> None:
    """What is permitted for research at large is permitted for each kind of research."""
    snapshot, question = random_world(seed)
    narrow = question.model_copy(update={"purpose": "cancer-research", "region": "de"})
    for wider in (
        {"purpose": "medical-research"},
        {"purpose": "research"},
        {"region": "eu"},
        {"region": "global"},
    ):
        assert permitted(snapshot, narrow.model_copy(update=wider)) <= permitted(snapshot, narrow)


@few
@given(seeds)
def test_a_strangers_rows_change_nothing(seed: int) -> None:
    """Consents and grants of a tenant who owns neither expert nor dataset have no effect."""
    snapshot, question = random_world(seed)
    rows = {
        "consents": (
            *snapshot.consents,
            *(
                consent(90 + n, expert_id="*", tenant="bank", effect=effect, dataset_id=about)
                for n, (effect, about) in enumerate(
                    (e, d) for e in ("permit", "forbid") for d in (None, "ds_10")
                )
            ),
        ),
        "grants": (*snapshot.grants, grant(99, expert_id="*", tenant="bank", consumer_tenant="*")),
    }
    assert permitted(snapshot.model_copy(update=rows), question) == permitted(snapshot, question)


SUSPENDED = {slug: TenantFact(slug=slug, status="suspended") for slug in ("anna", "app")}


def tenants(*changed: TenantFact, without: str = "") -> tuple[TenantFact, ...]:
    """The tenants of the world in which everything holds, but for some."""
    table = {fact.slug: fact for fact in world().tenants} | {fact.slug: fact for fact in changed}
    return tuple(fact for slug, fact in table.items() if slug != without)


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("unknown_vocabulary", {"vocabulary_version": "0"}),
        ("unknown_engine", {"engine_version": "999"}),
        ("unknown_action", {"deployments": (deployment(action="resell"),)}),
        ("unknown_purpose", {"deployments": (deployment(purpose="*"),)}),
        ("unknown_region", {"deployments": (deployment(region="atlantis"),)}),
        ("unknown_consumer", {"tenants": tenants(without="app")}),
        ("consumer_suspended", {"tenants": tenants(SUSPENDED["app"])}),
        ("unknown_owner", {"tenants": tenants(without="anna")}),
        ("owner_suspended", {"tenants": tenants(SUSPENDED["anna"])}),
        ("unknown_base", {"bases": ()}),
        (
            "base_suspended",
            {"bases": (BaseFact(base_digest=BASE, name="b", license="MIT", status="suspended"),)},
        ),
        ("other_base", {"experts": (expert(base_digest=bundle(5)),)}),
        ("expert_not_listed", {"experts": (expert(state="suspended"),)}),
        ("no_consent", {"consents": ()}),
        ("no_consent", {"consents": (consent(purpose="gibberish"),)}),
        ("consent_not_yet", {"consents": (consent(valid_from_us=NOW_US + 1),)}),
        ("consent_expired", {"consents": (consent(valid_from_us=5, valid_until_us=5),)}),
        (
            "consent_unreadable",
            {"consents": (consent(), consent(2, expert_id="*", effect="forbid", region="x"))},
        ),
        ("consent_forbids", {"consents": (consent(), consent(2, expert_id="*", effect="forbid"))}),
        ("lineage_missing", {"experts": (expert(datasets=()),)}),
        ("dataset_owner_differs", {"experts": (expert(datasets=(dataset(tenant="ben"),)),)}),
        ("no_dataset_consent", {"experts": (expert(datasets=(dataset(consent="separate"),)),)}),
        ("no_grant", {"grants": ()}),
        ("grant_revoked", {"grants": (grant(state="revoked"),)}),
        ("grant_expired", {"grants": (grant(valid_until_us=NOW_US),)}),
        ("grant_not_yet", {"grants": (grant(valid_from_us=NOW_US + 1),)}),
        ("invalid_license", {"experts": (expert(license="MIT OR"),)}),
        ("unreviewed_license", {"experts": (expert(license="LicenseRef-unread"),)}),
        ("license_facet_unknown", {"experts": (expert(license="LicenseRef-unsure"),)}),
        ("license_term_unknown", {"experts": (expert(license="LicenseRef-badterm"),)}),
        ("unknown_license", {"experts": (expert(datasets=(dataset(license="NOASSERTION"),)),)}),
        ("unknown_license", {"bases": (BaseFact(base_digest=BASE, name="b", license="NONE"),)}),
        (
            "royalty_overflow",
            {
                "experts": (expert(license="LicenseRef-70 AND LicenseRef-40"),),
                "deployments": (deployment(commercial=True),),
            },
        ),
        ("no_permitting_rule", {"rules": ()}),
        ("rule_forbids", {"rules": (rule(), rule(2, effect="forbid", text="not here"))}),
        ("rule_forbids_part", {"rules": (rule(), rule(2, effect="forbid", region="de"))}),
    ],
)
def test_each_missing_fact_denies_with_its_code(code: str, fields: dict[str, Any]) -> None:
    """One thing missing, unknown or forbidden: exactly that code denies."""
    decision = decide(world(**fields), ask(), "exp_1")
    assert [one.code for one in decision.reasons if is_denial(one)] == [code]
    assert decision.verdict == "deny"
    assert decision.outcome == CODES[code].outcome
    assert not decision.obligations


def test_names_that_are_no_expert_deny() -> None:
    """An unknown name and a name of two versions are denied; a bundle digest settles it."""
    two = world(experts=(expert(1), expert(2, expert_id="exp_1", datasets=(dataset(1),))))
    assert decide(two, ask(), "exp_8").reasons[0].code == "unknown_expert"
    assert decide(two, ask(), "exp_1").reasons[0].code == "ambiguous_expert"
    assert decide(two, ask(), bundle(2)).verdict == "permit"


def test_a_prohibition_that_will_begin_ends_the_permit() -> None:
    """Facts that start to forbid later bound the permit, unreadable ones too."""
    for later in ({"purpose": "any"}, {"purpose": "gibberish"}):
        coming = consent(2, expert_id="exp_1", effect="forbid", valid_from_us=NOW_US + 9, **later)
        decision = decide(world(consents=(consent(valid_until_us=NOW_US + 50), coming)), ask(), "exp_1")
        assert decision.valid_until_us == NOW_US + 9


def test_consents_that_follow_each_other_without_a_gap_hold_together() -> None:
    """A renewal that begins where the old consent ends carries the permit on; a gap does not."""
    old = consent(1, valid_until_us=NOW_US + 10)
    renewed = consent(2, expert_id="exp_1", valid_from_us=NOW_US + 10, valid_until_us=NOW_US + 20)
    late = consent(2, expert_id="exp_1", valid_from_us=NOW_US + 11)
    assert decide(world(consents=(old, renewed)), ask(), "exp_1").valid_until_us == NOW_US + 20
    assert decide(world(consents=(old, late)), ask(), "exp_1").valid_until_us == NOW_US + 10


def test_exporting_weights_is_never_permitted_by_a_wildcard() -> None:
    """Consent and grant have to name it; a forbid for everything includes it."""
    named = {
        "consents": (consent(action="export_weights"),),
        "grants": (grant(action="export_weights"),),
        "rules": (rule(action="export_weights"),),
    }
    asked = ask(action="export_weights")
    assert decide(world(**named), asked, "exp_1").verdict == "permit"
    for kind, starred in (("consents", consent(action="*")), ("grants", grant()), ("rules", rule())):
        assert decide(world(**{**named, kind: (starred,)}), asked, "exp_1").verdict == "deny"
    forbidden = {**named, "rules": (*named["rules"], rule(2, effect="forbid"))}
    assert decide(world(**forbidden), asked, "exp_1").outcome == "forbidden"


def test_the_input_digest_names_snapshot_use_and_expert_but_not_the_moment() -> None:
    """Equal inputs have equal digests at every moment; another use has another one."""
    snapshot = world()
    first = decide(snapshot, ask(), "exp_1").input_digest
    assert decide(snapshot, ask(at_us=NOW_US + 5), "exp_1").input_digest == first
    assert decide(snapshot, ask(region="de"), "exp_1").input_digest != first
    assert decide(world(epoch=8), ask(), "exp_1").input_digest != first
    two = compose(world(experts=(expert(1), expert(2))), ask()).decisions
    assert two[0].input_digest != two[1].input_digest


def test_of_several_reasons_the_gravest_names_the_outcome() -> None:
    """All reasons are told; the class is error before forbidden before what is merely missing."""
    facts: dict[str, Any] = {"grants": (), "consents": ()}
    assert decide(world(**facts), ask(), "exp_1").outcome == "no_consent"
    facts["rules"] = (rule(2, effect="forbid"),)
    assert decide(world(**facts), ask(), "exp_1").outcome == "forbidden"
    facts["rules"] = (*facts["rules"], rule(3, purpose="gibberish"))
    decision = decide(world(**facts), ask(), "exp_1")
    assert decision.outcome == "error"
    assert {"consent", "grant", "rules"} == {one.gate for one in decision.reasons if is_denial(one)}


def test_questions_that_make_no_sense_are_refused() -> None:
    """An unknown deployment and a question without a use are errors of the asker, not denials."""
    with pytest.raises(UnknownDeployment):
        compose(world(), Question(deployment="nope", at_us=1))
    with pytest.raises(IncompleteQuestion):
        compose(world(), Question(tenant="app", at_us=1))
    spelled = Question(
        tenant="app", base_digest=BASE, purpose="research", region="eu", commercial=False, at_us=NOW_US
    )
    assert [m.expert_id for m in compose(world(), spelled).members] == ["exp_1"]


CODES_OF_RELEASE_1 = """
unknown_vocabulary unknown_engine unknown_action unknown_purpose unknown_region unknown_expert
ambiguous_expert identity_holds unknown_consumer consumer_suspended unknown_owner owner_suspended
unknown_base base_suspended other_base expert_not_listed consent_permits dataset_consent_permits
consent_forbids consent_forbids_part consent_unreadable no_consent consent_withdrawn consent_expired
consent_not_yet lineage_missing dataset_owner_differs dataset_consent_withdrawn no_dataset_consent
dataset_consent_expired dataset_consent_not_yet consent_withheld grant_permits no_grant grant_revoked
grant_expired grant_not_yet license_permits invalid_license unknown_license unreviewed_license
license_facet_unknown license_forbids license_prohibits_purpose license_term_unknown share_alike_conflict
royalty_overflow rule_permits no_permitting_rule rule_forbids rule_forbids_part rule_unreadable
conflict_share_alike conflict_royalty conflict_elsewhere awaits_review
"""


def test_codes_are_never_renamed() -> None:
    """Codes are API: every code that was ever released is still there, with a whole sentence."""
    assert set(CODES_OF_RELEASE_1.split()) <= set(CODES)
    assert all(code == code.lower() and CODES[code].sentence.endswith(".") for code in CODES)


def test_an_interval_that_holds_no_moment_says_nothing_at_any() -> None:
    """A consent that ends where it begins is over, not yet to come; such a prohibition ends no permit."""
    later = {"valid_from_us": NOW_US + 5, "valid_until_us": NOW_US + 5}
    decision = decide(world(consents=(consent(**later),)), ask(), "exp_1")
    assert [one.code for one in decision.reasons if is_denial(one)] == ["consent_expired"]
    never = consent(2, expert_id="exp_1", effect="forbid", **later)
    assert decide(world(consents=(consent(), never)), ask(), "exp_1").valid_until_us is None


def test_what_is_decided_says_of_which_moment_and_cannot_be_altered() -> None:
    """Decisions carry the moment that was asked about, and neither they nor questions can be rewritten."""
    snapshot = world(experts=(expert(1), expert(2)))
    first, second = (compose(snapshot, ask(at_us=NOW_US + shift)) for shift in (0, 7))
    assert {one.at_us for one in first.decisions} == {NOW_US}
    assert {one.at_us for one in second.decisions} == {NOW_US + 7}
    for value in (ask(), first, first.decisions[0]):
        with pytest.raises(ValueError, match="frozen"):
            value.at_us = 1  # type: ignore[misc]


def test_a_rule_that_says_why_is_quoted() -> None:
    """The sentence of a denial ends with the rule's text, and without one like any sentence."""
    for text, sentence in (("not here", "forbids this use: not here."), ("", "forbids this use.")):
        decision = decide(world(rules=(rule(), rule(2, effect="forbid", text=text))), ask(), "exp_1")
        (denial,) = (one for one in decision.reasons if is_denial(one))
        assert denial.sentence.endswith(sentence)
