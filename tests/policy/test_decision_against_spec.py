# SPDX-License-Identifier: Apache-2.0
"""What a permit rests on, against the literal specification; verdicts are compared in ``tests/oracles``."""

from __future__ import annotations

import oracle_spec as spec
from worlds import random_world

from policy.deciding.composition import compose
from policy.facts.snapshot import Snapshot

WORLDS = 1_000


def test_the_licenses_that_a_permit_rests_on_are_those_of_the_specification() -> None:
    """Of every expression the lightest branch that permits, subject by subject, and of the base."""
    permits = 0
    for seed in range(WORLDS):
        snapshot, question = random_world(seed)
        world = snapshot.model_dump(mode="json")
        experts = {expert["bundle_digest"]: expert for expert in world["experts"]}
        for decision in compose(snapshot, question).decisions:
            if decision.verdict == "permit":
                chosen = [(c.subject, key) for c in decision.licenses for key in c.chosen]
                expert = experts[decision.bundle_digest]
                assert chosen == spec.terms(world, spec.deployment(world, "lab"), expert), seed
                permits += 1
    assert permits >= WORLDS // 10


def test_the_same_bytes_give_the_same_answer_bytes() -> None:
    """Law 17: a snapshot that went through JSON answers with the same bytes."""
    for seed in range(0, WORLDS, 30):
        snapshot, question = random_world(seed)
        again = Snapshot.from_json(snapshot.to_json(), expect_digest=snapshot.digest)
        assert again.to_json() == snapshot.to_json()
        assert compose(again, question).to_json() == compose(snapshot, question).to_json()
