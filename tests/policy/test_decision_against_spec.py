# SPDX-License-Identifier: Apache-2.0
"""The product's decisions against the literal specification, on thousands of random worlds."""

from __future__ import annotations

from collections import Counter

import spec
from worlds import NOW_US, random_world

from policy.composition import compose
from policy.reasons import is_denial
from policy.snapshot import Snapshot

WORLDS = 3_000
GATES = ("identity", "consent", "grant", "license", "rules")


def test_decisions_equal_the_literal_specification() -> None:
    """On random worlds verdicts, failed gates, ends, members, top_k and digests are those of the spec."""
    seen: Counter[str] = Counter()
    for seed in range(WORLDS):
        snapshot, question = random_world(seed)
        answer = compose(snapshot, question)
        world = snapshot.model_dump(mode="json")
        use = world["deployments"][0]
        by_bundle = {expert["bundle_digest"]: expert for expert in world["experts"]}
        for decision in answer.decisions:
            if decision.bundle_digest not in by_bundle:
                assert (decision.verdict, decision.outcome) == ("deny", "error"), seed
                continue
            expected, end = spec.decide(world, use, by_bundle[decision.bundle_digest], NOW_US)
            denials = {one.gate for one in decision.reasons if is_denial(one)}
            assert denials - {"set"} == expected, (seed, decision.expert_id, decision.reasons)
            if decision.verdict == "permit":
                assert decision.valid_until_us == end, (seed, decision.expert_id)
                chosen = [(c.subject, key) for c in decision.licenses for key in c.chosen]
                assert chosen == spec.terms(world, use, by_bundle[decision.bundle_digest]), seed
            seen["permit" if not expected else "deny"] += 1
            seen["ends"] += end is not None
            if len(expected) == 1:
                seen["only " + expected.pop()] += 1
        compared = spec.compose(world, "lab", NOW_US)
        assert [member.bundle_digest for member in answer.members] == compared["members"], seed
        for name in ("top_k", "digest", "valid_until_us"):
            assert getattr(answer, name) == compared[name], (seed, name)
        assert list(answer.dropped) == compared["dropped"], seed
        assert any(one.gate == "set" for one in answer.reasons) == compared["denied"], seed
        seen["strict conflict"] += compared["denied"]
        seen["dropped"] += bool(compared["dropped"])

    decided = seen["permit"] + seen["deny"]
    assert seen["permit"] / decided >= 0.20, seen
    assert seen["deny"] / decided >= 0.20, seen
    # A generator that never lets one gate decide alone would not notice that gate missing.
    for rare in (*("only " + gate for gate in GATES), "ends", "strict conflict", "dropped"):
        assert seen[rare] >= 10, seen


def test_the_same_bytes_give_the_same_answer_bytes() -> None:
    """Law 17: a snapshot that went through JSON answers with the same bytes."""
    for seed in range(0, WORLDS, 30):
        snapshot, question = random_world(seed)
        again = Snapshot.from_json(snapshot.to_json(), expect_digest=snapshot.digest)
        assert again.to_json() == snapshot.to_json()
        assert compose(again, question).to_json() == compose(snapshot, question).to_json()
