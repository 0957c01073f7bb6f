# SPDX-License-Identifier: Apache-2.0
"""The quick writer of facts writes what the general one writes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import consent, dataset, deployment, expert, license_fact, random_world, rule

from model_core.errors import NotCanonical
from model_core.packing.canonical import canonical_bytes
from policy.facts.kinds import KINDS
from policy.facts.leaves import fact_bytes


@given(st.integers(0, 2**32))
def test_the_two_writers_agree(seed: int) -> None:
    """Over random worlds, every fact has the same bytes from both."""
    snapshot, _ = random_world(seed)
    for kind in KINDS:
        for fact in getattr(snapshot, kind):
            assert fact_bytes(fact) == canonical_bytes(fact.model_dump(mode="json"))


@given(st.text(st.characters(exclude_categories=["Cs"])), st.one_of(st.none(), st.integers(0, 2**53 - 1)))
def test_they_agree_on_odd_words(words: str, moment: int | None) -> None:
    """Control characters, quotes, other alphabets, absent values and nested facts are written alike."""
    facts = (
        rule(text=words),
        consent(valid_until_us=moment, region=words),
        expert(license=words, datasets=(dataset(2, license=words), dataset(1))),
        deployment(candidates=(words, "x"), members=None, when_cut_off="refuse"),
        deployment(members=(), candidates="*"),
        license_fact("MIT", title=words, flow_down=(words,), user_cap=None),
    )
    for fact in facts:
        assert fact_bytes(fact) == canonical_bytes(fact.model_dump(mode="json"))


def test_what_is_no_unicode_is_refused() -> None:
    """Half a character has no canonical form, in either writer."""
    with pytest.raises(NotCanonical):
        fact_bytes(rule(text="\ud800"))
