# SPDX-License-Identifier: Apache-2.0
"""Replaying a log over two snapshots says what asking each question of both says."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import NOW_US, ask, bundle, consent, expert, grant, random_world, rule, world

from policy.compiled import compile_snapshot
from policy.compiled.replay import Replayed, replay
from policy.deciding.composition import Composition, compose
from policy.deciding.questions import Question
from policy.errors import IncompleteQuestion
from policy.facts.snapshot import Snapshot


def _asked(snapshot: Snapshot, question: Question) -> Composition | None:
    if question.deployment is not None and question.deployment not in snapshot.deployments_by_name:
        return None
    return compose(snapshot, question)


def _members(composition: Composition | None) -> set[str]:
    return set() if composition is None else {one.bundle_digest for one in composition.members}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2**32), st.booleans())
def test_each_logged_question_is_compared_at_its_own_moment(seed: int, other: int, alike: bool) -> None:
    """Whatever the two snapshots, the moments and the order; deployments may be missing from either."""
    before, _ = random_world(seed)
    after = before if alike else random_world(other)[0]
    if not alike and other % 5 == 0:
        after = after.model_copy(update={"deployments": ()})
    dice = random.Random(seed)
    questions = [
        ask(
            at_us=NOW_US + dice.choice((-1, 0, 1, 2, 499, 500, 501, 1_000)),
            deployment=dice.choice(("lab", "lab", "lab", "elsewhere")),
            purpose=dice.choice((None, None, "research", "gibberish")),
            commercial=dice.choice((None, True)),
        )
        for _ in range(25)
    ]
    found = list(replay(compile_snapshot(before), compile_snapshot(after), questions))
    assert [one.question for one in found] == questions
    for one in found:
        old, new = _asked(before, one.question), _asked(after, one.question)
        assert {m.bundle_digest for m in one.lost} == _members(old) - _members(new)
        assert {m.bundle_digest for m in one.gained} == _members(new) - _members(old)
        for answer, whole in ((one.before, old), (one.after, new)):
            assert (answer is None) == (whole is None)
            if answer is not None and whole is not None:
                assert (answer.digest, answer.verdict) == (whole.digest, whole.verdict)
                assert answer.valid_until_us == whole.valid_until_us
        permits = [whole is not None and whole.verdict == "permit" for whole in (old, new)]
        assert one.flips == (permits[0] != permits[1])


def _replayed(before: Snapshot, after: Snapshot, *moments_us: int) -> list[Replayed]:
    questions = [ask(at_us=at_us) for at_us in moments_us]
    return list(replay(compile_snapshot(before), compile_snapshot(after), questions))


def test_an_answer_is_shared_only_until_a_fact_of_its_use_begins_or_ends() -> None:
    """Equal questions share one answer between two such moments, and not beyond one; others do not matter."""
    experts = (expert(1), expert(2))
    words = (
        consent(1),
        consent(2, valid_from_us=NOW_US + 5),
        consent(3, purpose="research", valid_until_us=9),
    )
    snapshot = world(experts=experts, consents=words, grants=(grant(1), grant(2)))
    one, two, three = _replayed(snapshot, world(), NOW_US, NOW_US + 4, NOW_US + 5)
    assert one.before is two.before
    assert [m.bundle_digest for m in two.lost] == []
    assert [m.bundle_digest for m in three.lost] == [bundle(2)]


def test_a_base_that_may_no_longer_answer_is_a_flip() -> None:
    """Losing every expert is none, as long as the base may answer; losing the consumer is one."""
    (lost,) = _replayed(world(), world(rules=()), NOW_US)
    (flipped,) = _replayed(world(), world(tenants=()), NOW_US)
    assert ([m.expert_id for m in lost.lost], lost.flips) == (["exp_1"], False)
    assert ([m.expert_id for m in flipped.lost], flipped.flips) == (["exp_1"], True)
    (gained,) = _replayed(world(rules=()), world(rules=(rule(),)), NOW_US)
    assert [m.expert_id for m in gained.gained] == ["exp_1"]


def test_a_question_without_what_it_needs_is_refused() -> None:
    """A log that holds such a question is not one that this register wrote."""
    compiled = compile_snapshot(world())
    with pytest.raises(IncompleteQuestion):
        list(replay(compiled, compiled, [Question(at_us=NOW_US)]))
