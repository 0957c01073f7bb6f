# SPDX-License-Identifier: Apache-2.0
"""Codes of the GA4GH Data Use Ontology as drafts.

A permission names a purpose. A modifier narrows the permissions beside it: a facet (not commercial), a
prohibition, a condition, or a limit that needs a word of its own (a region, a moment, a named recipient).
Where a modifier cannot be expressed, the permissions beside it are withheld: a limit is never lost. The
codes are identifiers; what they mean is said here in our own words (``policy/data/duo-1.json``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from policy.cards.drafts import Drafts, NotImported
from policy.facts.terms import ANY
from policy.facts.vocabulary import read_data, vocabulary
from policy.records.items import ConsentGive, ForbidUse

VERSION: Final = "1"
_WHERE: Final = "DUO"


class Scope(BaseModel):
    """What drafts are about, and what an owner adds to the card.

    Attributes:
        expert_id: which experts; ``*`` for all experts of the owner, or on ``dataset_id``.
        dataset_id: drafts are consents for this dataset, if given.
        recipient: the tenant that drafts are for; terms that name kinds of users need one.
        region: where it is used.
        diseases: ids of diseases that go with a disease-specific permission.
        until_us: the moment that goes with a limit in time.
    """

    model_config = ConfigDict(frozen=True)

    expert_id: str = ANY
    dataset_id: str | None = None
    recipient: str = ANY
    region: str = ANY
    diseases: tuple[str, ...] = ()
    until_us: int | None = None


class DuoTerm(BaseModel):
    """One code and how it is expressed."""

    model_config = ConfigDict(frozen=True)

    id: str
    short: str
    kind: str
    meaning: str
    permits: tuple[str, ...] = ()
    forbids: tuple[str, ...] = ()
    commercial: bool = True
    condition: str = ""
    needs: str = ""
    withholds: str = ""


@cache
def duo_terms() -> Mapping[str, DuoTerm]:
    """Every usable code, by id and by its short name."""
    terms = [DuoTerm.model_validate(one) for one in read_data(f"duo-{VERSION}.json")["terms"]]
    return MappingProxyType({name: one for one in terms for name in (one.id, one.short)})


def find_term(text: str) -> DuoTerm | None:
    """The term that a text names: ``DUO:0000042``, ``DUO_0000042``, an address that ends so, or ``GRU``."""
    name = text.strip().rpartition("/")[2].replace("DUO_", "DUO:")
    return duo_terms().get(name)


def drafts_of_codes(codes: Sequence[str], scope: Scope) -> Drafts:
    """What a set of codes says together.

    Args:
        codes: in any of the spellings of ``find_term``.
        scope: what the drafts are about.
    """
    found = {text: find_term(text) for text in codes}
    unknown = [text for text, term in found.items() if term is None]
    # By id: repetitions and order say nothing.
    terms = sorted({term.id: term for term in found.values() if term is not None}.items())
    drafts = _of_terms([term for _, term in terms], scope)
    for text in unknown:
        said = NotImported(where=_WHERE, what=text[:200], why="no code of the ontology that can be used")
        drafts = drafts.model_copy(update={"not_imported": (*drafts.not_imported, said)})
        drafts = drafts.withheld(_WHERE, "a code beside it is not known and may narrow it")
    return drafts


def _of_terms(terms: Iterable[DuoTerm], scope: Scope) -> Drafts:
    terms = list(terms)
    commercial = all(term.commercial for term in terms)
    fields: dict[str, Any] = {
        "expert_id": scope.expert_id,
        "dataset_id": scope.dataset_id,
        "region": scope.region,
        "recipient": scope.recipient,
        "valid_until_us": scope.until_us,
    }
    purposes = [purpose for term in terms for purpose in (*term.permits, *_for_diseases(term, scope))]
    drafts = Drafts(
        consents=tuple(
            ConsentGive(**fields, purpose=purpose, commercial=commercial)
            for purpose in dict.fromkeys(purposes)
        ),
        forbids=tuple(
            ForbidUse(expert_id=scope.expert_id, dataset_id=scope.dataset_id, purpose=purpose, recipient=ANY)
            for term in terms
            for purpose in term.forbids
        ),
        conditions=tuple(term.condition for term in terms if term.condition),
        not_imported=tuple(_lacking(terms, scope)),
    )
    for term in terms:
        why = term.withholds or _unmet(term, scope)
        if why and term.kind == "modifier":
            drafts = drafts.withheld(f"{_WHERE} {term.short}", why)
    return drafts


def _for_diseases(term: DuoTerm, scope: Scope) -> tuple[str, ...]:
    if term.needs != "disease":
        return ()
    known = read_data(f"duo-{VERSION}.json")["diseases"]
    words = vocabulary().purposes
    return tuple(known[one] for one in scope.diseases if one in known and known[one] in words)


def _lacking(terms: Iterable[DuoTerm], scope: Scope) -> Iterable[NotImported]:
    """Modifiers and permissions that say something for which there is no word."""
    known = read_data(f"duo-{VERSION}.json")["diseases"]
    for term in terms:
        if term.needs == "disease":
            if not scope.diseases:
                yield NotImported(where=_WHERE, what=term.short, why="it names no disease")
            for one in scope.diseases:
                if one not in known:
                    yield NotImported(where=_WHERE, what=one[:200], why="the disease has no purpose here")
        elif why := term.withholds or _unmet(term, scope):
            yield NotImported(where=_WHERE, what=term.short, why=why)


def _unmet(term: DuoTerm, scope: Scope) -> str:
    """Why a limit stays open: what it needs was not said."""
    missing = {
        "recipient": scope.recipient == ANY and "it limits who may use it; name the recipient",
        "region": scope.region == ANY and "it limits where it is used; name the region",
        "until": scope.until_us is None and "it limits until when it is used; name the moment",
    }
    return missing.get(term.needs, "") or ""
