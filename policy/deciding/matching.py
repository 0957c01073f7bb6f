# SPDX-License-Identifier: Apache-2.0
"""How one fact matches one question: in words, in time, and by how little it misses.

Permits cover, forbids hit (see ``policy.facts.vocabulary`` for the difference). Makes no decisions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, Literal

from policy.deciding.questions import Asked
from policy.facts.snapshot import ConsentFact, GrantFact, RuleFact
from policy.facts.terms import ANY
from policy.facts.vocabulary import Vocabulary, action_forbids, action_permits

FOREVER_US: Final = 2**53
"""Later than every moment that a fact can state."""

Lapse = Literal["state", "expired", "not_yet"]
_LAPSES: Final[tuple[Lapse, ...]] = ("state", "expired", "not_yet")

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


class Reach:
    """What a permit has to say to cover one question.

    Args:
        asked: the question.
        words: the vocabulary that it is understood with.
    """

    def __init__(self, asked: Asked, words: Vocabulary) -> None:
        self._words = words
        stated = asked.action, ANY
        self._actions = frozenset(one for one in stated if action_permits(one, asked.action))
        self._purposes = words.purposes.permitting(asked.purpose)
        self._regions = words.regions.permitting(asked.region)
        self._recipients = ANY, asked.tenant
        self._at_us, self._commercial = asked.at_us, asked.commercial

    def covering(self, facts: Iterable[ConsentFact | GrantFact]) -> list[ConsentFact | GrantFact]:
        """Those that cover the question at some time, if not now."""
        actions, purposes, regions = self._actions, self._purposes, self._regions
        commercial, recipients = self._commercial, self._recipients
        found = []
        for fact in facts:
            said = vars(fact)  # reading a field of a model costs more than all that is done with it here
            if (
                said["purpose"] in purposes
                and said["region"] in regions
                and said["action"] in actions
                and said["state"] == "given"
                and (said["commercial"] or not commercial)
                and _recipient(said) in recipients
            ):
                found.append(fact)
        return found

    def shortfall(self, fact: ConsentFact | GrantFact) -> list[str]:
        """The fields in which a permit falls short of the question, sorted; none if it covers it now."""
        said, at_us = vars(fact), self._at_us
        action, purpose, region = said["action"], said["purpose"], said["region"]
        from_us, until_us = said["valid_from_us"], said["valid_until_us"]
        until_us = FOREVER_US if until_us is None else until_us
        misses, covered = [], True
        if action not in self._actions:
            covered = False
            misses.append("action")
        if self._commercial and not said["commercial"]:
            misses.append("commercial")
        if at_us >= until_us or from_us >= until_us:  # an empty interval is over from the start
            misses.append("expired")
        if from_us > at_us:
            misses.append("not_yet")
        if purpose not in self._purposes:
            covered = False
            misses.append("purpose")
        if _recipient(said) not in self._recipients:
            misses.append("recipient")
        if region not in self._regions:
            covered = False
            misses.append("region")
        if said["state"] != "given":
            misses.append("state")
        if not covered and self._words.unknown_word(action, purpose, region) is not None:
            misses.append("words")
        return misses


def _recipient(said: Mapping[str, Any]) -> str:
    """Whom a consent or a grant names, from its fields."""
    whom: str = said["recipient"] if "recipient" in said else said["consumer_tenant"]
    return whom


def lapse(misses: Sequence[str]) -> Lapse | None:
    """How a permit that covers the use in substance lapsed; None if it never covered it."""
    if set(misses) - set(_LAPSES):
        return None
    return next((word for word in _LAPSES if word in misses), None)


def not_over(fact: ConsentFact | GrantFact, at_us: int) -> bool:
    """Whether a fact is live at a moment or will be; an empty interval is over from the start."""
    return fact.valid_from_us < end_us(fact) and at_us < end_us(fact)


def end_us(fact: ConsentFact | GrantFact) -> int:
    """The first moment at which a fact is over."""
    return FOREVER_US if fact.valid_until_us is None else fact.valid_until_us


def nearest(
    facts: Sequence[ConsentFact | GrantFact], reach: Reach
) -> tuple[ConsentFact | GrantFact | None, list[str]]:
    """The permit with the fewest shortfalls, and these; ties by the shortfalls' names, then by id."""
    if not facts:
        return None, []
    if len(facts) == 1:
        return facts[0], reach.shortfall(facts[0])
    near = [(len(misses := reach.shortfall(one)), misses, vars(one)["id"], one) for one in facts]
    _, misses, _, fact = min(near, key=itemgetter(0, 1, 2))
    return fact, misses


def chain(facts: Sequence[ConsentFact | GrantFact], at_us: int) -> tuple[list[ConsentFact | GrantFact], int]:
    """Facts that cover [at_us, end) without a gap, reaching as far as any do, and that end.

    Half-open intervals: one that ends at a moment and one that begins there leave no gap.
    """
    links: list[ConsentFact | GrantFact] = []
    ends_us = at_us
    while ends_us < FOREVER_US:
        longest, longest_us = None, ends_us
        for fact in facts:
            said = vars(fact)
            until_us = said["valid_until_us"]
            until_us = FOREVER_US if until_us is None else until_us
            if said["valid_from_us"] <= ends_us < until_us and (
                longest is None or until_us > longest_us or (until_us == longest_us and fact.id < longest.id)
            ):
                longest, longest_us = fact, until_us
        if longest is None:
            break
        links.append(longest)
        ends_us = longest_us
    return links, ends_us
