# SPDX-License-Identifier: Apache-2.0
"""Kept compositions are those that would be made anew, at every moment."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import NOW_US, consent, expert, grant, random_world, world

from policy.compiled import Composed
from policy.compiled.standing import Standing, place_of
from policy.deciding.composition import Composition, compose
from policy.deciding.questions import Question
from policy.errors import UnknownDeployment


def _timeless(answer: Composition | Composed) -> list[Any]:
    return [getattr(answer, name) for name in Composed.__dataclass_fields__ if name != "at_us"]


@settings(max_examples=40)
@given(st.integers(0, 400), st.lists(st.integers(-4, 4), min_size=1, max_size=8))
def test_a_kept_composition_equals_one_that_is_made_anew(seed: int, steps_us: list[int]) -> None:
    """At moments around which consents and grants begin and end, in any order."""
    snapshot, _ = random_world(seed)
    experts = (expert(1), expert(2), expert(3))
    words = {
        "experts": experts,
        "consents": (consent(1, valid_until_us=NOW_US + 2), consent(2), consent(3, valid_from_us=NOW_US + 1)),
        "grants": (grant(1), grant(2, valid_from_us=NOW_US - 2), grant(3, valid_until_us=NOW_US + 3)),
    }
    for world_ in (snapshot, world(**words)):
        standing = Standing(world_)
        for name in world_.deployments_by_name:
            for step_us in steps_us:
                at_us = NOW_US + step_us
                made = compose(world_, Question(deployment=name, at_us=at_us))
                assert _timeless(standing.composition(name, at_us)) == _timeless(made)


def test_a_composition_is_made_once_between_two_moments() -> None:
    """Asking again within the same piece of time gives the same object; a passed moment gives another."""
    standing = Standing(world(consents=(consent(1, valid_until_us=NOW_US + 5),)))
    name = next(iter(standing.snapshot.deployments_by_name))
    first = standing.composition(name, NOW_US)
    assert standing.composition(name, NOW_US + 4) is first
    assert standing.composition(name, NOW_US + 5) is not first


def test_facts_that_do_not_speak_to_a_use_do_not_part_its_time() -> None:
    """Another consumer's grant ends in between: the composition stays the same object."""
    other = grant(2, consumer_tenant="bank", valid_until_us=NOW_US + 5)
    standing = Standing(world(grants=(grant(1), other)))
    assert standing.composition("lab", NOW_US + 6) is standing.composition("lab", NOW_US)


def test_what_a_snapshot_does_not_hold_is_refused() -> None:
    """An unknown deployment is refused, not remembered as empty."""
    with pytest.raises(UnknownDeployment):
        Standing(world()).composition("nowhere", NOW_US)


def test_places_are_told_apart_by_digest() -> None:
    """What is kept under one digest is not found under another."""
    kept = Standing(world())
    place_of("sha256:test-one").append(kept)
    assert place_of("sha256:test-one") == [kept]
    assert place_of("sha256:test-two") == []
