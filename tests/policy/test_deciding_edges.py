# SPDX-License-Identifier: Apache-2.0
"""Edges of deciding that random worlds show too seldom, or that no world can show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from worlds import (
    NOW_US,
    ask,
    bundle,
    consent,
    dataset,
    deployment,
    expert,
    grant,
    license_fact,
    random_world,
    rule,
    world,
)

from model_core.packing.canonical import digest_of
from policy.compiled import compile_snapshot
from policy.deciding.composition import Question, compose
from policy.deciding.decision import decide, redacted
from policy.deciding.license_expressions import parse
from policy.deciding.licenses import Terms, Use, check_expression, terms_of
from policy.deciding.licenses import ask as ask_license
from policy.deciding.matching import chain, permit_of
from policy.deciding.members import composition_digest
from policy.deciding.questions import resolve
from policy.deciding.reasons import obligation, obligations_in_order, reason
from policy.errors import IncompleteQuestion, InvalidLicenseExpression
from policy.facts.snapshot import Snapshot
from policy.facts.terms import ACTIONS
from policy.facts.vocabulary import action_permits, vocabulary


def differs(snapshot: Snapshot, **asked: Any) -> tuple[str, ...]:
    """In what the nearest consent falls short."""
    (near,) = (one for one in decide(snapshot, ask(**asked), "exp_1").nearest_miss if one.gate == "consent")
    return near.differs


def test_the_input_digest_is_that_of_snapshot_use_and_expert() -> None:
    """Whoever holds the three can compute it."""
    snapshot = world()
    use = ["app", snapshot.bases[0].base_digest, "infer", "research", "eu", False]
    named = {"expert": bundle(1), "snapshot": snapshot.digest, "use": use}
    assert decide(snapshot, ask(), "exp_1").input_digest == digest_of(named)


@pytest.mark.parametrize(
    ("fields", "short"),
    [
        ({"action": "evaluate"}, ("action",)),
        ({"purpose": "military-research"}, ("purpose",)),
        ({"region": "us"}, ("region",)),
        ({"action": "gibberish"}, ("action", "words")),
        ({"purpose": "gibberish"}, ("purpose", "words")),
        ({"region": "atlantis"}, ("region", "words")),
        ({"recipient": "bank"}, ("recipient",)),
        ({"state": "withdrawn"}, ("state",)),
        ({"valid_until_us": NOW_US}, ("expired",)),
        ({"valid_from_us": NOW_US + 1}, ("not_yet",)),
    ],
)
def test_the_nearest_permit_says_in_what_it_falls_short(fields: Any, short: tuple[str, ...]) -> None:
    """One thing that is otherwise is one thing that is named, and words nobody knows are named as such."""
    assert differs(world(consents=(consent(**fields),))) == short
    assert differs(world(consents=(consent(commercial=False),)), commercial=True) == ("commercial",)


@pytest.mark.parametrize(("commercial", "said"), [(True, ", commercial"), (False, ", non-commercial")])
def test_what_is_needed_says_whether_the_use_is_commercial(commercial: bool, said: str) -> None:
    """The sentence that goes to the owner names the whole use."""
    (near, *_) = decide(world(consents=()), ask(commercial=commercial), "exp_1").nearest_miss
    assert said in near.sentence


def test_a_denial_owes_nothing_and_a_permit_owes_in_order() -> None:
    """Obligations and licenses belong to what may run, in one order whatever they came from."""
    owed = 0
    for seed in range(60):
        snapshot, question = random_world(seed)
        for one in compose(snapshot, question).decisions:
            if one.verdict == "deny":
                assert (one.obligations, one.licenses, one.valid_until_us) == ((), (), None)
            else:
                assert one.obligations == obligations_in_order(one.obligations)
                owed += len(one.obligations)
    assert owed


def test_groups_in_conflict_are_named_in_order() -> None:
    """The sentence of a conflict does not depend on the order in which Python keeps a set."""
    groups = [f"G{n}" for n in range(9)]
    licenses = [license_fact(f"LicenseRef-{name}", share_alike_group=name) for name in groups]
    snapshot = world(
        licenses=(license_fact("CC0-1.0"), *licenses),
        experts=tuple(expert(n, license=one.key) for n, one in enumerate(licenses, 1)),
        consents=tuple(consent(n, action="export_weights") for n in range(1, 10)),
        grants=tuple(grant(n, action="export_weights") for n in range(1, 10)),
        rules=(rule(action="export_weights"),),
        deployments=(deployment(action="export_weights", on_conflict="drop_by_rule"),),
    )
    said = compose(snapshot, ask())
    assert len(said.members) == 1
    clashes = [r.sentence for d in said.decisions for r in d.reasons if r.code == "conflict_share_alike"]
    assert len(clashes) == 8
    assert all("G0 and G" in one for one in clashes)
    alone = expert(1, license=" AND ".join(one.key for one in reversed(licenses)))
    denied = decide(snapshot.model_copy(update={"experts": (alone,)}), ask(), "exp_1")
    (clash,) = (one for one in denied.reasons if one.code == "share_alike_conflict")
    assert " and ".join(groups) in clash.sentence


def test_few_names_among_many_experts_are_looked_up() -> None:
    """Named by id, by bundle or by a name that nobody has: the same as when all are gone through."""
    many = range(1, 240)
    crowd = world(
        experts=tuple(expert(n) for n in many),
        consents=tuple(consent(n) for n in many),
        grants=tuple(grant(n) for n in many),
    )
    named = (*(f"exp_{n}" for n in range(20, 3, -2)), bundle(3), "nobody")
    said = compose(crowd, ask(candidates=named))
    assert [one.expert_id for one in said.members] == [f"exp_{n}" for n in (3, *range(4, 21, 2))]
    assert [one.reasons[0].code for one in said.decisions if one.verdict == "deny"] == ["unknown_expert"]


def test_what_is_no_license_is_refused_though_somebody_reviewed_it() -> None:
    """NOASSERTION and NONE state that nothing is known, whatever a table holds under them."""
    for key in ("NOASSERTION", "NONE"):
        table = {key.lower(): license_fact(key), "mit": license_fact("MIT")}
        with pytest.raises(InvalidLicenseExpression):
            check_expression(f"MIT AND {key}", table)
        named = expert(license=key)
        denied = decide(world(experts=(named,), licenses=tuple(table.values())), ask(), "exp_1")
        assert "unknown_license" in [one.code for one in denied.reasons]
    blank = {"mit": license_fact("MIT", reviewed_by=" ")}
    with pytest.raises(InvalidLicenseExpression):
        check_expression("MIT", blank)


@pytest.mark.parametrize(("nested", "readable"), [(40, True), (41, False)])
def test_an_expression_is_read_to_a_depth(nested: int, readable: bool) -> None:
    """What nests too deep is refused with a sentence, before anything recurses into it."""
    text = "MIT"
    for place in range(nested):
        text = f"({text} {('AND', 'OR')[place % 2]} CC0-1.0)"
    if readable:
        assert parse(text).kind in ("and", "or")
    else:
        with pytest.raises(InvalidLicenseExpression):
            parse(text)


def test_a_permit_for_one_action_is_none_for_another() -> None:
    """Actions have no hierarchy: each is permitted by its own name, or by the wildcard."""
    for stated in ACTIONS:
        for asked in ACTIONS:
            assert action_permits(stated, asked) == (stated == asked)
    assert decide(world(rules=(rule(action="evaluate"),)), ask(), "exp_1").outcome != "permit"


def test_a_notice_names_where_the_terms_are_on_both_paths() -> None:
    """The address of a license's text where there is one, else its key; servers say the same."""
    for fields, text in (({"url": "https://example.org/t"}, "https://example.org/t"), ({}, "X-1")):
        x = license_fact("X-1", notice=True, **fields)
        snapshot = world(experts=(expert(license="X-1"),), licenses=(license_fact("CC0-1.0"), x))
        said = compose(snapshot, ask())
        assert {one.text for one in said.obligations if one.kind == "notice"} == {text}
        assert compile_snapshot(snapshot).deployment("lab", NOW_US).obligations == said.obligations


@pytest.mark.parametrize(("commercial", "members"), [(True, 0), (False, 2)])
def test_royalties_clash_only_where_they_are_due(commercial: bool, members: int) -> None:
    """More than a whole in royalties stands against commerce alone, also for those who serve."""
    several = tuple(
        expert(n, license=key, datasets=(dataset(n),))
        for n, key in ((1, "LicenseRef-70"), (2, "LicenseRef-40"))
    )
    snapshot = world(
        experts=several,
        consents=tuple(consent(n, action="export_weights") for n in (1, 2)),
        grants=tuple(grant(n, action="export_weights") for n in (1, 2)),
        rules=(rule(action="export_weights"),),
        deployments=(deployment(action="export_weights", commercial=commercial),),
    )
    assert len(compose(snapshot, ask()).members) == members
    assert len(compile_snapshot(snapshot).deployment("lab", NOW_US).members) == members


def test_questions_and_reasons_are_frozen() -> None:
    """What was asked and why it was answered so can not be written over."""
    question = ask()
    frozen: tuple[tuple[BaseModel, str], ...] = (
        (question, "purpose"),
        (resolve(world(), question), "purpose"),
        (reason("no_consent", tenant="anna"), "code"),
        (obligation("notice", "MIT", "exp_1", "here"), "text"),
        (decide(world(consents=()), question, "exp_1").nearest_miss[0], "ask"),
    )
    for document, field in frozen:
        with pytest.raises(ValidationError):
            setattr(document, field, "other")


def test_a_question_names_what_it_leaves_out() -> None:
    """All that is missing, and nothing that was said."""
    with pytest.raises(IncompleteQuestion) as refused:
        compose(world(), Question(at_us=1, tenant="app", region="eu"))
    assert refused.value.facts["missing"] == ["base_digest", "purpose", "commercial"]


def both(snapshot: Snapshot, **asked: Any) -> list[str]:
    """Who serves, on which the explaining decision and the compiled snapshot agree."""
    said = [one.expert_id for one in compose(snapshot, ask(**asked)).members]
    compiled = compile_snapshot(snapshot).compose(resolve(snapshot, ask(**asked)))
    assert [one.expert_id for one in compiled.members] == said
    return said


@pytest.mark.parametrize(
    "fields",
    [
        {"consents": (consent(purpose="gibberish"),)},
        {"consents": (consent(region="atlantis"),)},
        {"grants": (grant(purpose="gibberish"),)},
        {"grants": (grant(tenant="ben"),)},
        {"consents": (consent(tenant="ben"),)},
        {"consents": (consent(expert_id="exp_2"),)},
        {"rules": (rule(action="evaluate"),)},
    ],
)
def test_what_nobody_can_read_and_what_others_say_permits_nothing(fields: dict[str, Any]) -> None:
    """A permit in unknown words, of another owner, for another expert or action covers nothing."""
    assert both(world()) == ["exp_1"]
    assert both(world(**fields)) == []


@pytest.mark.parametrize(("about", "serves"), [("exp_1", True), ("*", True), ("exp_2", False)])
def test_a_datasets_own_word_speaks_about_the_expert_that_it_names(about: str, serves: bool) -> None:
    """One dataset may be let into one expert and not into another."""
    separate = dataset(10, tenant="ben", consent="separate")
    word = consent(30, expert_id=about, dataset_id="ds_10", tenant="ben")
    snapshot = world(experts=(expert(datasets=(separate,)),), consents=(consent(), word))
    assert both(snapshot) == (["exp_1"] if serves else [])


def test_each_facet_of_a_license_stands_for_itself() -> None:
    """Weights that may be changed but not given away are not exported."""
    for fields, serves in (
        ({}, True),
        ({"distribution_weights": False}, False),
        ({"derivatives": False}, False),
    ):
        licenses = (license_fact("CC0-1.0"), license_fact("X-1", **fields))
        snapshot = world(
            experts=(expert(license="X-1"),),
            licenses=licenses,
            consents=(consent(action="export_weights"),),
            grants=(grant(action="export_weights"),),
            rules=(rule(action="export_weights"),),
            deployments=(deployment(action="export_weights"),),
        )
        assert both(snapshot) == (["exp_1"] if serves else [])


def royal(*ppm: int, shared: int = 0, on_conflict: str = "drop_by_rule") -> Snapshot:
    """Experts with royalties, the first ``shared`` of them only by one dataset that they have in common."""
    keys = [f"LicenseRef-{n}" for n in range(1, len(ppm) + 1)]
    licenses = [license_fact(key, royalty_ppm=one) for key, one in zip(keys, ppm, strict=True)]
    common = dataset(99, license=keys[0])
    experts = [
        expert(n, license="CC0-1.0", datasets=(common,))
        if n <= shared
        else expert(n, license=key, datasets=(dataset(n),))
        for n, key in enumerate(keys, 1)
    ]
    numbers = range(1, len(ppm) + 1)
    return world(
        licenses=(license_fact("CC0-1.0"), *licenses),
        experts=tuple(experts),
        consents=tuple(consent(n) for n in numbers),
        grants=tuple(grant(n) for n in numbers),
        deployments=(deployment(commercial=True, on_conflict=on_conflict),),
    )


@pytest.mark.parametrize("on_conflict", ["strict", "drop_by_rule"])
def test_royalties_may_take_the_whole_and_not_a_millionth_more(on_conflict: str) -> None:
    """A million parts in a million can be paid."""
    assert both(royal(600_000, 400_000, on_conflict=on_conflict)) == ["exp_1", "exp_2"]
    more = both(royal(600_000, 400_001, on_conflict=on_conflict))
    assert more == ([] if on_conflict == "strict" else ["exp_1"])


def test_a_royalty_that_several_owe_for_one_thing_is_paid_once() -> None:
    """Two experts of one dataset leave room for a third, and the fourth is dropped."""
    assert both(royal(400_000, 0, 600_000, 400_000, shared=2)) == ["exp_1", "exp_2", "exp_3"]


def test_what_runs_is_named_alike_in_any_order() -> None:
    """The digest is of a set of experts, and of nothing that nobody knows."""
    three = [bundle(n) for n in (3, 1, 2)]
    assert composition_digest("sha256:b", three, 2) == composition_digest("sha256:b", sorted(three), 2)
    for hierarchy in (vocabulary("1").purposes, vocabulary("1").regions):
        assert hierarchy.permitting("gibberish") == frozenset()


def test_only_an_owners_own_words_are_withheld() -> None:
    """Others see neither which consent refuses nor its id, and still which of their accesses lapsed."""
    snapshot = world(
        consents=(consent(), consent(2, expert_id="exp_1", effect="forbid", recipient="app")),
        grants=(grant(state="revoked"),),
    )
    decision = decide(snapshot, ask(), "exp_1")
    assert {one.fact_id for one in decision.nearest_miss} == {"con_2", "gra_1"}
    seen = redacted(decision, "app")
    assert {one.fact_id for one in seen.nearest_miss} == {"gra_1"}
    assert {one.code for one in decision.reasons} - {one.code for one in seen.reasons} == {"consent_forbids"}
    assert {one.code for one in seen.reasons} - {one.code for one in decision.reasons} == {"consent_withheld"}
    assert redacted(decision, "anna") == decision


@pytest.mark.parametrize("facet", ["use_commercial", "derivatives", "distribution_weights"])
@pytest.mark.parametrize("held", [True, False, None])
def test_terms_hold_only_what_a_license_affirms(facet: str, held: bool | None) -> None:
    """What nobody looked up is not granted, and royalties are owed for commercial use alone."""
    fact = license_fact("X-1", royalty_ppm=5, **{facet: held})
    for commercial, royalties in ((True, frozenset({("it", "X-1", 5)})), (False, frozenset())):
        terms = terms_of(fact, "it", commercial=commercial)
        assert getattr(terms, facet) is (held is True)
        assert terms.royalties == royalties


def test_a_refused_license_clashes_with_nothing() -> None:
    """What does not permit a use lays no terms on it."""
    asked = Use(action="infer", purpose="research", commercial=True, vocabulary=vocabulary("1"))
    said = ask_license({"x-1": license_fact("X-1", royalty_ppm=5, hosted_use=False)}, "X-1", asked)
    assert (said.permits, said.can_clash, said.chosen, said.owed) == (False, False, (), ())
    assert ask_license({"x-1": license_fact("X-1", royalty_ppm=5)}, "X-1", asked).can_clash


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "A grant gives app access."),
        ({"valid_until_us": NOW_US}, "The grant for app has expired."),
        ({"purpose": "military-research"}, "No grant gives app access for this use."),
    ],
)
def test_a_grant_is_spoken_of_by_its_consumer(fields: Any, said: str) -> None:
    """Whoever reads the sentence learns who was let in or is not."""
    decision = decide(world(grants=(grant(**fields),)), ask(), "exp_1")
    assert [one.sentence for one in decision.reasons if one.gate == "grant"] == [said]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "The owner of the dataset ds_2 consents."),
        ({"state": "withdrawn"}, "The consent for the dataset ds_2 was withdrawn."),
        ({"region": "us"}, "No consent for the dataset ds_2 covers this use."),
        ({"expert_id": "exp_2"}, "No consent for the dataset ds_2 covers this use."),
        ({"tenant": "bank"}, "No consent for the dataset ds_2 covers this use."),
    ],
)
def test_a_dataset_is_spoken_of_by_its_id_and_only_its_owner_speaks(fields: Any, said: str) -> None:
    """About this expert or all of them; nobody else's word is heard."""
    other = dataset(2, tenant="ben", consent="separate")
    word = consent(2, **{"expert_id": "exp_1", "tenant": "ben", "dataset_id": "ds_2", **fields})
    snapshot = world(experts=(expert(datasets=(dataset(1), other)),), consents=(consent(), word))
    decision = decide(snapshot, ask(), "exp_1")
    assert said in [one.sentence for one in decision.reasons if one.gate == "consent"]
    needs = [one.sentence for one in decision.nearest_miss if one.gate == "consent"]
    assert bool(needs) is bool(fields)
    assert all(one.startswith("Needs consent of ben for ds_2: ") for one in needs)


def test_a_question_that_was_resolved_is_asked_as_it_stands() -> None:
    """A deployment that is gone since changes nothing about it."""
    asked = resolve(world(), ask())
    assert decide(world(deployments=()), asked, "exp_1").verdict == "permit"


def test_a_use_that_is_spelled_out_needs_no_more_than_who_what_and_where() -> None:
    """What it leaves out is what a new deployment has: two experts a token, all candidates, all or none."""
    snapshot = world()
    use = {
        "tenant": "app",
        "base_digest": snapshot.bases[0].base_digest,
        "purpose": "research",
        "region": "eu",
    }
    asked = resolve(snapshot, Question(at_us=NOW_US, commercial=False, **use))
    assert (asked.action, asked.candidates, asked.top_k) == ("infer", "*", 2)
    assert (asked.on_conflict, asked.members, asked.priority) == ("strict", None, ())


def test_others_learn_what_is_needed_but_not_what_was_said() -> None:
    """The need of a consent is shown to everybody; a permit that comes close, or a prohibition, is not."""
    nothing = decide(world(consents=()), ask(), "exp_1")
    assert [one.gate for one in redacted(nothing, "bank").nearest_miss] == ["consent"]
    near = decide(world(consents=(consent(purpose="military-research"),)), ask(), "exp_1")
    assert redacted(near, "bank").nearest_miss == ()
    assert [one.gate for one in redacted(near, "anna").nearest_miss] == ["consent"]
    ungranted = decide(world(grants=(grant(purpose="military-research"),)), ask(), "exp_1")
    assert redacted(ungranted, "bank").nearest_miss == ungranted.nearest_miss != ()


def test_royalties_clash_in_commerce_alone() -> None:
    """Whoever asks about terms says whether the use is commercial."""
    dear = Terms(royalties=frozenset({("it", "X-1", 1_000_001)}))
    assert dear.conflict(action="infer", commercial=True) == "royalty"
    assert dear.conflict(action="infer", commercial=False) is None


@pytest.mark.parametrize("facet", ["use_commercial", "derivatives", "distribution_weights"])
def test_what_one_of_several_licenses_refuses_they_refuse_together(facet: str) -> None:
    """In either order."""
    refuses = replace(Terms(), **{facet: False})  # type: ignore[arg-type]
    assert not getattr(Terms().join(refuses), facet)
    assert not getattr(refuses.join(Terms()), facet)
    assert getattr(Terms().join(Terms()), facet)


def test_an_expert_that_the_snapshot_knows_otherwise_is_decided_as_it_was_named() -> None:
    """What was read about the snapshot's own says nothing about another of the same digest."""
    snapshot = world()
    asked = ask()
    assert decide(snapshot, asked, snapshot.experts[0]).verdict == "permit"
    suspended = decide(snapshot, asked, expert(state="suspended"))
    assert [one.code for one in suspended.reasons if one.gate == "identity"] == ["expert_not_listed"]
    assert decide(snapshot, asked, snapshot.experts[0]).verdict == "permit"


def test_two_vocabularies_read_the_same_permit_each_in_its_words() -> None:
    """Whether words are known is asked of the snapshot's own vocabulary, whatever was read before."""
    odd = consent(purpose="gibberish")
    assert differs(world(consents=(odd,))) == ("purpose", "words")
    unread = decide(world(consents=(odd,), vocabulary_version="99"), ask(), "exp_1")
    assert [one.code for one in unread.reasons] == ["unknown_vocabulary"]
    assert (unread.expert_id, unread.bundle_digest, unread.tenant) == ("exp_1", bundle(1), "anna")


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_of_two_permits_that_reach_as_far_the_first_by_id_is_cited(order: tuple[int, ...]) -> None:
    """In whatever order they come."""
    permits = [permit_of(consent(n, valid_until_us=NOW_US + 5), vocabulary("1")) for n in order]
    links, ends_us = chain(permits, NOW_US)
    assert (links, ends_us) == (["con_1"], NOW_US + 5)


@pytest.mark.parametrize("text", ["", "  ", "M" * 2_001])
def test_an_empty_or_endless_expression_is_refused_for_its_length(text: str) -> None:
    """The sentence says how long an expression may be."""
    with pytest.raises(InvalidLicenseExpression, match="between one and 2000 characters"):
        parse(text)


def test_of_two_branches_that_owe_as_much_the_first_by_its_keys_is_taken() -> None:
    """However the keys of a branch were written, and for servers too."""
    for n in range(8):
        names = [f"LicenseRef-{n}{letter}" for letter in "abcde"]
        licenses = [license_fact(name, attribution=True) for name in names]
        first, second = " AND ".join(reversed(names[:4])), " AND ".join((names[4], *names[:3]))
        snapshot = world(
            licenses=(license_fact("CC0-1.0"), *licenses),
            experts=(expert(license=f"({second}) OR ({first})"),),
        )
        said = compose(snapshot, ask())
        assert [one.license_key for one in said.obligations] == names[:4]
        assert compile_snapshot(snapshot).deployment("lab", NOW_US).obligations == said.obligations
