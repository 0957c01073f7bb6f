# SPDX-License-Identifier: Apache-2.0
"""Puts the same worlds to every evaluator and says who disagrees.

This is the only place where evaluators meet. The literal specification is what the others are measured by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import oracle_cedar
import oracle_product
import oracle_spec
from oracle_answers import Answer, Case, Gates, Json, Served
from oracle_sql import SqlOracle

from policy.deciding.questions import Question
from policy.facts.snapshot import Snapshot

# What the compiled snapshot and ``compose`` both answer, beyond what every evaluator is asked.
_SHARED = ("tenant", "base_digest", "epoch", "verdict", "members", "dropped", "top_k", "top_k_asked")
_SHARED += ("digest", "obligations", "valid_until_us")


class Asked(NamedTuple):
    """One world with its name, and the question about its deployment ``lab``."""

    name: str
    snapshot: Snapshot
    question: Question


class Disagreement(NamedTuple):
    """Somebody who answers otherwise than the specification."""

    name: str
    who: str
    said: str
    specified: str
    case: Case


class Seen(NamedTuple):
    """What came out of some worlds."""

    counts: Counter[str]
    disagreements: list[Disagreement]


def compare(asked: Sequence[Asked], sql: SqlOracle, *, explain_every: int = 1) -> Seen:
    """Asks the specification, SQL, Cedar and the compiled snapshot about all worlds.

    Args:
        asked: worlds.
        sql: on which engine the set queries run.
        explain_every: of how many worlds one is also put to ``compose``, which gives all reasons and is slow.
    """
    counts: Counter[str] = Counter(worlds=len(asked))
    found: list[Disagreement] = []
    cases = [Case(one.snapshot.model_dump(mode="json"), one.question.at_us) for one in asked]
    for place, (one, case, from_sql) in enumerate(zip(asked, cases, sql.answers(cases), strict=True)):
        judged = oracle_spec.judge(case.world, "lab", case.at_us)
        composed = oracle_spec.compose(case.world, "lab", judged)
        specified = oracle_spec.answer(case.world, composed)
        served, bare = oracle_product.served(one.snapshot, one.question)
        what_runs = (composed["digest"], composed["top_k"])
        pairs: list[tuple[str, Any, Any]] = [
            ("sql", from_sql, specified),
            ("compiled", served, served_by(judged, specified)),
            ("compiled", (bare.digest, bare.top_k), what_runs),
            ("cedar", oracle_cedar.answer(case), _gates(judged, case.world)),
        ]
        if place % explain_every == 0:
            explained, full = oracle_product.explained(one.snapshot, one.question)
            pairs.append(("compose", explained, specified))
            pairs.append(("compose", _fields(full), _fields(bare)))
        found += [
            Disagreement(one.name, who, repr(said), repr(expected), case)
            for who, said, expected in pairs
            if said != expected
        ]
        _count(counts, specified, judged)
    counts["disagreements"] = len(found)
    return Seen(counts, found)


def _fields(said: Any) -> tuple[Any, ...]:
    return tuple(getattr(said, name) for name in _SHARED)


def _gates(judged: oracle_spec.Judged, world: Json) -> tuple[Gates, ...]:
    """What Cedar has to say: the gates, one candidate at a time."""
    experts = oracle_spec.candidates(world, oracle_spec.deployment(world, "lab"))
    said = [(one["bundle_digest"], judged[one["bundle_digest"]][0]) for one in experts]
    return tuple(
        Gates(
            bundle,
            frozenset(gate for gate, _ in denials),
            frozenset(gate for gate, kind in denials if kind == "error"),
        )
        for bundle, denials in said
    )


def served_by(judged: oracle_spec.Judged, specified: Answer) -> Served:
    """What a server has to say, who knows no reasons."""
    return Served(
        permitted=frozenset(bundle for bundle, (denials, _) in judged.items() if not denials),
        members=specified.members,
        dropped=specified.dropped,
        denied=specified.denied,
        ends_us=specified.ends_us,
    )


def _count(counts: Counter[str], specified: Answer, judged: oracle_spec.Judged) -> None:
    counts["decisions"] += len(specified.experts)
    counts["permits"] += sum(not denials for denials, _ in judged.values())
    counts["members"] += len(specified.members)
    counts["ends"] += specified.ends_us is not None
    counts["dropped"] += bool(specified.dropped)
    counts["nothing may answer"] += specified.denied
