# SPDX-License-Identifier: Apache-2.0
"""Rows about deciding: from the compiled snapshot, with all reasons, against Cedar, and replayed."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.policy.cedar import Cedar
from benchmarks.policy.world import World
from benchmarks.report import Row, at_least, at_most
from policy.compiled import Compiled, compile_snapshot
from policy.compiled.replay import replay
from policy.deciding.composition import compose
from policy.deciding.questions import Question, resolve

FIELDS = ("verdict", "members", "dropped", "top_k", "digest", "obligations", "valid_until_us")
COMPOSE_P50_MS, COMPOSE_P99_MS, REASONS_MS = 0.5, 2.0, 20.0
CEDAR_TIMES, REPLAYED_A_S = 20.0, 20_000.0


def compile_rows(sizes: Sequence[tuple[int, int, int]] = ((512, 3, 9), (10_000, 5, 3))) -> list[Row]:
    """How long compiling takes, which is no part of composing.

    Args:
        sizes: experts, consents and grants of each, and how often it is timed.
    """
    rows = []
    for experts, words, rounds in sizes:
        snapshot = World(experts=experts, consents=words, grants=words).snapshot
        facts = len(snapshot.consents) + len(snapshot.grants) + len(snapshot.rules)
        took_ms = [_timed_ms(partial(compile_snapshot, snapshot)) for _ in range(rounds)]
        name = f"compiling {experts:,} experts with {facts:,} consents, grants and rules"
        rows.append(Row(name=name, ours=statistics.median(took_ms), unit="ms"))
    return rows


def compose_rows(*, experts: int = 512, questions: int = 2_000, checked: int = 50) -> list[Row]:
    """Composing over all experts, every question another one, from the question to the answer.

    Raises:
        AssertionError: an answer is not that of the explaining decision.
    """
    world = World(experts=experts)
    compiled = compile_snapshot(world.snapshot)
    asked = world.questions(questions)
    for question in asked[:: max(1, questions // checked)]:
        _check(compiled, question)
    settle_down()
    took_ms, members = [], []
    for question in asked:
        began = time.perf_counter_ns()
        answer = compiled.compose(resolve(world.snapshot, question))
        took_ms.append((time.perf_counter_ns() - began) / 1e6)
        members.append(len(answer.members))
    what = f"compose over {experts} experts, {questions:,} distinct questions"
    return [
        at_most(f"{what}, p50", quantile(took_ms, 0.50), COMPOSE_P50_MS, unit="ms", bar=1),
        at_most(f"{what}, p99", quantile(took_ms, 0.99), COMPOSE_P99_MS, unit="ms", bar=1),
        Row(name="members of those answers, on average", ours=statistics.mean(members), unit="experts"),
        Row(name="members of those answers, at most", ours=max(members), unit="experts"),
    ]


def reasons_rows(*, experts: int = 512, questions: int = 60) -> list[Row]:
    """Composing with every expert's reasons and nearest misses."""
    world = World(experts=experts)
    asked = world.questions(2 * questions)
    for question in asked[:questions]:
        compose(world.snapshot, question)
    settle_down()
    took_ms = [_timed_ms(partial(compose, world.snapshot, one)) for one in asked[questions:]]
    what = f"full reasons with nearest misses of {experts} experts, {questions} distinct questions"
    return [
        at_most(f"{what}, p50", quantile(took_ms, 0.50), REASONS_MS, unit="ms", bar=1),
        Row(name=f"{what}, p99", ours=quantile(took_ms, 0.99), unit="ms"),
    ]


def cedar_rows(*, experts: int = 128, questions: int = 12, rounds: int = 7) -> list[Row]:
    """Decisions about experts per second, ours and Cedar's in turns, on the same facts and questions.

    Raises:
        AssertionError: the two disagree about an expert.
    """
    world = World(experts=experts, consents=1, grants=1, plain=True)
    cedar, compiled = Cedar(world.snapshot), compile_snapshot(world.snapshot)
    asked = [resolve(world.snapshot, one) for one in world.questions(questions)]
    requests = [cedar.requests(one) for one in asked]
    for one, of_one in zip(asked, requests, strict=True):
        permitted = compiled.permitted(one)
        ours = [bundle in permitted for bundle in sorted(world.bundles)]
        if not ours == cedar.permitted(of_one) == cedar.permitted_singly(of_one):
            raise AssertionError(f"Cedar decides otherwise about {one}")
    settle_down()
    decisions = experts * questions
    sides: dict[str, Callable[[], Any]] = {
        "compiled": lambda: [compiled.compose(one) for one in asked],
        "reasons": lambda: [compose(world.snapshot, _spelled(one)) for one in asked],
        "batch": lambda: [cedar.permitted(one) for one in requests],
        "singly": lambda: [cedar.permitted_singly(one) for one in requests],
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            rates[name].append(decisions / _timed_ms(side) * 1e3)
    found = {name: statistics.median(of_side) for name, of_side in rates.items()}
    theirs = max(found["batch"], found["singly"])
    what, unit = f"of {experts} experts on the same five gates", "decisions about an expert/s"
    return [
        at_least(
            f"compose {what}, against cedarpy read beforehand",
            found["compiled"],
            theirs,
            unit=unit,
            bar=CEDAR_TIMES,
        ),
        Row(
            name=f"compose with full reasons {what}, against the same",
            ours=found["reasons"],
            peer=theirs,
            ratio=found["reasons"] / theirs,
            unit=unit,
        ),
    ]


def replay_rows(*, experts: int = 512, logged: int = 60_000) -> list[Row]:
    """Replaying a log against a draft that withdraws a consent, revokes a grant and forbids a purpose."""
    world = World(experts=experts)
    before = world.snapshot
    consents, grants = list(before.consents), list(before.grants)
    consents[0] = consents[0].model_copy(update={"state": "withdrawn"})
    grants[-1] = grants[-1].model_copy(update={"state": "revoked"})
    banned = before.rules[0].model_copy(update={"id": "rul_9999", "effect": "forbid", "purpose": "education"})
    changed = {"consents": tuple(consents), "grants": tuple(grants), "rules": (*before.rules, banned)}
    sides = compile_snapshot(before), compile_snapshot(before.model_copy(update=changed))
    log = world.log(logged)
    settle_down()
    rates, shared = [], 0
    for _ in range(3):
        began = time.perf_counter()
        kept = list(replay(*sides, log))
        rates.append(logged / (time.perf_counter() - began))
        shared = len({id(one.before) for one in kept})
    name = (
        f"replay of {logged:,} logged questions over {experts} experts on both sides of a change; equal "
        f"questions between two moments of time share one of {shared:,} answers a side"
    )
    rate = statistics.median(rates)
    return [at_least(name, rate, REPLAYED_A_S, unit="questions/s", bar=1)]


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that this share of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1_000) * len(ordered) // 1_000) - 1))]


def settle_down() -> None:
    """Takes what was built until now out of Python's collections, as servers do once they have started."""
    gc.collect()
    gc.freeze()


def _timed_ms(act: Callable[[], Any]) -> float:
    began = time.perf_counter_ns()
    act()
    return (time.perf_counter_ns() - began) / 1e6


def _spelled(asked: Any) -> Question:
    fields = {name: getattr(asked, name) for name in Question.model_fields}
    return Question(**fields)


def _check(compiled: Compiled, question: Question) -> None:
    whole = compose(compiled.snapshot, question)
    answer = compiled.compose(resolve(compiled.snapshot, question))
    unlike = [name for name in FIELDS if getattr(whole, name) != getattr(answer, name)]
    if unlike:
        raise AssertionError(f"{', '.join(unlike)} of {question} are not those of the explaining decision")
