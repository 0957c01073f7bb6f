# SPDX-License-Identifier: Apache-2.0
"""What the product itself says, in the form that is compared: its two ways to compose.

``explained`` gives reasons for everything, ``served`` is the compiled snapshot that servers run by.
Knows the product's answers, and no other evaluator.
"""

from __future__ import annotations

from typing import Any

from oracle_answers import Answer, Said, Served

from policy.compiled import Composed, compile_snapshot
from policy.deciding.composition import Composition, compose
from policy.deciding.questions import Question, resolve
from policy.deciding.reasons import is_denial
from policy.facts.snapshot import Snapshot


def explained(snapshot: Snapshot, question: Question) -> tuple[Answer, Composition]:
    """What ``compose`` answers with all its reasons, in the form that is compared and in full."""
    said = compose(snapshot, question)
    experts = (
        Said(
            one.bundle_digest or one.expert_id,
            one.outcome,
            frozenset(reason.gate for reason in one.reasons if is_denial(reason)),
            one.valid_until_us,
        )
        for one in said.decisions
    )
    answer = Answer(
        experts=tuple(experts),
        members=tuple(member.bundle_digest for member in said.members),
        dropped=said.dropped,
        denied=said.verdict == "deny",
        ends_us=said.valid_until_us,
    )
    return answer, said


def served(snapshot: Snapshot, question: Question) -> tuple[Served, Composed]:
    """What the compiled snapshot answers, which servers run by and which gives no reasons."""
    compiled = compile_snapshot(snapshot)
    asked = resolve(snapshot, question)
    said = compiled.compose(asked)
    answer = Served(
        permitted=frozenset(compiled.permitted(asked)),
        members=tuple(member.bundle_digest for member in said.members),
        dropped=said.dropped,
        denied=said.verdict == "deny",
        ends_us=said.valid_until_us,
    )
    return answer, said


def because(said: Composition) -> list[Any]:
    """Codes, cited facts, nearest misses and obligations of a composition: what programs read of it."""
    found: list[Any] = [[one.code, *one.fact_ids] for one in said.reasons]
    for one in said.decisions:
        found.append([[reason.code, *reason.fact_ids] for reason in one.reasons])
        found.append([[miss.gate, miss.ask, miss.fact_id, *miss.differs] for miss in one.nearest_miss])
        found.append([[choice.subject, *choice.chosen] for choice in one.licenses])
    found.append([[duty.kind, duty.license_key, duty.subject, duty.text] for duty in said.obligations])
    return found
