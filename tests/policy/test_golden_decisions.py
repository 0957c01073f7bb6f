# SPDX-License-Identifier: Apache-2.0
"""The golden examples of deciding, one test a row; whatever a row does not mention holds.

Every world is written into a register's rows, published and read back, on either engine, before it is asked.
All evaluators are asked (see ``tests/oracles``); the tests say what the answer is.
"""

from __future__ import annotations

import sqlite3
from functools import cache

import pytest
from inscribed import Kept, through
from oracle_compare import Asked, compare
from oracle_sql import SqlOracle
from worlds import (
    LICENSES,
    NOW_US,
    ask,
    bundle,
    consent,
    dataset,
    deployment,
    expert,
    grant,
    license_fact,
    rule,
    world,
)

from policy.deciding.composition import Composition, compose
from policy.deciding.decision import Decision, decide, redacted
from policy.deciding.questions import Question
from policy.deciding.reasons import is_denial
from policy.facts.snapshot import Snapshot
from tenants.accounts.database import Database


@pytest.fixture
def kept(database: Database) -> Kept:
    """Puts a world through a database of either engine."""
    return through(database)


def denials(decision: Decision) -> list[str]:
    """The codes that deny."""
    return [one.code for one in decision.reasons if is_denial(one)]


def answer(snapshot: Snapshot, **fields: object) -> Decision:
    """The decision about exp_1."""
    question = ask(**fields)
    all_agree(snapshot, question)
    return decide(snapshot, question, "exp_1")


def composed(snapshot: Snapshot, **fields: object) -> Composition:
    """What the deployment runs."""
    question = ask(**fields)
    all_agree(snapshot, question)
    return compose(snapshot, question)


@cache
def set_queries() -> SqlOracle:
    """The SQL evaluator, in memory."""
    return SqlOracle(sqlite3.connect(":memory:"))


def all_agree(snapshot: Snapshot, question: Question) -> None:
    """Puts the question to all evaluators, as that of the deployment itself."""
    stated = question.model_dump(exclude_none=True, exclude={"deployment", "at_us"})
    facts = tuple(fact.model_copy(update=stated) for fact in snapshot.deployments)
    asked = Asked(
        "golden",
        snapshot.model_copy(update={"deployments": facts}),
        Question(deployment="lab", at_us=question.at_us),
    )
    assert compare([asked], set_queries()).disagreements == []


def test_1_without_a_permitting_rule_nothing_is_permitted(kept: Kept) -> None:
    """Consent alone is not enough: the default is no, and the nearest miss is a rule."""
    decision = answer(kept(world(rules=())))
    assert (decision.verdict, decision.outcome) == ("deny", "no_rule")
    assert denials(decision) == ["no_permitting_rule"]
    assert [miss.ask for miss in decision.nearest_miss] == ["compliance"]


def test_2_a_permitting_rule_completes_it(kept: Kept) -> None:
    """With a rule for research the expert answers."""
    decision = answer(kept(world(rules=(rule(purpose="research"),))))
    assert (decision.verdict, denials(decision)) == ("permit", [])


def test_3_a_permit_covers_what_is_below_its_purpose_and_not_what_is_above(kept: Kept) -> None:
    """Consent to medical research covers cancer research; the other way round does not."""
    medical = kept(world(consents=(consent(purpose="medical-research"),)))
    assert answer(medical, purpose="cancer-research").verdict == "permit"
    cancer = kept(world(consents=(consent(purpose="cancer-research"),)))
    decision = answer(cancer, purpose="medical-research")
    assert denials(decision) == ["no_consent"]
    assert decision.nearest_miss[0].fact_id == "con_1"
    assert decision.nearest_miss[0].differs == ("purpose",)


def test_4_a_forbidden_part_denies_the_broader_request(kept: Kept) -> None:
    """Who forbids military research forbids research that may include it, and is told to narrow it."""
    snapshot = kept(
        world(
            consents=(consent(), consent(2, expert_id="exp_1", effect="forbid", purpose="military-research"))
        )
    )
    decision = answer(snapshot, purpose="research")
    assert (decision.outcome, denials(decision)) == ("forbidden", ["consent_forbids_part"])
    assert "Narrow" in decision.nearest_miss[0].sentence
    assert answer(snapshot, purpose="cancer-research").verdict == "permit"


def test_5_a_non_commercial_license_denies_commerce_and_asks_for_attribution_otherwise(kept: Kept) -> None:
    """CC-BY-NC-4.0 in a commercial and in a research deployment."""
    snapshot = kept(world(experts=(expert(license="CC-BY-NC-4.0"),)))
    decision = answer(snapshot, commercial=True)
    assert (decision.outcome, denials(decision)) == ("license", ["license_forbids"])
    assert "use_commercial" in next(r.sentence for r in decision.reasons if r.code == "license_forbids")
    permitted = answer(snapshot, commercial=False)
    assert permitted.verdict == "permit"
    assert ("attribute", "exp_1") in {(one.kind, one.subject) for one in permitted.obligations}


def test_6_of_two_licenses_the_one_that_permits_is_chosen_and_recorded(kept: Kept) -> None:
    """MIT OR CC-BY-NC-4.0, commercially: by MIT."""
    decision = answer(kept(world(experts=(expert(license="MIT OR CC-BY-NC-4.0"),))), commercial=True)
    assert decision.verdict == "permit"
    assert decision.licenses[0].chosen == ("MIT",)


@pytest.mark.parametrize("action", ["infer", "export_weights"])
def test_7_share_alike_conflicts_only_where_weights_leave(action: str, kept: Kept) -> None:
    """CC-BY-SA and CC-BY-NC-SA together may answer, but may not be exported, and both are named."""
    snapshot = kept(
        world(
            experts=(expert(1, license="CC-BY-SA-4.0"), expert(2, license="CC-BY-NC-SA-4.0")),
            consents=(consent(1, action=action), consent(2, action=action)),
            grants=(grant(1, action=action), grant(2, action=action)),
            rules=(rule(action=action),),
            deployments=(deployment(action=action),),
        )
    )
    composition = composed(snapshot)
    if action == "infer":
        assert len(composition.members) == 2
        return
    assert (composition.verdict, composition.members) == ("deny", ())
    assert composition.reasons[0].code == "conflict_share_alike"
    assert composition.reasons[0].fact_ids == (bundle(1), bundle(2))


@pytest.mark.parametrize("text", ["NOASSERTION", "NONE", "LicenseRef-nobody-knows", "MIT AND NOASSERTION"])
def test_8_an_unknown_license_denies_whatever_is_asked(text: str, kept: Kept) -> None:
    """Also where the table holds a row of such a name."""
    table = (*LICENSES, license_fact("NOASSERTION"), license_fact("NONE"))
    decision = answer(kept(world(experts=(expert(license=text),), licenses=table)))
    assert (decision.outcome, denials(decision)) == ("license", ["unknown_license"])


def test_9_consent_ends_at_its_microsecond(kept: Kept) -> None:
    """A consent until noon permits until one microsecond before, and says so."""
    noon_us = 43_200_000_000
    snapshot = kept(world(consents=(consent(valid_until_us=noon_us),)))
    before = answer(snapshot, at_us=noon_us - 1)
    assert (before.verdict, before.valid_until_us) == ("permit", noon_us)
    assert denials(answer(snapshot, at_us=noon_us)) == ["consent_expired"]


@pytest.mark.parametrize("how", ["flag", "fact"])
def test_10_one_withdrawn_dataset_of_the_lineage_denies_the_expert(how: str, kept: Kept) -> None:
    """The consent for the expert lives, that for its second dataset does not; the dataset is named."""
    second = dataset(2, consent="withdrawn" if how == "flag" else "separate", tenant="ben")
    withdrawn = consent(2, expert_id="*", dataset_id="ds_2", tenant="ben", state="withdrawn")
    snapshot = world(
        experts=(expert(datasets=(dataset(1), second)),),
        consents=(consent(), *([withdrawn] if how == "fact" else [])),
    )
    decision = answer(snapshot if how == "flag" else kept(snapshot))
    assert (decision.outcome, denials(decision)) == ("no_consent", ["dataset_consent_withdrawn"])
    assert "ds_2" in next(r for r in decision.reasons if is_denial(r)).fact_ids


@pytest.mark.parametrize("effect", ["permit", "forbid"])
@pytest.mark.parametrize("field", ["action", "purpose", "region"])
def test_11_a_rule_with_an_unknown_word_denies(effect: str, field: str, kept: Kept) -> None:
    """An unreadable rule is not skipped, whatever it meant to say."""
    decision = answer(kept(world(rules=(rule(), rule(2, effect=effect, **{field: "gibberish"})))))
    assert (decision.outcome, denials(decision)) == ("error", ["rule_unreadable"])


def test_12_royalties_above_the_whole_conflict(kept: Kept) -> None:
    """700,000 + 400,000 ppm: strict denies both by name, the rule drops the lower priority."""

    def settled(on_conflict: str) -> Snapshot:
        return kept(
            world(
                experts=(expert(1, license="LicenseRef-70"), expert(2, license="LicenseRef-40"), expert(3)),
                consents=(consent(1), consent(2), consent(3)),
                grants=(grant(1), grant(2), grant(3)),
                deployments=(deployment(commercial=True, on_conflict=on_conflict, priority=("exp_2",)),),
            )
        )

    strict = composed(settled("strict"))
    assert (strict.verdict, strict.members, strict.reasons[0].code) == ("deny", (), "conflict_royalty")
    assert strict.reasons[0].fact_ids == (bundle(1), bundle(2))
    assert denials(strict.decisions[2]) == ["conflict_elsewhere"]
    dropped = composed(settled("drop_by_rule"))
    assert [member.expert_id for member in dropped.members] == ["exp_2", "exp_3"]
    assert dropped.dropped == (bundle(1),)
    assert composed(settled("strict"), commercial=False).verdict == "permit"


def test_13_restricted_uses_deny_or_flow_down(kept: Kept) -> None:
    """A license with restricted uses: medical advice is denied, other uses carry its terms along."""
    snapshot = kept(world(experts=(expert(license="LicenseRef-rail"),)))
    decision = answer(snapshot, purpose="medical-advice")
    assert denials(decision) == ["license_prohibits_purpose"]
    permitted = answer(snapshot, purpose="research")
    assert {"flow_down", "prohibited_purpose"} <= {one.kind for one in permitted.obligations}


def test_14_a_withdrawn_consent_denies_inference_by_that_name(kept: Kept) -> None:
    """The owner's withdrawal shows as such (storage and legal holds are decided elsewhere)."""
    decision = answer(kept(world(consents=(consent(state="withdrawn"),))))
    assert (decision.outcome, denials(decision)) == ("no_consent", ["consent_withdrawn"])


def test_15_whom_an_owner_forbids_is_shown_to_the_owner_alone(kept: Kept) -> None:
    """The refused consumer reads that the provider withholds it; the owner reads the whole reason."""
    snapshot = kept(
        world(consents=(consent(), consent(2, expert_id="exp_1", effect="forbid", recipient="app")))
    )
    decision = answer(snapshot)
    assert denials(decision) == ["consent_forbids"]
    assert redacted(decision, "anna") == decision
    seen = redacted(decision, "app")
    assert (seen.verdict, denials(seen)) == ("deny", ["consent_withheld"])
    assert "con_2" not in seen.model_dump_json()
    assert answer(snapshot, tenant="bank").outcome == "no_grant"  # nobody else is meant
    assert answer(kept(world()), at_us=NOW_US).verdict == "permit"
