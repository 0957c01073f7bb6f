# SPDX-License-Identifier: Apache-2.0
"""Compositions: canonical order and digest, narrowing between reviews, conflicts, top-k, ends."""

from __future__ import annotations

import json

import oracle_spec as spec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import (
    BASE,
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

from model_core.packing.canonical import digest_of
from policy.deciding.composition import Composition, compose, composition_digest
from policy.deciding.reasons import is_denial
from policy.facts.snapshot import BaseFact, Snapshot, TenantFact

seeds = st.integers(min_value=0, max_value=2**32)
few = settings(max_examples=60, deadline=None)


def crowd(count: int, **fields: object) -> Snapshot:
    """A world of several permitted experts, listed in falling order."""
    numbers = range(count, 0, -1)
    return world(
        experts=tuple(expert(n) for n in numbers),
        consents=tuple(consent(n) for n in numbers),
        grants=tuple(grant(n) for n in numbers),
        **fields,
    )


def bundles(composition: Composition) -> list[str]:
    """The members' digests in their order."""
    return [member.bundle_digest for member in composition.members]


def test_members_stand_in_canonical_order_and_name_the_digest() -> None:
    """Members are sorted by bundle digest; the digest covers base, members and router."""
    composition = compose(crowd(3), ask())
    assert bundles(composition) == [bundle(1), bundle(2), bundle(3)]
    stated = {
        "base": BASE,
        "experts": bundles(composition),
        "router": {"top_k": 2, "variant": "gated", "version": 2},
    }
    assert composition.digest == digest_of(stated)
    assert composition.digest == composition_digest(BASE, bundles(composition)[::-1], 2)


def test_equal_members_have_equal_digests_whatever_led_to_them() -> None:
    """Law 7: the digest is that of what runs, not of the facts behind it."""
    renamed = crowd(3).model_copy(update={"rules": (rule(5), rule(6)), "epoch": 9})
    assert compose(renamed, ask()).digest == compose(crowd(3), ask()).digest
    assert compose(crowd(2), ask()).digest != compose(crowd(3), ask()).digest


@pytest.mark.parametrize(("asked", "count", "runs"), [(1, 3, 1), (2, 0, 1), (5, 3, 4), (4, 3, 4), (3, 1, 2)])
def test_top_k_is_at_most_the_members_and_the_public_expert(asked: int, count: int, runs: int) -> None:
    """What was asked for stays on record beside what runs."""
    composition = compose(crowd(count, deployments=(deployment(top_k=asked),)), ask())
    assert (composition.top_k, composition.top_k_asked) == (runs, asked)


def test_between_reviews_members_may_leave_but_not_enter() -> None:
    """A permitted expert that the last review did not let in awaits the next one."""
    snapshot = crowd(3, deployments=(deployment(members=(bundle(1), bundle(3))),))
    composition = compose(snapshot, ask())
    assert bundles(composition) == [bundle(1), bundle(3)]
    waiting = composition.decisions[1]
    assert (waiting.verdict, waiting.outcome) == ("deny", "awaits_review")
    assert [one.code for one in waiting.reasons if is_denial(one)] == ["awaits_review"]
    left = snapshot.model_copy(update={"consents": (consent(1, state="withdrawn"), consent(2), consent(3))})
    assert bundles(compose(left, ask())) == [bundle(3)]


def test_an_expert_freed_by_a_vanished_conflict_awaits_review() -> None:
    """The member that displaced it leaves; the displaced one still does not slip in."""
    experts = (expert(1, license="LicenseRef-70"), expert(2, license="LicenseRef-40"))
    endpoint = deployment(commercial=True, on_conflict="drop_by_rule")
    snapshot = world(
        experts=experts,
        consents=(consent(1), consent(2)),
        grants=(grant(1), grant(2)),
        deployments=(endpoint,),
    )
    first = compose(snapshot, ask())
    assert (bundles(first), first.dropped) == ([bundle(1)], (bundle(2),))
    published = endpoint.model_copy(update={"members": tuple(bundles(first))})
    narrowed = snapshot.model_copy(update={"deployments": (published,), "grants": (grant(2),)})
    second = compose(narrowed, ask())
    assert bundles(second) == []
    assert second.decisions[1].outcome == "awaits_review"


@few
@given(seeds, st.data())
def test_narrowing_never_adds_a_member_to_a_published_composition(seed: int, data: st.DataObject) -> None:
    """Law 8 at set level: whatever forbid, withdrawal or suspension comes, members only leave."""
    snapshot, question = random_world(seed)
    published = compose(snapshot.model_copy(update={"deployments": _unpublished(snapshot)}), question)
    members = tuple(bundles(published))
    fixed = (snapshot.deployments[0].model_copy(update={"members": members}),)
    live = snapshot.model_copy(update={"deployments": fixed})
    assert bundles(compose(live, question)) == list(members)
    kind = data.draw(st.sampled_from(("consents", "grants", "experts", "rules")))
    facts = list(getattr(live, kind))
    if not facts:
        return
    place = data.draw(st.integers(0, len(facts) - 1))
    if kind == "consents":
        if facts[place].effect == "permit":
            facts[place] = facts[place].model_copy(update={"state": "withdrawn"})
    elif kind == "grants":
        facts[place] = facts[place].model_copy(update={"state": "revoked"})
    elif kind == "experts":
        facts[place] = facts[place].model_copy(update={"state": "suspended"})
    else:
        facts.append(rule(77, effect="forbid", expert_id=f"exp_{place + 1}"))
    narrowed = live.model_copy(update={kind: tuple(facts)})
    for at_us in (NOW_US, NOW_US + 500, NOW_US + 5_000):
        later = compose(narrowed, question.model_copy(update={"at_us": at_us}))
        assert set(bundles(later)) <= set(members)


def _unpublished(snapshot: Snapshot) -> tuple[object, ...]:
    return (snapshot.deployments[0].model_copy(update={"members": None}),)


@few
@given(seeds)
def test_the_composition_ends_with_the_first_member_to_leave(seed: int) -> None:
    """The same members until the microsecond before valid_until, and not at it."""
    snapshot, question = random_world(seed)
    composition = compose(snapshot, question)
    end_us = composition.valid_until_us
    if end_us is not None:
        before = compose(snapshot, question.model_copy(update={"at_us": end_us - 1}))
        after = compose(snapshot, question.model_copy(update={"at_us": end_us}))
        assert set(bundles(composition)) <= set(bundles(before)) | set(before.dropped)
        assert set(bundles(after)) != set(bundles(composition))


def test_strict_names_a_conflict_set_from_which_nothing_can_be_taken() -> None:
    """Of five members the two that clash are named, and every smaller set is free of conflict."""
    licenses = ("MIT", "CC-BY-SA-4.0", "CC-BY-SA-4.0", "CC-BY-NC-SA-4.0", "MIT")
    numbers = range(1, 6)
    snapshot = world(
        experts=tuple(expert(n, license=text) for n, text in zip(numbers, licenses, strict=True)),
        consents=tuple(consent(n, action="export_weights") for n in numbers),
        grants=tuple(grant(n, action="export_weights") for n in numbers),
        rules=(rule(action="export_weights"),),
        deployments=(deployment(action="export_weights"),),
    )
    composition = compose(snapshot, ask())
    found = spec.minimal_conflicts(json.loads(snapshot.to_json()), "lab", NOW_US)
    assert found == [{bundle(2), bundle(4)}, {bundle(3), bundle(4)}]
    assert set(composition.reasons[0].fact_ids) in found
    outcomes = [[one.code for one in d.reasons if is_denial(one)] for d in composition.decisions]
    assert outcomes[0] == ["conflict_elsewhere"]
    assert all(d.verdict == "deny" and d.valid_until_us is None for d in composition.decisions)


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("consumer_suspended", {"tenants": (TenantFact(slug="app", status="suspended"),)}),
        ("unknown_consumer", {"tenants": ()}),
        ("unknown_base", {"bases": ()}),
        ("unknown_license", {"bases": (BaseFact(base_digest=BASE, name="b", license="NOASSERTION"),)}),
        ("unknown_purpose", {"deployments": (deployment(purpose="gibberish"),)}),
        ("unknown_vocabulary", {"vocabulary_version": "99"}),
    ],
)
def test_what_denies_even_the_base_denies_the_composition(code: str, fields: dict[str, object]) -> None:
    """Then nothing may answer, and the composition itself says why."""
    composition = compose(world(**fields), ask())
    assert (composition.verdict, composition.members) == ("deny", ())
    assert code in {one.code for one in composition.reasons}


def test_no_permitted_expert_leaves_the_public_base() -> None:
    """A composition without members is the base alone; every candidate has its reason."""
    composition = compose(world(consents=()), ask())
    assert (composition.verdict, composition.members, composition.top_k) == ("permit", (), 1)
    assert [d.outcome for d in composition.decisions] == ["no_consent"]


def test_the_base_alone_still_owes_its_own_attribution() -> None:
    """Without members the obligations of the base's license remain; a denied composition owes nothing."""
    base = (BaseFact(base_digest=BASE, name="public", license="MIT"),)
    alone = compose(world(consents=(), bases=base), ask())
    assert [(one.kind, one.subject) for one in alone.obligations] == [("attribute", BASE)]
    assert not compose(world(tenants=(), bases=base), ask()).obligations


def test_candidates_may_be_named_and_unknown_ones_are_said() -> None:
    """Only named candidates are decided about; a name that nobody holds is denied by that name."""
    snapshot = crowd(3, deployments=(deployment(candidates=("exp_2", "exp_9", bundle(3))),))
    composition = compose(snapshot, ask())
    assert bundles(composition) == [bundle(2), bundle(3)]
    assert [(d.expert_id, d.outcome) for d in composition.decisions][-1] == ("exp_9", "error")


def test_obligations_of_members_and_base_are_joined_once() -> None:
    """A shared dataset is attributed once; denied experts lay no obligation on anyone."""
    shared = dataset(1, license="CC-BY-4.0")
    snapshot = crowd(3).model_copy(
        update={"experts": tuple(expert(n, datasets=(shared,)) for n in (1, 2, 3))}
    )
    composition = compose(snapshot.model_copy(update={"grants": (grant(1), grant(2))}), ask())
    subjects = [one.subject for one in composition.obligations]
    assert subjects.count("ds_1") == 2  # attribution and notice
    assert "exp_3" not in subjects


def test_a_composition_survives_json() -> None:
    """What a host acknowledges can be read back to the same bytes."""
    composition = compose(crowd(2), ask())
    again = Composition.model_validate_json(composition.to_json(), strict=True)
    assert again == composition
    assert again.to_json() == composition.to_json()
