# SPDX-License-Identifier: Apache-2.0
"""Purposes and regions: closed hierarchies, shipped as versioned data, and how facts match requests.

A version, once released, never changes: snapshots name the version they were written with. The two
rules of matching (those of the GA4GH Data Use Ontology) are ``permits`` and ``forbids``. Knows nothing
of who asks or what is decided.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Final

from policy.errors import UnknownTerm, UnknownVocabulary
from policy.facts.terms import ACTIONS, ANY, NEVER_BY_WILDCARD

CURRENT_VERSION: Final = "1"
VERSIONS: Final = ("1",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One word of a hierarchy; ``duo`` is its id in the Data Use Ontology, where it has one."""

    id: str
    label: str
    parents: tuple[str, ...]
    duo: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Hierarchy:
    """Terms of one scheme with their closures; a term may have several parents.

    Attributes:
        above: for every term, itself and all its ancestors.
    """

    scheme: str
    root: str
    terms: Mapping[str, Term]
    above: Mapping[str, frozenset[str]]

    def __contains__(self, term: object) -> bool:
        return term in self.terms

    def __iter__(self) -> Iterator[str]:
        return iter(self.terms)

    def permits(self, stated: str, asked: str) -> bool:
        """Whether a permit for ``stated`` covers a request for ``asked``: the term or a descendant.

        Unknown words cover nothing and are covered by nothing; ``*`` in a fact is the root.
        """
        return asked in self.terms and (stated == ANY or stated in self.above[asked])

    def permitting(self, asked: str) -> frozenset[str]:
        """All words in which a permit covers a request for ``asked``."""
        return self.above[asked] | {ANY} if asked in self.terms else frozenset()

    def forbids(self, stated: str, asked: str) -> bool:
        """Whether a forbid for ``stated`` hits a request for ``asked``.

        It does so for the term, its descendants, and any broader request that contains it.
        """
        if asked not in self.terms:
            return False
        return stated == ANY or stated in self.above[asked] or self.contains(asked, stated)

    def contains(self, asked: str, stated: str) -> bool:
        """Whether a request for ``asked`` is strictly broader than ``stated``."""
        return stated != asked and stated in self.terms and asked in self.above[stated]


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """One released version of all words that facts and questions may use."""

    version: str
    purposes: Hierarchy
    regions: Hierarchy

    def unknown_word(self, action: str, purpose: str, region: str) -> str | None:
        """The first word of a fact that this vocabulary does not hold (``*`` is held by all)."""
        if action != ANY and action not in ACTIONS:
            return action
        if purpose != ANY and purpose not in self.purposes:
            return purpose
        return region if region != ANY and region not in self.regions else None

    def check_words(self, *, action: str = ANY, purpose: str = ANY, region: str = ANY) -> None:
        """Refuses words that a decision would have to deny because of.

        Raises:
            UnknownTerm: one of them is not in the vocabulary.
        """
        word = self.unknown_word(action, purpose, region)
        if word is not None:
            raise UnknownTerm(
                f"{word!r} is not in version {self.version} of the vocabulary; choose one of its terms.",
                term=word,
                version=self.version,
            )


def action_permits(stated: str, asked: str) -> bool:
    """Whether a permit for an action covers the asked one; ``*`` covers none that leave for good."""
    return stated == asked or (stated == ANY and asked not in NEVER_BY_WILDCARD)


def action_forbids(stated: str, asked: str) -> bool:
    """Whether a forbid for an action hits the asked one."""
    return stated in (ANY, asked)


@lru_cache(maxsize=8)
def vocabulary(version: str = CURRENT_VERSION) -> Vocabulary:
    """One released version of the vocabulary.

    Raises:
        UnknownVocabulary: this installation does not ship that version.
    """
    if version not in VERSIONS:
        raise UnknownVocabulary(
            f"Version {version!r} of the vocabulary is not shipped here; upgrade the product.",
            version=version,
        )
    purposes = hierarchy_from(read_data(f"purposes-{version}.json"))
    regions = hierarchy_from(read_data(f"regions-{version}.json"))
    return Vocabulary(version=version, purposes=purposes, regions=regions)


def hierarchy_from(document: Mapping[str, Any]) -> Hierarchy:
    """Makes a hierarchy of its document and closes it upwards.

    Raises:
        UnknownTerm: a parent is missing, a term does not reach the root, or terms form a cycle.
    """
    terms = {
        t["id"]: Term(id=t["id"], label=t["label"], parents=tuple(t["parents"]), duo=t.get("duo"))
        for t in document["terms"]
    }
    root = document["root"]
    above: dict[str, frozenset[str]] = {}

    def close(term: str, path: tuple[str, ...]) -> frozenset[str]:
        if term in path or term not in terms or (not terms[term].parents and term != root):
            raise UnknownTerm(
                f"The hierarchy of {document['scheme']}s does not lead from {term!r} to its root.", term=term
            )
        if term not in above:
            inherited = [close(parent, (*path, term)) for parent in terms[term].parents]
            above[term] = frozenset({term}).union(*inherited)
        return above[term]

    for term in terms:
        close(term, ())
    return Hierarchy(
        scheme=document["scheme"],
        root=root,
        terms=MappingProxyType(terms),
        above=MappingProxyType(above),
    )


def read_data(name: str) -> Any:
    """Reads one of the JSON documents that are shipped with this package."""
    return json.loads(resources.files("policy").joinpath("data", name).read_text(encoding="utf-8"))
