# SPDX-License-Identifier: Apache-2.0
"""How one fact matches one question: in words, in time, and by how little it misses.

Permits cover, forbids hit (see ``policy.vocabulary`` for the difference). Makes no decisions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal

from policy.questions import Asked
from policy.snapshot import ConsentFact, GrantFact, RuleFact, Snapshot
from policy.terms import ANY
from policy.vocabulary import Vocabulary, action_forbids, action_permits

FOREVER_US: Final = 2**53
"""Later than every moment that a fact can state."""

Lapse = Literal["state", "expired", "not_yet"]
_LAPSES: Final[tuple[Lapse, ...]] = ("state", "expired", "not_yet")
_TIMES: Final = frozenset({"expired", "not_yet"})

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


class Shortfalls:
    """In which fields permits fall short of one question; each permit is looked at once.

    Args:
        snapshot: whose facts they are.
        asked: the question.
        words: the vocabulary that it is understood with.
    """

    def __init__(self, snapshot: Snapshot, asked: Asked, words: Vocabulary) -> None:
        self._asked = asked
        self._words = words
        # By object, which the snapshot keeps: a consent and a grant may have the same id.
        self._of_fact: dict[int, frozenset[str]] = {}
        self._of_words: dict[tuple[str, str, str], frozenset[str]] = {}
        self._snapshot = snapshot
        self._recipients = ANY, asked.tenant

    def of(self, fact: ConsentFact | GrantFact) -> frozenset[str]:
        """The fields in which a permit falls short of the question; none for one that covers it now."""
        known = self._of_fact.get(id(fact))
        return self._compared(fact) if known is None else known

    def covering(self, facts: Iterable[ConsentFact | GrantFact]) -> list[ConsentFact | GrantFact]:
        """Those that cover the question at some time, if not now."""
        found = []
        for fact in facts:
            misses = self._of_fact.get(id(fact))
            if misses is None:
                misses = self._compared(fact)
            if not misses or misses <= _TIMES:
                found.append(fact)
        return found

    def _compared(self, fact: ConsentFact | GrantFact) -> frozenset[str]:
        stated = fact.action, fact.purpose, fact.region
        misses = self._of_words.get(stated)
        if misses is None:
            misses = self._of_words[stated] = self._compared_words(*stated)
        recipient = fact.recipient if isinstance(fact, ConsentFact) else fact.consumer_tenant
        at_us, from_us, until_us = self._asked.at_us, fact.valid_from_us, end_us(fact)
        more = []
        if fact.state != "given":
            more.append("state")
        if recipient not in self._recipients:
            more.append("recipient")
        if not fact.commercial and self._asked.commercial:
            more.append("commercial")
        if from_us > at_us:
            more.append("not_yet")
        if at_us >= until_us or from_us >= until_us:  # an empty interval is over from the start
            more.append("expired")
        if more:
            misses = misses.union(more)
        self._of_fact[id(fact)] = misses
        return misses

    def _compared_words(self, action: str, purpose: str, region: str) -> frozenset[str]:
        asked, words = self._asked, self._words
        checks = {
            "action": action_permits(action, asked.action),
            "purpose": words.purposes.permits(purpose, asked.purpose),
            "region": words.regions.permits(region, asked.region),
            "words": words.unknown_word(action, purpose, region) is None,
        }
        return frozenset(name for name, holds in checks.items() if not holds)


def lapse(misses: frozenset[str]) -> Lapse | None:
    """How a permit that covers the use in substance lapsed; None if it never covered it."""
    if misses - set(_LAPSES):
        return None
    return next((word for word in _LAPSES if word in misses), None)


def not_over(fact: ConsentFact | GrantFact, at_us: int) -> bool:
    """Whether a fact is live at a moment or will be; an empty interval is over from the start."""
    return fact.valid_from_us < end_us(fact) and at_us < end_us(fact)


def end_us(fact: ConsentFact | GrantFact) -> int:
    """The first moment at which a fact is over."""
    return FOREVER_US if fact.valid_until_us is None else fact.valid_until_us


def nearest(
    facts: Iterable[ConsentFact | GrantFact], shortfalls: Shortfalls
) -> ConsentFact | GrantFact | None:
    """The fact with the fewest shortfalls; ties by the shortfalls' names, then by id."""
    near = [(len(misses := shortfalls.of(one)), sorted(misses), one.id, one) for one in facts]
    return min(near, key=lambda one: one[:3])[3] if near else None


def chain(facts: Sequence[ConsentFact | GrantFact], at_us: int) -> tuple[list[ConsentFact | GrantFact], int]:
    """Facts that cover [at_us, end) without a gap, reaching as far as any do, and that end.

    Half-open intervals: one that ends at a moment and one that begins there leave no gap.
    """
    if len(facts) == 1:  # most owners say it once
        (alone,) = facts
        stands = alone.valid_from_us <= at_us < end_us(alone)
        return ([alone], end_us(alone)) if stands else ([], at_us)
    links: list[ConsentFact | GrantFact] = []
    ends_us = at_us
    while ends_us < FOREVER_US:
        live = [f for f in facts if f.valid_from_us <= ends_us < end_us(f)]
        if not live:
            break
        longest = min(live, key=lambda f: (-end_us(f), f.id))
        links.append(longest)
        ends_us = end_us(longest)
    return links, ends_us
