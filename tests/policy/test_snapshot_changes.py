# SPDX-License-Identifier: Apache-2.0
"""A snapshot made out of the last one equals one made anew, and its way there leads nowhere else."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import NOW_US, consent, dataset, deployment, expert, grant, random_world, rule, world

from model_core.packing.canonical import verify_inclusion
from policy.deciding.composition import compose
from policy.deciding.questions import Question
from policy.errors import MalformedSnapshot, SnapshotMismatch
from policy.facts.delta import Delta
from policy.facts.kinds import KINDS, Fact
from policy.facts.snapshot import Snapshot
from policy.facts.turns import later_turns
from policy.publishing.touched import narrowed, touched_by

Edits = dict[tuple[str, str], Fact | None]
INDEXES = (
    "tenants_by_slug",
    "licenses_by_key",
    "deployments_by_name",
    "consents_by_expert",
    "consents_by_dataset",
    "grants_by_expert",
    "experts_by_id",
    "experts_by_tenant",
    "experts_by_dataset",
    "upcoming",
    "tree",
)


def facts_of(snapshot: Snapshot) -> dict[tuple[str, str], Fact]:
    """Every fact by kind and identity."""
    return {
        (kind, identity(fact)): fact
        for kind, (_, identity) in KINDS.items()
        for fact in getattr(snapshot, kind)
    }


def way(before: Snapshot, after: Snapshot) -> Edits:
    """The edits that lead from one to the other."""
    old, new = facts_of(before), facts_of(after)
    return {key: new.get(key) for key in old.keys() | new.keys() if old.get(key) != new.get(key)}


def computed(snapshot: Snapshot) -> dict[str, Any]:
    """Everything that a snapshot computes of itself."""
    found = {name: getattr(snapshot, name) for name in INDEXES if name != "tree"}
    return found | {"digest": snapshot.digest, "bytes": snapshot.to_json()}


def second(snapshot: Snapshot, **fields: Any) -> Snapshot:
    """The same in the second format."""
    return snapshot.model_copy(update={"format": 2, **fields})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=5))
def test_a_changed_snapshot_equals_one_made_anew(steps: list[tuple[int, int]]) -> None:
    """Over rows of random worlds of which each takes over some kinds, whatever was computed before."""
    kept = second(random_world(0)[0])
    for epoch, (seed, mask) in enumerate(steps, kept.epoch + 1):
        some = [kind for place, kind in enumerate(KINDS) if mask >> place & 1]
        other = random_world(seed)[0]
        at_us = kept.published_at_us + seed
        anew = second(kept, epoch=epoch, published_at_us=at_us, **{k: getattr(other, k) for k in some})
        random.Random(mask).choice((computed, Snapshot.to_json, lambda one: one.tree))(kept)
        changed = kept.changed({"epoch": epoch, "published_at_us": at_us}, way(kept, anew))
        assert changed == anew
        assert computed(changed) == computed(anew)
        kept = changed


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_a_delta_leads_to_the_published_snapshot_or_nowhere(one: int, two: int) -> None:
    """Sent as bytes and applied it gives the later snapshot; to another, or changed on its way, nothing."""
    before, after = second(random_world(one)[0]), second(random_world(two)[0], epoch=9)
    sent = Delta.of(before.epoch, before.digest, after, way(before, after)).to_json()
    assert Delta.from_json(sent).applied(before, after.digest) == after
    other = second(before, published_at_us=before.published_at_us + 1)
    with pytest.raises(SnapshotMismatch):
        Delta.from_json(sent).applied(other, after.digest)
    changed = Delta.from_json(sent).model_copy(update={"epoch": 10})
    with pytest.raises(SnapshotMismatch):
        changed.applied(before, after.digest)
    for malformed in (b"", b"{}", sent.replace(b'"from_epoch"', b'"from"')):
        with pytest.raises(MalformedSnapshot):
            Delta.from_json(malformed)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_the_second_format_survives_a_round_trip_and_proves_its_facts(seed: int) -> None:
    """Bytes, value and digest come back, and every fact is proven under the root."""
    snapshot = second(random_world(seed)[0])
    again = Snapshot.from_json(snapshot.to_json(), expect_digest=snapshot.digest)
    assert again == snapshot
    for kind, identity in facts_of(snapshot):
        leaf, proof = snapshot.prove(kind, identity)
        assert verify_inclusion(snapshot.digest, leaf, proof)
        assert not verify_inclusion(world().digest, leaf, proof)
    assert second(snapshot, epoch=snapshot.epoch + 1).digest != snapshot.digest
    assert snapshot.model_copy(update={"format": 1}).digest != snapshot.digest


@given(st.data(), st.integers(0, 9))
def test_moments_are_amended_alike_by_few_and_by_many(data: st.DataObject, after_us: int) -> None:
    """What is left is every later moment that did not go and every later one that came, in order."""
    turn = st.tuples(st.integers(0, 9), st.just("consents"), st.sampled_from("abcd"))
    here, gone, come = (data.draw(st.lists(turn, max_size=9)) for _ in range(3))
    expected = sorted(one for one in [*(o for o in here if o not in gone), *come] if one[0] > after_us)
    far = [(-at_us, "grants", "x") for at_us in range(1, 99)]
    for way in (gone, gone + far):
        assert later_turns(tuple(sorted(here)), [(way, come)], after_us) == tuple(expected)


def test_a_snapshot_without_facts_has_a_digest_of_its_head() -> None:
    """Nothing is below the head, and the head still tells epochs apart."""
    empty = Snapshot(epoch=1, published_at_us=2, vocabulary_version="1", format=2)
    assert empty.tree is None
    assert empty.digest != empty.changed({"epoch": 2}, {}).digest


#: One act each: kind, which of its facts, and what that says from then on.
ACTS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("consents", 0, {"state": "withdrawn"}),
    ("consents", 1, {"state": "withdrawn"}),
    ("consents", 3, {"state": "withdrawn"}),
    ("grants", 0, {"state": "revoked"}),
    ("experts", 1, {"state": "suspended"}),
    ("tenants", 0, {"status": "suspended"}),
    ("tenants", 1, {"status": "suspended"}),
    ("rules", 0, {"effect": "forbid"}),
    ("rules", 1, {"expert_id": "exp_2"}),
    ("rules", 2, {"purpose": "any"}),
    ("bases", 0, {"status": "suspended"}),
    ("deployments", 0, {"action": "export_weights"}),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(range(len(ACTS))), st.integers(0, 3)), min_size=1, max_size=5),
)
def test_what_is_not_touched_is_decided_as_before(acts: list[tuple[int, int]]) -> None:
    """Members and answers of every deployment, found by what was touched, are those composed anew."""
    ends = (NOW_US + 2, None, NOW_US + 5)
    owners = ("anna", "anna", "ben")
    foreign = dataset(9, tenant="ben", consent="separate")
    experts = (expert(1), expert(2, datasets=(dataset(2), foreign)), expert(3, tenant="ben"))
    spoken = consent(4, tenant="ben", expert_id="*", dataset_id=foreign.id)
    town = world(
        experts=experts,
        consents=(*(consent(n, tenant=owners[n - 1], valid_until_us=ends[n - 1]) for n in (1, 2, 3)), spoken),
        grants=tuple(grant(n, tenant=owners[n - 1], consumer_tenant="*") for n in (1, 2, 3)),
        rules=(
            rule(1),
            rule(2, effect="forbid", expert_id="exp_1"),
            rule(3, effect="forbid", consumer_tenant="bank", purpose="education"),
        ),
        deployments=(
            deployment(),
            deployment(name="one", candidates=("exp_1",)),
            deployment(name="bank", tenant="bank"),
        ),
    )
    kept = with_members(second(town, published_at_us=NOW_US), last=None)
    for epoch, (act, later_us) in enumerate(acts, kept.epoch + 1):
        kind, place, says = ACTS[act]
        old: Fact = getattr(kept, kind)[place]
        edits: Edits = {(kind, KINDS[kind][1](old)): old.model_copy(update=says)}
        head = {"epoch": epoch, "published_at_us": kept.published_at_us + later_us}
        after = kept.changed(head, edits)
        anew = with_members(after, last={one.name: one.members or () for one in kept.deployments})
        touched = touched_by(kept, after, edits)
        if not touched.everything:
            assert after.changed({}, narrowed(after, touched)) == anew
        for one in anew.deployments:
            if not touched.affects(one):
                assert said(kept, one.name) == said(anew, one.name)
        kept = anew


def with_members(snapshot: Snapshot, last: dict[str, tuple[str, ...]] | None) -> Snapshot:
    """Every deployment composed anew, without any that was not a member before."""
    facts = []
    for fact in snapshot.deployments:
        as_reviewed = fact.model_copy(update={"members": None if last is None else last[fact.name]})
        asked = snapshot.model_copy(update={"deployments": (as_reviewed,)})
        members = compose(asked, Question(at_us=snapshot.published_at_us, deployment=fact.name)).members
        facts.append(fact.model_copy(update={"members": tuple(sorted(m.bundle_digest for m in members))}))
    return snapshot.model_copy(update={"deployments": tuple(facts)})


def said(snapshot: Snapshot, name: str) -> list[Any]:
    """What is decided about every candidate at the moment of publication, without the moment."""
    composed = compose(snapshot, Question(at_us=snapshot.published_at_us, deployment=name))
    return [(one.expert_id, one.verdict, one.outcome, one.valid_until_us) for one in composed.decisions]
