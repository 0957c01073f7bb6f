# SPDX-License-Identifier: Apache-2.0
"""Moments at which consents and grants begin or end by themselves, kept sorted from one epoch to the next."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping
from typing import Any, Final

from policy.facts.indexes import found
from policy.facts.kinds import KINDS, ConsentFact, GrantFact

WORDS: Final = ("consents", "grants")
"""The kinds whose facts begin and end."""

# From so many changes on it is cheaper to sort anew.
_FEW: Final = 64

Turn = tuple[int, str, str]
"""At which moment (microseconds), and the kind and identity of what begins or ends then."""

Word = ConsentFact | GrantFact


def turns_of(kind: str, word: Word) -> list[Turn]:
    """When a word begins and ends; one that was taken back does neither."""
    if word.state != "given":
        return []
    moments = (word.valid_from_us, word.valid_until_us)
    return [(at_us, kind, word.id) for at_us in moments if at_us is not None]


def amended_turns(
    kind: str, before: tuple[Any, ...], edits: Mapping[str, Word | None]
) -> tuple[list[Turn], list[Turn]]:
    """The turns that some edits take away, and those that they bring."""
    gone: list[Turn] = []
    come: list[Turn] = []
    for name, word in edits.items():
        old = found(before, KINDS[kind][1], name)
        gone += [] if old is None else turns_of(kind, old)
        come += [] if word is None else turns_of(kind, word)
    return gone, come


def later_turns(
    turns: tuple[Turn, ...], amended: Iterable[tuple[list[Turn], list[Turn]]], after_us: int
) -> tuple[Turn, ...]:
    """Sorted turns after a moment, without those that are gone and with those that come."""
    gone: set[Turn] = set()
    come: list[Turn] = []
    for away, new in amended:
        gone.update(away)
        come += [turn for turn in new if turn[0] > after_us]
    first = bisect_right(turns, after_us, key=lambda turn: turn[0])
    later = turns[first:]
    if not gone and not come:
        return later
    if len(gone) + len(come) > _FEW:
        return tuple(sorted([*(turn for turn in later if turn not in gone), *come]))
    amending = list(later)
    for turn in gone:  # a word that ends when it begins turns twice
        del amending[bisect_left(amending, turn) : bisect_right(amending, turn)]
    for turn in come:
        insort(amending, turn)
    return tuple(amending)
