# SPDX-License-Identifier: Apache-2.0
"""Remembered decisions are those that would be made anew, epoch after epoch."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import NOW_US, consent, dataset, deployment, expert, grant, random_world, world

from policy.deciding.composition import Composition, compose
from policy.deciding.questions import Question
from policy.deciding.remembered import Remembered
from policy.facts.snapshot import DatasetFact, Snapshot

# A remembered decision names the asking at which it was made; everything else must be equal.
_OF_THE_ASKING = {"at_us": 0, "epoch": 0, "snapshot_digest": "", "input_digest": ""}


def plain(composition: Composition) -> dict[str, Any]:
    """A composition without the names of its askings."""
    decisions = tuple(one.model_copy(update=_OF_THE_ASKING) for one in composition.decisions)
    return composition.model_copy(update={"decisions": decisions}).model_dump()


def timeless(composition: Composition) -> dict[str, Any]:
    """A composition without the names of its own asking either."""
    return plain(composition.model_copy(update={"at_us": 0, "epoch": 0, "snapshot_digest": ""}))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 6), st.sampled_from((-2, 0, 0, 1, 400))),
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
        for name in snapshot.deployments_by_name:
            anew = compose(snapshot, Question(deployment=name, at_us=at_us))
            assert timeless(remembered.compose(snapshot, name, at_us)) == timeless(anew)
        before = snapshot


def _town() -> Snapshot:
    """Two experts, one of them also trained on a dataset of another owner, who has to agree."""
    foreign = DatasetFact(id="ds_9", tenant="ben", license="CC0-1.0", consent="separate")
    experts = (expert(1, tenant="anna"), expert(2, tenant="anna", datasets=(dataset(2), foreign)))
    spoken = consent(9, tenant="ben", expert_id="*", dataset_id="ds_9")
    return world(
        experts=experts,
        consents=(consent(1, tenant="anna"), consent(2, tenant="anna"), spoken),
        grants=(grant(1), grant(2)),
    )


#: One fact changed at a time: kind, which one, and what it says instead.
_CHANGES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "consumer": ("tenants", 1, {"status": "suspended"}),
    "owner": ("tenants", 0, {"status": "suspended"}),
    "base": ("bases", 0, {"status": "suspended"}),
    "expert": ("experts", 0, {"state": "sealed"}),
    "consent": ("consents", 0, {"state": "withdrawn"}),
    "dataset": ("consents", 2, {"state": "withdrawn"}),
    "later": ("consents", 1, {"valid_from_us": NOW_US + 2}),
    "ends": ("grants", 0, {"valid_until_us": NOW_US + 3}),
    "grant": ("grants", 1, {"state": "revoked"}),
    "rule": ("rules", 0, {"effect": "forbid"}),
}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(_CHANGES)), st.integers(0, 2)), min_size=1, max_size=6))
def test_every_fact_that_a_gate_reads_is_noticed(steps: list[tuple[str, int]]) -> None:
    """Each change alone turns at least one verdict; it is noticed when it comes and when it goes."""
    remembered, town, at_us, made = Remembered(), _town(), NOW_US, set[str]()
    for epoch, (name, later_us) in enumerate((("", 0), *steps), 1):
        made ^= {name} & set(_CHANGES)
        at_us += later_us
        snapshot = _changed(town, made).model_copy(update={"epoch": epoch})
        question = Question(deployment="lab", at_us=at_us)
        anew = compose(snapshot, question)
        assert plain(compose(snapshot, question, decider=remembered.decide)) == plain(anew)
        kept = remembered.compose(snapshot, "lab", at_us)
        assert timeless(kept) == timeless(anew)


@pytest.mark.parametrize("name", sorted(_CHANGES))
def test_each_of_these_changes_matters(name: str) -> None:
    """Without it both experts serve, with it (at the latest in a moment) not both."""
    first = Remembered()
    moment = NOW_US if name == "later" else NOW_US + 5
    for snapshot, members in ((_town(), {2}), (_changed(_town(), {name}), {0, 1}), (_town(), {2})):
        told = compose(snapshot, Question(deployment="lab", at_us=moment), decider=first.decide)
        assert len(told.members) in members


def _changed(town: Snapshot, names: set[str]) -> Snapshot:
    for name in sorted(names):
        kind, place, says = _CHANGES[name]
        facts = list(getattr(town, kind))
        facts[place] = facts[place].model_copy(update=says)
        town = town.model_copy(update={kind: tuple(facts)})
    return town


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


def test_what_did_not_change_is_not_composed_again() -> None:
    """A deployment keeps its composition while its decisions and its own terms are the same."""
    remembered = Remembered()
    first = world(experts=(expert(1), expert(2)), consents=(consent(1), consent(2)))
    second = first.model_copy(update={"epoch": 8})
    third = second.model_copy(update={"epoch": 9, "deployments": (deployment(top_k=1),)})
    kept = remembered.compose(first, "lab", NOW_US)
    assert remembered.compose(second, "lab", NOW_US + 1) is kept
    changed = remembered.compose(third, "lab", NOW_US + 2)
    assert (changed.epoch, changed.top_k_asked) == (9, 1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.booleans()), min_size=1, max_size=4))
def test_deployments_without_candidates_follow_every_epoch_too(steps: list[tuple[int, bool]]) -> None:
    """Where nobody has an expert yet, or the last one has left, no decision is asked for; facts change."""
    remembered = Remembered()
    for epoch, (seed, empty) in enumerate(steps, 1):
        snapshot = random_world(seed)[0].model_copy(update={"epoch": epoch})
        if empty:
            snapshot = snapshot.model_copy(update={"experts": (), "consents": (), "grants": ()})
        for name in snapshot.deployments_by_name:
            anew = compose(snapshot, Question(deployment=name, at_us=NOW_US))
            assert timeless(remembered.compose(snapshot, name, NOW_US)) == timeless(anew)
