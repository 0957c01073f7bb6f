# SPDX-License-Identifier: Apache-2.0
"""The laws of deciding that one world keeps by itself, as checks that raise.

``keep`` is what a world goes through before it is asked: nothing in memory, a register's rows on an engine.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from worlds import NOW_US, TIMES

from policy.deciding.composition import compose
from policy.deciding.decision import decide
from policy.deciding.questions import Question
from policy.facts.snapshot import Snapshot

Keep = Callable[[Snapshot], Snapshot]
Law = Callable[[Snapshot, Question, Keep], int]


def ends_exactly(snapshot: Snapshot, question: Question, keep: Keep) -> int:
    """Permit at every boundary before ``valid_until_us`` and a microsecond before it; deny at it."""
    kept, ends = keep(snapshot), 0
    for fact in kept.experts:
        decision = decide(kept, question, fact)
        end_us = decision.valid_until_us
        if decision.verdict == "deny":
            assert end_us is None
            continue
        inside = [t for t in (*TIMES, 2**52) if t >= NOW_US and (end_us is None or t < end_us)]
        for at_us in inside if end_us is None else [*inside, end_us - 1]:
            assert decide(kept, question.model_copy(update={"at_us": at_us}), fact).verdict == "permit"
        if end_us is not None:
            ends += 1
            assert decide(kept, question.model_copy(update={"at_us": end_us}), fact).verdict == "deny"
    return ends


def cited_facts_suffice(snapshot: Snapshot, question: Question, keep: Keep) -> int:
    """With only the cited consents, grants and rules the permit stands on the same facts."""
    kept, permits = keep(snapshot), 0
    for fact in kept.experts:
        decision = decide(kept, question, fact)
        if decision.verdict == "permit":
            permits += 1
            cited = {one for reason in decision.reasons for one in reason.fact_ids}
            only = {
                kind: tuple(one for one in getattr(snapshot, kind) if one.id in cited)
                for kind in ("consents", "grants", "rules")
            }
            again = decide(keep(snapshot.model_copy(update=only)), question, fact)
            assert again.verdict == "permit"
            assert [r.fact_ids for r in again.reasons] == [r.fact_ids for r in decision.reasons]
    return permits


def members_serve_apart(snapshot: Snapshot, question: Question, keep: Keep) -> int:
    """Any part of a composition's members may serve without the rest: no member rests on another."""
    kept = keep(snapshot)
    members = [one.bundle_digest for one in compose(kept, question).members]
    dice = random.Random(len(members))
    some = tuple(one for one in members if dice.random() < 0.5)
    fewer = compose(kept, question.model_copy(update={"candidates": some}))
    assert tuple(one.bundle_digest for one in fewer.members) == some
    return len(members)


def strict_is_dropping(snapshot: Snapshot, question: Question, keep: Keep) -> int:
    """The two ways of settling differ only where there is something to settle; else byte for byte alike."""
    kept = keep(snapshot)
    strict = compose(kept, question.model_copy(update={"on_conflict": "strict"}))
    dropping = compose(kept, question.model_copy(update={"on_conflict": "drop_by_rule"}))
    if any(one.gate == "set" for one in strict.reasons):
        assert dropping.members or dropping.verdict == "deny"
        return 0
    assert strict.to_json() == dropping.to_json()
    return len(strict.members)


SINGLE_LAWS: dict[str, Law] = {
    law.__name__: law for law in (ends_exactly, cited_facts_suffice, members_serve_apart, strict_is_dropping)
}
