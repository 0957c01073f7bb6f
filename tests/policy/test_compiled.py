# SPDX-License-Identifier: Apache-2.0
"""The compiled snapshot says what the explaining decision says, and nothing it was asked before matters."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import (
    BASE,
    LICENSES,
    NOW_US,
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

from policy.compiled import compile_snapshot
from policy.compiled.composer import Composed
from policy.deciding.composition import Composition, compose
from policy.deciding.questions import Question, resolve
from policy.deciding.reasons import is_denial
from policy.facts.snapshot import BaseFact, Snapshot, TenantFact

WORLDS = 1_200
FIELDS = tuple(Composed.__dataclass_fields__)
seeds = st.integers(min_value=0, max_value=2**32)


def differs(snapshot: Snapshot, *questions: Question) -> list[str]:
    """The fields in which the two answers to any of these questions are unlike."""
    compiled = compile_snapshot(snapshot)
    found = []
    for question in questions:
        whole, asked = compose(snapshot, question), resolve(snapshot, question)
        answer = compiled.compose(asked)
        found += [name for name in FIELDS if getattr(whole, name) != getattr(answer, name)]
        if _open(whole) != [one for one in compiled.permitted(asked) if one in _candidates(whole)]:
            found.append("permitted")
    return found


def _candidates(whole: Composition) -> set[str]:
    return {one.bundle_digest for one in whole.decisions}


def _open(whole: Composition) -> list[str]:
    """Candidates that nothing but the set stands against."""
    return [
        one.bundle_digest
        for one in whole.decisions
        if not any(is_denial(reason) and reason.gate != "set" for reason in one.reasons)
    ]


def test_it_answers_as_the_explaining_decision() -> None:
    """On random worlds, at the moment they are made around, before it and after it."""
    for seed in range(WORLDS):
        snapshot, question = random_world(seed)
        moments = (question.model_copy(update={"at_us": at_us}) for at_us in (NOW_US, NOW_US + 500, 0))
        assert differs(snapshot, *moments) == [], seed


@settings(max_examples=60, deadline=None)
@given(seeds, st.data())
def test_uses_spelled_out_are_answered_alike(seed: int, data: st.DataObject) -> None:
    """Also with words, bases, tenants and candidates that nobody knows; all questions of one compilation."""
    snapshot, _ = random_world(seed)
    dice = random.Random(data.draw(st.integers(0, 2**32)))
    named = (*(f"exp_{n}" for n in range(4)), *map(bundle, range(4)), "nobody")
    questions = [
        Question(
            at_us=NOW_US + dice.choice((-1, 0, 1, 499, 500, 5_000)),
            deployment=dice.choice((None, "lab")),
            tenant=dice.choice(("app", "bank", "anna", "nobody", "*")),
            base_digest=dice.choice((BASE, BASE, BASE, bundle(77), "")),
            action=dice.choice(("infer", "infer", "view_card", "fine_tune", "export_weights", "*", "fly")),
            purpose=dice.choice(("research", "medical-advice", "cancer-research", "any", "*", "gibberish")),
            region=dice.choice(("eu", "de", "global", "us", "*", "atlantis")),
            commercial=dice.choice((False, True)),
            candidates=dice.choice(("*", tuple(dice.sample(named, 3)))),
            top_k=dice.choice((1, 2, 9)),
            on_conflict=dice.choice(("strict", "drop_by_rule")),
        )
        for _ in range(4)
    ]
    assert differs(snapshot, *questions) == []


@pytest.mark.parametrize("said", [{"vocabulary_version": "never"}, {"engine_version": "never"}])
def test_what_it_does_not_understand_it_denies(said: dict[str, str]) -> None:
    """A snapshot of another engine or with another vocabulary permits nothing, not even the base."""
    snapshot = world(**said)
    assert differs(snapshot, ask()) == []
    asked = resolve(snapshot, ask())
    compiled = compile_snapshot(snapshot)
    assert (compiled.compose(asked).verdict, compiled.permitted(asked)) == ("deny", ())
    assert compiled.moments_us(asked) == []


def _renewed(*spans: tuple[int, int | None], number: int = 1, **fields: Any) -> list[Any]:
    return [
        consent(
            number * 100 + n, valid_from_us=a, valid_until_us=b, **{"expert_id": f"exp_{number}", **fields}
        )
        for n, (a, b) in enumerate(spans)
    ]


@pytest.mark.parametrize(
    ("consents", "until"),
    [
        (_renewed((0, NOW_US + 5), (NOW_US + 5, NOW_US + 9)), 9),
        (_renewed((0, NOW_US + 5), (NOW_US + 6, None)), 5),
        (_renewed((0, NOW_US + 5), (NOW_US + 2, NOW_US + 7), (NOW_US + 7, None)), None),
        ([*_renewed((0, NOW_US + 5)), *_renewed((3, NOW_US + 8), number=2, expert_id="*")], 8),
        ([*_renewed((0, None)), *_renewed((NOW_US + 4, None), number=2, effect="forbid", expert_id="*")], 4),
        ([*_renewed((0, None)), *_renewed((NOW_US + 4, NOW_US + 4), number=2, effect="forbid")], None),
        (
            [
                *_renewed((0, NOW_US + 3)),
                *_renewed((NOW_US + 4, None), number=1, effect="forbid", id="con_x"),
            ],
            3,
        ),
    ],
)
def test_it_ends_when_the_last_permit_without_a_gap_ends_or_a_forbid_begins(
    consents: list[Any], until: int | None
) -> None:
    """Renewals of one's own or for all experts carry on; gaps and coming forbids end it."""
    snapshot = world(consents=tuple(consents))
    answer = compile_snapshot(snapshot).compose(resolve(snapshot, ask()))
    assert answer.valid_until_us == (None if until is None else NOW_US + until)
    assert differs(snapshot, ask()) == []


def _clashing(action: str, **fields: Any) -> Snapshot:
    keys = ("LicenseRef-70", "LicenseRef-40", "MIT", "LicenseRef-40", "CC-BY-SA-4.0", "CC-BY-NC-SA-4.0")
    experts = [expert(n, license=key) for n, key in enumerate(keys, 1)]
    # One dataset with a royalty of its own under two experts: it counts once.
    shared = dataset(77, license="LicenseRef-40")
    experts += [expert(n, datasets=(shared,)) for n in (7, 8)]
    stated: dict[str, Any] = {
        "action": action,
        "commercial": action != "export_weights",
        "on_conflict": "drop_by_rule",
        "priority": ("exp_4", "exp_4", "exp_2"),
        **fields,
    }
    numbers = range(1, 9)
    return world(
        experts=tuple(experts),
        consents=tuple(consent(n, action=action) for n in numbers),
        grants=tuple(grant(n, action=action) for n in numbers),
        rules=(rule(action=action),),
        deployments=(deployment(**stated),),
    )


@pytest.mark.parametrize(
    "base", ["CC0-1.0", "LicenseRef-70", "LicenseRef-70 AND LicenseRef-40", "CC-BY-SA-4.0"]
)
@pytest.mark.parametrize("action", ["infer", "export_weights"])
@pytest.mark.parametrize("on_conflict", ["strict", "drop_by_rule"])
def test_conflicts_are_settled_alike(base: str, action: str, on_conflict: str) -> None:
    """With royalties and share-alike of members, of a dataset of two, and of the base itself."""
    bases = (BaseFact(base_digest=BASE, name="public", license=base),)
    snapshot = _clashing(action, on_conflict=on_conflict).model_copy(update={"bases": bases})
    let_in = tuple(bundle(n) for n in (1, 2, 3, 8))
    reviewed = snapshot.deployments[0].model_copy(update={"members": let_in})
    assert differs(snapshot, ask()) == []
    assert differs(snapshot.model_copy(update={"deployments": (reviewed,)}), ask()) == []


def test_several_versions_of_one_expert_are_judged_by_themselves() -> None:
    """What is said of an expert holds for all its versions; lineage, license and state are each one's own."""
    first = expert(1)
    later = expert(2, expert_id="exp_1", license="CC-BY-NC-4.0", datasets=(dataset(5, consent="separate"),))
    gone = expert(3, expert_id="exp_1", state="suspended")
    spoken = consent(9, dataset_id="ds_5", expert_id="*", valid_until_us=NOW_US + 7)
    snapshot = world(experts=(first, later, gone), consents=(consent(), spoken))
    assert differs(snapshot, ask(), ask(commercial=True), ask(candidates=("exp_1",))) == []
    answer = compile_snapshot(snapshot).compose(resolve(snapshot, ask()))
    assert [member.bundle_digest for member in answer.members] == [bundle(1), bundle(2)]
    assert answer.valid_until_us == NOW_US + 7


def test_nothing_is_remembered_from_one_question_to_the_next() -> None:
    """The same questions in another order have the same answers."""
    snapshot = _clashing("infer").model_copy(update={"licenses": LICENSES})
    compiled = compile_snapshot(snapshot)
    asked = [
        resolve(snapshot, ask(purpose=purpose, commercial=commercial, at_us=at_us))
        for purpose in ("research", "medical-advice", "military-research", "gibberish")
        for commercial in (False, True)
        for at_us in (0, NOW_US)
    ]
    answers = [compiled.compose(one) for one in asked]
    assert [compiled.compose(one) for one in reversed(asked)] == answers[::-1]


def test_an_empty_register_answers_with_the_base_alone() -> None:
    """Where nobody has an expert, the active consumer still has the public base."""
    empty = world(experts=(), consents=(), grants=())
    assert differs(empty, ask()) == []
    assert compile_snapshot(empty).compose(resolve(empty, ask())).verdict == "permit"
    suspended = tuple(TenantFact(slug=slug, status="suspended") for slug in ("app",))
    assert differs(empty.model_copy(update={"tenants": suspended}), ask()) == []
