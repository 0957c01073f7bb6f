# SPDX-License-Identifier: Apache-2.0
"""Values that are built unchecked are the values that checking would have made."""

from __future__ import annotations

import copy
import pickle

from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import random_world

from policy.deciding.composition import Composition, compose
from policy.deciding.decision import Decision, redacted
from policy.deciding.reasons import NearestMiss, Reason, reason
from policy.facts.values import built


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_an_answer_equals_itself_read_back_and_checked(seed: int) -> None:
    """Every field of every decision has its type, and the fields stand in their order."""
    snapshot, question = random_world(seed)
    answer = compose(snapshot, question)
    assert Composition.model_validate_json(answer.to_json(), strict=True) == answer
    for decision in (*answer.decisions, *(redacted(one, "nobody") for one in answer.decisions)):
        checked = Decision.model_validate(decision.model_dump())
        assert decision == checked
        assert repr(decision) == repr(checked)
        assert decision.model_dump_json() == checked.model_dump_json()


def test_a_built_value_behaves_like_a_checked_one() -> None:
    """It is equal, hashed, shown, copied, pickled and written alike, and its copies change alone."""
    made = reason("no_grant", "gra_2", "gra_1", consumer="app")
    checked = Reason(
        gate="grant",
        code="no_grant",
        sentence="No grant gives app access for this use.",
        fact_ids=("gra_1", "gra_2"),
    )
    assert made == checked
    assert hash(made) == hash(checked)
    assert repr(made) == repr(checked)
    assert made.model_dump_json() == checked.model_dump_json()
    assert pickle.loads(pickle.dumps(made)) == copy.copy(made) == copy.deepcopy(made) == checked  # noqa: S301 - our own bytes
    other = made.model_copy(update={"fact_ids": ()})
    assert (other.fact_ids, made.fact_ids) == ((), ("gra_1", "gra_2"))
    assert made.model_fields_set == checked.model_fields_set


def test_each_kind_knows_its_own_fields() -> None:
    """What was built first does not shape what is built next."""
    built(Reason, {"gate": "grant", "code": "no_grant", "sentence": "", "fact_ids": ()})
    fields = {"gate": "grant", "sentence": "s", "ask": "anna", "fact_id": None, "differs": ()}
    miss = built(NearestMiss, dict(fields))
    assert miss == NearestMiss.model_validate(fields)
    assert miss.model_fields_set == set(fields)
