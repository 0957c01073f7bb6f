# SPDX-License-Identifier: Apache-2.0
"""Four evaluators that share no rule of deciding answer alike, on random, small and frozen worlds."""

from __future__ import annotations

import sqlite3
from collections import Counter
from itertools import islice
from typing import Any

import cedarpy
import oracle_cedar
import oracle_small
import psycopg
import pytest
from oracle_answers import Case
from oracle_compare import Asked, Seen, compare
from oracle_corpus import frozen, specified, written
from oracle_product import because
from oracle_sql import SqlOracle
from worlds import NOW_US, ask, consent, expert, grant, random_world, rule, world

from policy.deciding.composition import compose
from policy.deciding.decision import decide, redacted
from policy.deciding.reasons import CODES

CHUNK = 5_000
SMALL_STEP = {"consents": 193, "access": 419, "terms": 201, "standing": 29}


@pytest.fixture(scope="session")
def sql() -> SqlOracle:
    """The set queries on SQLite, in memory."""
    return SqlOracle(sqlite3.connect(":memory:"))


def agreed(seen: Seen) -> None:
    """Fails with the first who says otherwise."""
    first = next(iter(seen.disagreements), None)
    assert first is None, f"{first.name}: {first.who} says {first.said}, not {first.specified}"


def drawn(first: int, count: int) -> list[Asked]:
    """Worlds of the generator."""
    return [Asked(str(seed), *random_world(seed)) for seed in range(first, first + count)]


@pytest.mark.parametrize("first", range(0, 20_000, CHUNK))
def test_all_evaluators_agree_on_random_worlds(first: int, sql: SqlOracle) -> None:
    """Verdicts, classes, gates, ends, members, dropped: equal in specification, SQL, compiled form, Cedar."""
    for begin in range(first, first + CHUNK, 1_000):
        agreed(compare(drawn(begin, 1_000), sql, explain_every=4))


@pytest.mark.parametrize("family", oracle_small.FAMILIES)
def test_all_evaluators_agree_on_small_worlds(family: str, sql: SqlOracle) -> None:
    """Evenly spread worlds of each complete enumeration; ``make oracles`` asks about all of them."""
    agreed(compare(list(islice(oracle_small.FAMILIES[family](), 0, None, SMALL_STEP[family])), sql))


def test_frozen_worlds_have_the_answers_that_were_written_down(sql: SqlOracle) -> None:
    """The corpus, with every world on which evaluators once disagreed, is answered as it was frozen."""
    found = list(frozen())
    assert len(found) >= 80
    agreed(compare([asked for asked, _ in found], sql))
    for asked, entry in found:
        case = Case(asked.snapshot.model_dump(mode="json"), asked.question.at_us)
        assert written(specified(case)) == entry["answer"], asked.name
        assert because(compose(asked.snapshot, asked.question)) == entry["because"], asked.name


def test_the_set_queries_say_the_same_on_postgresql(request: pytest.FixtureRequest) -> None:
    """The same statements on the other engine, over many worlds at once."""
    url = request.getfixturevalue("postgres").emptied().replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        oracle = SqlOracle(connection, "postgresql")
        cases = [Case(one.snapshot.model_dump(mode="json"), NOW_US) for one in drawn(50_000, 600)]
        assert oracle.answers(cases) == [specified(case) for case in cases]
        connection.rollback()


def test_whoever_says_otherwise_is_noticed(sql: SqlOracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluator that forgets one prohibition is named, with the world on which it did."""
    forbidden = world(consents=(consent(), consent(2, expert_id="exp_1", effect="forbid")))
    asked = [Asked("forbidden", forbidden, ask())]
    agreed(compare(asked, sql))
    monkeypatch.setattr(oracle_cedar, "_hits", lambda fact: ["false"])
    seen = compare(asked, sql)
    assert [(one.name, one.who) for one in seen.disagreements] == [("forbidden", "cedar")]
    agreed(compare([Asked("permitted", world(), ask())], sql))


def test_what_cedar_cannot_evaluate_denies() -> None:
    """Cedar alone skips a prohibition with an unknown word and permits; the wrapped oracle denies."""
    words = {"expert_id": "exp_1", "effect": "forbid", "purpose": "gibberish"}
    for facts in ({"consents": (consent(), consent(2, **words))}, {"rules": (rule(), rule(2, **words))}):
        snapshot = world(**facts)
        case = Case(snapshot.model_dump(mode="json"), NOW_US)
        gate = next(iter(facts))
        gate = "consent" if gate == "consents" else gate
        (said,) = oracle_cedar.answer(case)
        assert said.failed == said.errors == {gate}
        assert decide(snapshot, ask(), "exp_1").outcome == "error"
        naked = ask_cedar_alone(case, gate)
        assert naked.allowed
        assert "gibberish" in " ".join(naked.diagnostics.errors)
        assert not oracle_cedar.holds(naked)


def ask_cedar_alone(case: Case, gate: str) -> Any:
    """What the library says by itself about the first expert."""
    context = {
        "action": "infer",
        "purpose": {"__entity": {"type": "Purpose", "id": "research"}},
        "region": {"__entity": {"type": "Region", "id": "eu"}},
        "commercial": False,
        "now": case.at_us,
        "expert": "exp_1",
        "owner": "anna",
        "about": "",
        "mode": "own",
        "lineage": 1,
    }
    request = {
        "principal": 'Tenant::"app"',
        "action": f'Action::"{gate}"',
        "resource": 'Expert::"candidate"',
        "context": context,
    }
    policies = oracle_cedar.policies_of(case, gate)
    return cedarpy.is_authorized(request, policies, oracle_cedar.entities())


def test_cedar_says_the_same_with_all_policies_of_a_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """That only the policies about an expert are handed to Cedar saves time and changes nothing."""
    cases = [Case(one.snapshot.model_dump(mode="json"), NOW_US) for one in drawn(70_000, 120)]
    sliced = [oracle_cedar.answer(case) for case in cases]
    monkeypatch.setattr(oracle_cedar, "_sliced", lambda facts, about: facts)
    assert [oracle_cedar.answer(case) for case in cases] == sliced


def test_names_of_policies_are_not_what_cedar_answers_with() -> None:
    """Reasons carry the library's own numbering; an ``@id`` has to be looked up beside it."""
    policy = '@id("con_1") permit(principal, action, resource);'
    request = {"principal": 'T::"a"', "action": 'Action::"b"', "resource": 'E::"c"', "context": {}}
    said = cedarpy.is_authorized(request, policy, [])
    assert said.diagnostics.reasons == ["policy0"]
    assert said.diagnostics.id_annotations_by_reason == {"policy0": "con_1"}


def test_the_generator_is_varied_enough_to_notice() -> None:
    """At least a fifth are permits, every gate alone makes 2 % of the denials, and every code appears."""
    seen: Counter[str] = Counter()
    codes: set[str] = set()
    for seed in range(2_500):
        snapshot, question = random_world(seed)
        assert len(snapshot.experts) >= 2
        facts = (*snapshot.consents, *snapshot.grants)
        assert any(f.valid_from_us > NOW_US or (f.valid_until_us or 0) > NOW_US for f in facts), seed
        said = compose(snapshot, question)
        decisions = [*said.decisions]
        if seed % 4 == 0:
            decisions += [decide(snapshot, question, one.expert_id) for one in snapshot.experts]
            decisions += [redacted(one, "app") for one in said.decisions]
        codes.update(reason.code for one in (*decisions, said) for reason in one.reasons)
        for one in said.decisions:
            gates = {reason.gate for reason in one.reasons if CODES[reason.code].outcome != "permit"}
            seen["deny" if gates else "permit"] += 1
            if len(gates) == 1:
                seen["only " + gates.pop()] += 1
        seen["dropped"] += bool(said.dropped)
        seen["strict"] += any(reason.gate == "set" for reason in said.reasons)
    assert seen["permit"] >= 0.20 * (seen["permit"] + seen["deny"]), seen
    for gate in ("facts", "identity", "consent", "grant", "license", "rules", "set"):
        assert seen["only " + gate] >= 0.02 * seen["deny"], (gate, seen)
    assert min(seen["dropped"], seen["strict"]) >= 20
    assert set(CODES) - codes == set()


def test_all_readers_of_license_expressions_read_alike() -> None:
    """What one reader refuses the others refuse, and nesting is read alike, on texts nobody would write."""
    texts = ("", "()", "MIT", "(MIT)", "MIT)", "((MIT OR CC0-1.0) AND MIT)", "OR MIT", "MIT AND", "MIT mit")
    texts += ("MIT or cc0-1.0", "MIT WITH Classpath", "WITH", "MIT AND (CC0-1.0 OR (MIT AND CC0-1.0))")
    asked = [
        Asked(text, world(experts=(expert(license=text), expert(2)), grants=(grant(), grant(2))), ask())
        for text in texts
    ]
    agreed(compare(asked, SqlOracle(sqlite3.connect(":memory:"))))
