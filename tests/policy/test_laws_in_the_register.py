# SPDX-License-Identifier: Apache-2.0
"""The laws of deciding, over facts in memory and over facts that went through a database of either engine."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inscribed import KINDS, storable, through
from laws import LAWS, Pair
from mended import mended
from single_laws import SINGLE_LAWS
from worlds import random_world

from policy.deciding.composition import compose
from policy.deciding.decision import decide
from policy.deciding.questions import Question, resolve
from policy.deciding.reasons import CODES, is_denial
from policy.facts.snapshot import Snapshot
from tenants.accounts.database import Database

seeds = st.integers(min_value=0, max_value=2**32)


def permitted(snapshot: Snapshot, question: Question) -> set[str]:
    """Who was asked for and passes all gates, whatever the set makes of it."""
    said = compose(snapshot, question)
    passed = ("permit", "awaits_review", "set_conflict")
    return {one.bundle_digest for one in said.decisions if one.outcome in passed}


def holds(pair: Pair) -> bool:
    """Whether a law holds between two worlds."""
    one, other = permitted(*pair.one), permitted(*pair.other)
    return other <= one if pair.then == "no more" else other == one


def unsettled(snapshot: Snapshot) -> Snapshot:
    """The world with a deployment that asks about everybody, whomever a review let in."""
    facts = tuple(
        fact.model_copy(update={"members": None, "candidates": "*"}) for fact in snapshot.deployments
    )
    return snapshot.model_copy(update={"deployments": facts})


@pytest.mark.parametrize("name", LAWS)
@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_the_laws_of_deciding_hold_for_facts_in_memory(name: str, seed: int) -> None:
    """Less never permits more, and what should not matter does not."""
    snapshot, question = random_world(seed)
    for pair in LAWS[name](unsettled(snapshot), question, random.Random(seed)):
        assert holds(pair), seed


@pytest.mark.parametrize("name", LAWS)
def test_the_laws_of_deciding_hold_for_published_facts(name: str, database: Database) -> None:
    """The same for worlds that were written into rows, published and read back, on either engine."""
    keep = through(database)
    found = 0
    for seed in range(500_000, 500_002):
        snapshot, question = random_world(seed)
        for pair in list(LAWS[name](storable(unsettled(snapshot)), question, random.Random(seed)))[:2]:
            one, other = keep(storable(pair.one[0])), keep(storable(pair.other[0]))
            assert holds(Pair((one, pair.one[1]), (other, pair.other[1]), pair.then)), seed
            found += 1
    assert found


def test_a_world_that_is_published_is_the_world_that_was_written(database: Database) -> None:
    """Row by row what was written comes back, and every question is answered as before."""
    keep = through(database)
    for seed in range(400_000, 400_004):
        snapshot, question = random_world(seed)
        snapshot = storable(snapshot)
        published = keep(snapshot)
        for kind in KINDS:
            assert getattr(published, kind) == getattr(snapshot, kind), (seed, kind)
        assert set(snapshot.licenses) <= set(published.licenses), seed
        one, other = compose(snapshot, question), compose(published, question)
        assert [d.reasons for d in one.decisions] == [d.reasons for d in other.decisions]
        assert (one.members, one.digest) == (other.members, other.digest)
        assert (one.valid_until_us, one.obligations) == (other.valid_until_us, other.obligations)


def test_an_epoch_in_which_nothing_changed_runs_the_same(database: Database) -> None:
    """The next epoch of the same facts has the same facts and the same digests of what runs."""
    snapshot, question = random_world(600_000)
    first, second = through(database, epochs=2), through(database)
    one, other = first(storable(snapshot)), second(storable(snapshot))
    assert one.epoch == other.epoch + 1
    for kind in (*KINDS, "licenses"):
        assert getattr(one, kind) == getattr(other, kind)
    assert compose(one, question).digest == compose(other, question).digest


@settings(max_examples=150, deadline=None)
@given(seed=seeds)
def test_a_denial_names_what_is_missing_and_nothing_else(seed: int) -> None:
    """Meeting every reason of a denial makes it a permit; leaving those of one gate unmet does not."""
    snapshot, question = random_world(seed)
    asked = resolve(snapshot, question)
    for fact in snapshot.experts:
        decision = decide(snapshot, asked, fact)
        gates = {one.gate for one in decision.reasons if is_denial(one)}
        if decision.verdict == "permit" or "facts" in gates:
            continue
        after = decide(mended(snapshot, asked, decision), asked, fact.bundle_digest)
        assert after.verdict == "permit", (seed, [one.code for one in after.reasons if is_denial(one)])
        for gate in gates:
            still = decide(mended(snapshot, asked, decision, but=gate), asked, fact.bundle_digest)
            assert {one.gate for one in still.reasons if is_denial(one)} == {gate}, (seed, gate)


@pytest.mark.parametrize("name", SINGLE_LAWS)
@settings(max_examples=60, deadline=None)
@given(seed=seeds)
def test_each_law_of_one_world_holds_for_facts_in_memory(name: str, seed: int) -> None:
    """Ends are exact, what is cited suffices, members serve apart, and settling nothing changes nothing."""
    SINGLE_LAWS[name](*random_world(seed), lambda world: world)


@pytest.mark.parametrize("name", SINGLE_LAWS)
def test_each_law_of_one_world_holds_for_published_facts(name: str, database: Database) -> None:
    """The same for worlds that were written into rows, published and read back, on either engine."""
    keep, law, found = through(database), SINGLE_LAWS[name], 0
    for seed in range(800_000, 800_200):
        snapshot, question = random_world(seed)
        snapshot = storable(unsettled(snapshot))
        if law(snapshot, question, lambda world: world):
            assert law(snapshot, question, keep), seed
            found += 1
        if found == 2:
            return
    raise AssertionError(f"{found} worlds in which {name} has anything to say")


def test_a_denial_is_mended_by_what_it_names_on_either_engine(database: Database) -> None:
    """What a published denial names, written, makes it a permit; less one gate's, that gate alone denies."""
    keep = through(database)
    seen = 0
    for seed in range(700_000, 700_040):
        snapshot = storable(random_world(seed)[0])
        question = random_world(seed)[1]
        asked = resolve(snapshot, question)
        denied = [d for d in compose(snapshot, question).decisions if d.outcome in CODES_OF_GATES]
        if not denied or seen == 2:
            continue
        decision = decide(keep(snapshot), asked, denied[0].bundle_digest)
        assert decision.verdict == "deny"
        after = decide(keep(storable(mended(snapshot, asked, decision))), asked, denied[0].bundle_digest)
        assert after.verdict == "permit", (seed, [one.code for one in after.reasons])
        for gate in {one.gate for one in decision.reasons if is_denial(one)}:
            but_one = keep(storable(mended(snapshot, asked, decision, but=gate)))
            still = decide(but_one, asked, denied[0].bundle_digest)
            assert {one.gate for one in still.reasons if is_denial(one)} == {gate}, (seed, gate)
        seen += 1
    assert seen == 2


CODES_OF_GATES = {code.outcome for code in CODES.values()} - {
    "permit",
    "error",
    "set_conflict",
    "awaits_review",
}
