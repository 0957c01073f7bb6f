# SPDX-License-Identifier: Apache-2.0
"""Which facts speak to which asked words: a row of bits for every action, purpose and region.

The closures of a vocabulary are laid out once as tables of asked against stated words; a snapshot's facts
pick their columns. A question then takes one row of each table. Knows no experts, no times and no verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from policy.facts.terms import ACTIONS, ANY, NEVER_BY_WILDCARD
from policy.facts.vocabulary import Hierarchy, Vocabulary, vocabulary

Bits: TypeAlias = NDArray[np.uint8]
Flags: TypeAlias = NDArray[np.bool_]
Numbers: TypeAlias = NDArray[np.int64]

Effect = Literal["permit", "forbid"]


class Scoped(Protocol):
    """A fact that states what it is about; each word may be ``*``."""

    @property
    def action(self) -> str:
        """The action."""
        ...

    @property
    def purpose(self) -> str:
        """The purpose."""
        ...

    @property
    def region(self) -> str:
        """The region."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    """One dimension of a vocabulary for one effect.

    Attributes:
        row_of: asked word to its row.
        column_of: stated word to its column; words that are not in it have the last one, which is empty.
        speaks_RC: whether a fact with a column's word speaks to a row's word.
    """

    row_of: Mapping[str, int]
    column_of: Mapping[str, int]
    speaks_RC: Flags

    def pick(self, stated: Sequence[str]) -> Bits:
        """One row of bits a word that can be asked, one bit a fact."""
        column_of, other = self.column_of, len(self.column_of)
        columns = np.fromiter((column_of.get(word, other) for word in stated), np.int64, len(stated))
        return np.packbits(self.speaks_RC[:, columns], axis=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spoken:
    """What the facts of one effect speak to.

    Attributes:
        count: of the facts.
        actions: its table, and a row of bits for every action.
        purposes: the same for purposes.
        regions: the same for regions.
        unreadable: facts with a word that the vocabulary does not hold: they speak to everything if they
            forbid, and to nothing if they permit.
    """

    count: int
    actions: tuple[_Table, Bits]
    purposes: tuple[_Table, Bits]
    regions: tuple[_Table, Bits]
    unreadable: Bits | None

    def to(self, action: str, purpose: str, region: str) -> Flags:
        """Which facts speak to a use; its words are in the vocabulary."""
        bits = _row(self.actions, action) & _row(self.purposes, purpose) & _row(self.regions, region)
        if self.unreadable is not None:
            bits |= self.unreadable
        return np.unpackbits(bits, count=self.count).view(np.bool_)


def spoken(facts: Sequence[Scoped], version: str, effect: Effect) -> Spoken:
    """Lays out what facts of one effect speak to."""
    actions, purposes, regions = _tables(version, effect)
    unreadable = None
    if effect == "forbid":
        unread = [not _is_read(fact, actions, purposes, regions) for fact in facts]
        unreadable = np.packbits(np.array(unread, np.bool_)) if any(unread) else None
    return Spoken(
        count=len(facts),
        actions=(actions, actions.pick([fact.action for fact in facts])),
        purposes=(purposes, purposes.pick([fact.purpose for fact in facts])),
        regions=(regions, regions.pick([fact.region for fact in facts])),
        unreadable=unreadable,
    )


def is_understood(version: str, action: str, purpose: str, region: str) -> bool:
    """Whether a vocabulary holds all words of a question."""
    asked = (action, purpose, region)
    return all(word in table.row_of for word, table in zip(asked, _tables(version, "permit"), strict=True))


def is_readable(fact: Scoped, version: str) -> bool:
    """Whether a vocabulary holds all words of a fact."""
    return _is_read(fact, *_tables(version, "forbid"))


def _is_read(fact: Scoped, actions: _Table, purposes: _Table, regions: _Table) -> bool:
    return (
        fact.action in actions.column_of
        and fact.purpose in purposes.column_of
        and fact.region in regions.column_of
    )


def _row(dimension: tuple[_Table, Bits], word: str) -> Bits:
    table, bits = dimension
    row: Bits = bits[table.row_of[word]]
    return row


@lru_cache(maxsize=16)
def _tables(version: str, effect: Effect) -> tuple[_Table, _Table, _Table]:
    words: Vocabulary = vocabulary(version)

    def of(hierarchy: Hierarchy) -> _Table:
        above = hierarchy.above
        if effect == "permit":
            return _table(hierarchy, lambda stated, asked: stated in above[asked])
        # A forbid also hits what contains its word.
        return _table(hierarchy, lambda stated, asked: stated in above[asked] or asked in above[stated])

    return _action_table(effect), of(words.purposes), of(words.regions)


def _action_table(effect: Effect) -> _Table:
    table = _table(ACTIONS, lambda stated, asked: stated == asked)
    if effect == "permit":
        for action in NEVER_BY_WILDCARD:
            table.speaks_RC[table.row_of[action], table.column_of[ANY]] = False
    return table


def _table(words: Iterable[str], speaks: Callable[[str, str], bool]) -> _Table:
    terms = tuple(words)
    speaks_RC = np.zeros((len(terms), len(terms) + 2), np.bool_)
    for row, asked in enumerate(terms):
        speaks_RC[row, : len(terms)] = [speaks(stated, asked) for stated in terms]
    speaks_RC[:, len(terms)] = True  # the column of *
    return _Table(
        row_of={word: row for row, word in enumerate(terms)},
        column_of={word: column for column, word in enumerate((*terms, ANY))},
        speaks_RC=speaks_RC,
    )
