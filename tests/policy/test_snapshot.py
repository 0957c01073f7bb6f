# SPDX-License-Identifier: Apache-2.0
"""Snapshots: one form of bytes, a Merkle digest, and refusal of what is malformed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from worlds import consent, deployment, expert, license_fact, random_world, rule, world

from model_core.packing.canonical import canonical_bytes, verify_inclusion
from policy.errors import MalformedSnapshot, PolicyError, SnapshotMismatch
from policy.facts.snapshot import Snapshot


def document() -> dict[str, Any]:
    """The plain JSON of a snapshot."""
    loaded: dict[str, Any] = json.loads(world().to_json())
    return loaded


@settings(max_examples=40, deadline=None)
@given(st.integers(min_value=0, max_value=2**32))
def test_bytes_and_digest_survive_a_round_trip(seed: int) -> None:
    """Reading what was written gives the same value, bytes and digest."""
    snapshot, _ = random_world(seed)
    again = Snapshot.from_json(snapshot.to_json(), expect_digest=snapshot.digest)
    assert again == snapshot
    assert again.to_json() == snapshot.to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 8},
        {"published_at_us": 2},
        {"engine_version": "2"},
        {"consents": (consent(valid_until_us=5),)},
        {"rules": (rule(), rule(2))},
        {"licenses": ()},
    ],
)
def test_every_change_changes_the_digest(change: dict[str, Any]) -> None:
    """Head fields and facts are all under the root, also in a copy of an already digested snapshot."""
    snapshot = world()
    before = snapshot.digest
    assert snapshot.model_copy(update=change).digest != before
    assert snapshot.digest == before


def test_a_fact_can_be_proven_to_be_part_of_a_snapshot() -> None:
    """The proof holds for that fact under that root, and for no other."""
    snapshot = world(rules=(rule(1), rule(2)))
    leaf, proof = snapshot.prove("consents", "con_1")
    assert b"con_1" in leaf
    assert verify_inclusion(snapshot.digest, leaf, proof)
    assert not verify_inclusion(world().digest, leaf, proof)
    with pytest.raises(MalformedSnapshot):
        snapshot.prove("consents", "con_2")


def changed(**fields: Any) -> bytes:
    """Canonical bytes of the snapshot with some fields replaced."""
    return canonical_bytes({**document(), **fields})


def fact(kind: str, **fields: Any) -> bytes:
    """Canonical bytes of the snapshot with fields of the first fact of a kind replaced."""
    stated = document()
    stated[kind][0] = {**stated[kind][0], **fields}
    return canonical_bytes(stated)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        world().to_json() + b" ",
        world().to_json()[:-1],
        json.dumps(document(), indent=1).encode(),
        b'{"epoch":1,"epoch":2}',
        changed(epoch="7"),
        changed(epoch=7.5),
        changed(epoch=-1),
        changed(epoch=None),
        changed(consents=None),
        changed(rules={}),
        changed(rules=[[]]),
        fact("consents", effect="maybe"),
        fact("consents", state="perhaps"),
        fact("consents", valid_from_us="0"),
        fact("consents", valid_from_us=-1),
        fact("consents", commercial=1),
        fact("experts", state="retired"),
        fact("experts", price_micro_per_1k_tokens=-5),
        fact("experts", datasets=None),
        fact("deployments", top_k=0),
        fact("deployments", candidates="all"),
        fact("licenses", use_commercial="yes"),
        changed(consents=[*document()["consents"], {**document()["consents"][0], "region": "de"}]),
    ],
)
def test_malformed_bytes_are_refused_with_a_typed_error(data: bytes) -> None:
    """Nothing but MalformedSnapshot leaves, with a sentence and a stable code."""
    with pytest.raises(MalformedSnapshot) as caught:
        Snapshot.from_json(data)
    assert isinstance(caught.value, PolicyError)
    assert caught.value.code == "malformed_snapshot"
    assert caught.value.sentence


def test_a_missing_field_is_named() -> None:
    """The refusal says where the document is wrong."""
    stated = document()
    del stated["consents"][0]["purpose"]
    with pytest.raises(MalformedSnapshot, match=r"consents\.0\.purpose"):
        Snapshot.from_json(canonical_bytes(stated))


def test_another_snapshot_than_the_published_one_is_refused() -> None:
    """A host that knows the digest does not take another snapshot for it."""
    with pytest.raises(SnapshotMismatch):
        Snapshot.from_json(world(epoch=8).to_json(), expect_digest=world().digest)


def test_unknown_fields_are_ignored() -> None:
    """A later release may add fields; this one reads on."""
    assert Snapshot.from_json(changed(mood="sunny")) == world()


def test_two_facts_of_one_name_must_be_the_same_fact() -> None:
    """Repetitions vanish; contradictions are refused, also for licenses that differ in case only."""
    assert world(experts=(expert(), expert())) == world()
    for fields in (
        {"rules": (rule(), rule(effect="forbid"))},
        {"licenses": (license_fact("MIT"), license_fact("mit"))},
    ):
        with pytest.raises(ValidationError):
            world(**fields)


def test_a_choice_that_is_not_made_leaves_no_trace_in_the_digest() -> None:
    """Snapshots of releases that knew no ``when_cut_off`` keep their bytes; a choice is kept and read."""
    plain = world()
    assert b"when_cut_off" not in plain.to_json()
    refuses = deployment(when_cut_off="refuse")
    chosen = plain.model_copy(update={"deployments": (refuses,)})
    assert chosen.digest != plain.digest
    assert Snapshot.from_json(chosen.to_json(), chosen.digest).deployments == (refuses,)
