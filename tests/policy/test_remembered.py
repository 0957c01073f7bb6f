# SPDX-License-Identifier: Apache-2.0
"""Remembered decisions are those that would be made anew, epoch after epoch."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from worlds import NOW_US, consent, expert, random_world, world

from policy.composition import Composition, compose
from policy.questions import Question
from policy.remembered import Remembered
from policy.snapshot import Snapshot

# A remembered decision names the asking at which it was made; everything else must be equal.
_OF_THE_ASKING = {"at_us": 0, "epoch": 0, "snapshot_digest": "", "input_digest": ""}


def plain(composition: Composition) -> dict[str, Any]:
    """A composition without the names of its askings."""
    decisions = tuple(one.model_copy(update=_OF_THE_ASKING) for one in composition.decisions)
    return composition.model_copy(update={"decisions": decisions}).model_dump()


@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 6), st.sampled_from((-2, 0, 0, 1, 400, 700))),
        min_size=2,
        max_size=5,
    )
)
def test_a_remembered_composition_equals_one_that_is_made_anew(steps: list[tuple[int, int, int]]) -> None:
    """Over any row of worlds, each partly taken over from the last, at moments that also step back."""
    remembered, before, at_us = Remembered(), random_world(0)[0], NOW_US
    for epoch, (seed, keeps, later_us) in enumerate(steps, 1):
        new, question = random_world(seed)
        kinds = ("experts", "consents", "grants", "rules", "tenants", "licenses")
        # Some kinds of facts stay as they were: that is when there is something to remember.
        kept = {kind: getattr(before, kind) for kind in kinds[:keeps]}
        snapshot = new.model_copy(update={"epoch": epoch, **kept})
        at_us += later_us
        asked = question.model_copy(update={"at_us": at_us})
        for again in (asked, asked.model_copy(update={"region": "us"}), asked):
            told = compose(snapshot, again, decider=remembered.decide)
            assert plain(told) == plain(compose(snapshot, again))
        before = snapshot


def test_what_did_not_change_is_not_decided_again() -> None:
    """After an epoch about one expert the other's decision is the very same; a moment in between counts."""
    remembered = Remembered()
    ends_us = NOW_US + 100
    words = (consent(1, tenant="anna"), consent(2, tenant="anna", valid_until_us=ends_us))
    first = world(experts=(expert(1, tenant="anna"), expert(2, tenant="anna")), consents=words)
    second = first.model_copy(update={"epoch": 8, "consents": words[1:]})

    def asked(snapshot: Snapshot, at_us: int) -> dict[str, Any]:
        question = Question(deployment="lab", at_us=at_us)
        decisions = compose(snapshot, question, decider=remembered.decide).decisions
        return {one.expert_id: one for one in decisions}

    one, two, three = asked(first, NOW_US), asked(second, NOW_US + 1), asked(second, ends_us)
    assert two["exp_2"].epoch == one["exp_2"].epoch == 7
    assert two["exp_1"].epoch == 8
    assert three["exp_2"].at_us == ends_us
