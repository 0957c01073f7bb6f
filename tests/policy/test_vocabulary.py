# SPDX-License-Identifier: Apache-2.0
"""Purposes and regions: closures, the two rules of matching, and the frozen first version."""

from __future__ import annotations

import hashlib
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import UnknownTerm, UnknownVocabulary
from policy.facts.terms import ACTIONS, NEVER_BY_WILDCARD
from policy.facts.vocabulary import VERSIONS, action_forbids, action_permits, hierarchy_from, vocabulary

WORDS = vocabulary("1")
purposes = st.sampled_from(sorted(WORDS.purposes))
FROZEN = {
    "purposes-1.json": "396c73dce353a987d5b18ac04ab31aa60881b1e14935c8a777cbec6dce00f87e",
    "regions-1.json": "07198e2d50d8d900efd808c874b34f6c717ef4f16d14db2121fdd7bce161c117",
}


@pytest.mark.parametrize("name", FROZEN)
def test_a_released_version_never_changes(name: str) -> None:
    """Snapshots name the version they were written with; new terms need a new version."""
    data = resources.files("policy").joinpath("data", name).read_bytes()
    assert hashlib.sha256(data).hexdigest() == FROZEN[name]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_term_leads_to_the_root(version: str) -> None:
    """Both hierarchies are closed; the root is above every term."""
    for hierarchy in (vocabulary(version).purposes, vocabulary(version).regions):
        assert all(hierarchy.root in hierarchy.above[term] for term in hierarchy)
        assert len(list(hierarchy)) > 1


def test_the_words_that_people_expect_are_there() -> None:
    """The purposes of the examples, with ids of the Data Use Ontology where it has them."""
    expected = "research academic-research clinical-research commercial internal-tooling education"
    assert set(f"{expected} customer-support code-assistance medical publishing".split()) <= set(
        WORDS.purposes
    )
    assert WORDS.purposes.terms["medical-research"].duo == "DUO:0000006"
    assert {"global", "eu", "eea"} <= WORDS.regions.above["de"]


@given(purposes, purposes)
def test_permits_go_down_and_forbids_go_both_ways(stated: str, asked: str) -> None:
    """A permit covers the term and what is below; a forbid also hits what contains it."""
    down, up = WORDS.purposes.permits(stated, asked), WORDS.purposes.permits(asked, stated)
    assert WORDS.purposes.forbids(stated, asked) == (down or up)
    assert WORDS.purposes.contains(asked, stated) == (up and stated != asked)


@given(purposes, purposes, purposes)
def test_covering_is_an_order(a: str, b: str, c: str) -> None:
    """Reflexive, transitive and antisymmetric."""
    covers = WORDS.purposes.permits
    assert covers(a, a)
    assert not (covers(a, b) and covers(b, c)) or covers(a, c)
    assert not (covers(a, b) and covers(b, a)) or a == b


@pytest.mark.parametrize(
    ("stated", "asked"),
    [("gibberish", "research"), ("research", "gibberish"), ("*", "gibberish"), ("*", "*")],
)
def test_unknown_words_match_nothing(stated: str, asked: str) -> None:
    """Neither as a permit nor as the thing asked for; a question may not ask for ``*``."""
    assert not WORDS.purposes.permits(stated, asked)
    assert not WORDS.purposes.forbids(stated, asked)


def test_regions_nest() -> None:
    """A permit for the EU covers Germany; a forbid for Germany hits a request for the EU."""
    assert WORDS.regions.permits("eu", "de")
    assert not WORDS.regions.permits("de", "eu")
    assert not WORDS.regions.permits("eu", "us")
    assert WORDS.regions.forbids("de", "eu")
    assert not WORDS.regions.forbids("de", "fr")


@pytest.mark.parametrize("action", ACTIONS)
def test_wildcards_permit_all_but_what_leaves_for_good(action: str) -> None:
    """``*`` forbids everything, and permits everything but exporting weights."""
    assert action_forbids("*", action)
    assert action_permits("*", action) == (action not in NEVER_BY_WILDCARD)
    assert action_permits(action, action)


def test_unknown_words_and_versions_are_refused_early() -> None:
    """Doors can refuse what a decision would have to deny."""
    WORDS.check_words(action="infer", purpose="*", region="eu")
    for words in ({"action": "resell"}, {"purpose": "gibberish"}, {"region": "atlantis"}):
        with pytest.raises(UnknownTerm):
            WORDS.check_words(**words)
    with pytest.raises(UnknownVocabulary):
        vocabulary("../1")


@pytest.mark.parametrize(
    "terms",
    [
        [{"id": "root", "label": "", "parents": []}, {"id": "a", "label": "", "parents": ["gone"]}],
        [{"id": "root", "label": "", "parents": []}, {"id": "a", "label": "", "parents": []}],
        [
            {"id": "root", "label": "", "parents": []},
            {"id": "a", "label": "", "parents": ["b"]},
            {"id": "b", "label": "", "parents": ["a"]},
        ],
    ],
)
def test_a_hierarchy_that_does_not_close_is_refused(terms: list[dict[str, object]]) -> None:
    """A missing parent, a second root and a cycle."""
    with pytest.raises(UnknownTerm):
        hierarchy_from({"scheme": "purpose", "root": "root", "terms": terms})
