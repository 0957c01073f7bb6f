# SPDX-License-Identifier: Apache-2.0
"""How one fact matches one question: in words, in time, and by how little it misses.

Permits cover, forbids hit (see ``policy.facts.vocabulary`` for the difference). Makes no decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress, product
from typing import Final, Literal, NamedTuple

from policy.deciding.questions import Asked
from policy.facts.snapshot import ConsentFact, GrantFact, RuleFact
from policy.facts.terms import ANY
from policy.facts.vocabulary import Vocabulary, action_forbids, action_permits

FOREVER_US: Final = 2**53
"""Later than every moment that a fact can state."""

Lapse = Literal["state", "expired", "not_yet"]
_LAPSES: Final[tuple[Lapse, ...]] = ("state", "expired", "not_yet")

_FIELDS: Final = (
    *("action", "commercial", "expired", "not_yet", "purpose", "recipient", "region", "state", "words"),
)
_BITS: Final = {field: 1 << place for place, field in enumerate(_FIELDS)}
_ACTION, _COMMERCIAL, _EXPIRED, _NOT_YET, _PURPOSE, _RECIPIENT, _REGION, _STATE, _WORDS = _BITS.values()


class Shortfall(NamedTuple):
    """The fields in which a permit falls short of a question, sorted; none if it covers it now.

    ``rank`` orders shortfalls by their number, then by their names. ``lapse`` says how a permit that
    covers the use in substance lapsed; None if it never covered it.
    """

    rank: int
    fields: tuple[str, ...]
    lapse: Lapse | None


def _shortfalls() -> dict[int, Shortfall]:
    """Every shortfall, by the sum of its bits."""
    picked = list(product((False, True), repeat=len(_FIELDS)))
    by_bits = {sum(compress(_BITS.values(), some)): tuple(compress(_FIELDS, some)) for some in picked}
    ordered = sorted(by_bits.values(), key=lambda fields: (len(fields), fields))
    ranks = {fields: rank for rank, fields in enumerate(ordered)}
    return {bits: Shortfall(ranks[fields], fields, _lapse(fields)) for bits, fields in by_bits.items()}


def _lapse(fields: tuple[str, ...]) -> Lapse | None:
    if set(fields) - set(_LAPSES):
        return None
    return next((word for word in _LAPSES if word in fields), None)


_SHORTFALLS: Final = _shortfalls()

Scoped = ConsentFact | GrantFact | RuleFact


def covers(fact: Scoped, asked: Asked, words: Vocabulary) -> bool:
    """Whether a permit covers the asked action, purpose and region."""
    return (
        action_permits(fact.action, asked.action)
        and words.purposes.permits(fact.purpose, asked.purpose)
        and words.regions.permits(fact.region, asked.region)
    )


def hits(fact: Scoped, asked: Asked, words: Vocabulary) -> bool:
    """Whether a forbid hits the asked action, purpose and region, or a part of them."""
    return (
        action_forbids(fact.action, asked.action)
        and words.purposes.forbids(fact.purpose, asked.purpose)
        and words.regions.forbids(fact.region, asked.region)
    )


def hits_part_only(fact: Scoped, asked: Asked, words: Vocabulary) -> bool:
    """Whether a narrower request would escape a forbid that hits this one."""
    return words.purposes.contains(asked.purpose, fact.purpose) or words.regions.contains(
        asked.region, fact.region
    )


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """What a permit says beside its time. Equal scopes are one object, so that answers are found by it.

    ``readable``: whether the vocabulary holds all of its words.
    """

    action: str
    purpose: str
    region: str
    recipient: str
    commercial: bool
    state: str
    readable: bool


class Permit(NamedTuple):
    """A consent or a grant, read once: what it covers, in [from_us, until_us), and the fact's id."""

    scope: Scope
    from_us: int
    until_us: int
    id: str


def permit_of(fact: ConsentFact | GrantFact, words: Vocabulary) -> Permit:
    """Reads a consent or a grant that permits, in the words of a vocabulary."""
    recipient = fact.recipient if isinstance(fact, ConsentFact) else fact.consumer_tenant
    readable = words.unknown_word(fact.action, fact.purpose, fact.region) is None
    about = fact.action, fact.purpose, fact.region, recipient, fact.commercial, fact.state
    return Permit(_scope(*about, readable), fact.valid_from_us, end_us(fact), fact.id)


_scope = lru_cache(maxsize=65_536)(Scope)


class Reach(dict[Scope, int]):
    """By scope, in which fields it falls short of one question, as a sum of bits; 0 where it covers it.

    Args:
        asked: the question.
        words: the vocabulary that it is understood with.
    """

    def __init__(self, asked: Asked, words: Vocabulary) -> None:
        super().__init__()
        stated = asked.action, ANY
        self._actions = dict.fromkeys([one for one in stated if action_permits(one, asked.action)], 0)
        self._purposes = dict.fromkeys(words.purposes.permitting(asked.purpose), 0)
        self._regions = dict.fromkeys(words.regions.permitting(asked.region), 0)
        self._recipients = dict.fromkeys((ANY, asked.tenant), 0)
        self._at_us, self._commercial = asked.at_us, asked.commercial

    def __missing__(self, scope: Scope) -> int:
        """Compares a scope with the question, once."""
        bits = (
            self._actions.get(scope.action, _ACTION)
            | self._purposes.get(scope.purpose, _PURPOSE)
            | self._regions.get(scope.region, _REGION)
        )
        if bits and not scope.readable:
            bits |= _WORDS
        bits |= self._recipients.get(scope.recipient, _RECIPIENT)
        if self._commercial and not scope.commercial:
            bits |= _COMMERCIAL
        if scope.state != "given":
            bits |= _STATE
        short = self[scope] = bits
        return short

    def shortfall(self, permit: Permit) -> Shortfall:
        """In what a permit falls short of the question now."""
        scope, from_us, until_us, _ = permit
        bits, at_us = self[scope], self._at_us
        if at_us >= until_us or from_us >= until_us:  # an empty interval is over from the start
            bits |= _EXPIRED
        if from_us > at_us:
            bits |= _NOT_YET
        return _SHORTFALLS[bits]


def not_over(fact: ConsentFact | GrantFact, at_us: int) -> bool:
    """Whether a fact is live at a moment or will be; an empty interval is over from the start."""
    return fact.valid_from_us < end_us(fact) and at_us < end_us(fact)


def end_us(fact: ConsentFact | GrantFact) -> int:
    """The first moment at which a fact is over."""
    return FOREVER_US if fact.valid_until_us is None else fact.valid_until_us


def nearest(permits: Sequence[Permit], reach: Reach) -> tuple[str | None, Shortfall]:
    """The id of the permit that falls least short, and in what; ties by id."""
    if not permits:
        return None, _SHORTFALLS[0]
    shortfall, permit_id = min([(reach.shortfall(one), one[3]) for one in permits])
    return permit_id, shortfall


def chain(permits: Sequence[Permit], at_us: int) -> tuple[list[str], int]:
    """Ids of permits that cover [at_us, end) without a gap, reaching as far as any do, and that end.

    Half-open intervals: one that ends at a moment and one that begins there leave no gap.
    """
    links: list[str] = []
    ends_us = at_us
    while ends_us < FOREVER_US:
        reaching = [(-one[2], one[3]) for one in permits if one[1] <= ends_us < one[2]]
        if not reaching:
            break
        farthest_us, link = min(reaching)
        links.append(link)
        ends_us = -farthest_us
    return links, ends_us
