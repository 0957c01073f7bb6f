# SPDX-License-Identifier: Apache-2.0
"""Sorted facts and groups of facts, amended where a few of them change. Knows no kind of fact in particular.

A change of a few facts costs a copy of pointers and nothing per fact that stays; what comes out equals what
would be made anew, for an index is a function of the facts alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from policy.facts.kinds import AnyFact, Fact

# From so many changes on it is cheaper to sort anew.
_FEW: Final = 64

GroupOf = Callable[[Any], str | None]
"""The group that a fact belongs to; None for no group."""


def found(facts: tuple[AnyFact, ...], identity: Callable[[AnyFact], str], name: str) -> AnyFact | None:
    """The fact that is called so, among facts sorted by identity; None if there is none."""
    place = bisect_left(facts, name, key=identity)
    return facts[place] if place < len(facts) and identity(facts[place]) == name else None


def amended_set(
    facts: tuple[AnyFact, ...], identity: Callable[[Any], str], edits: Mapping[str, AnyFact | None]
) -> tuple[AnyFact, ...]:
    """Sorted facts after some came, went or changed.

    Args:
        facts: sorted by identity.
        identity: what tells facts apart.
        edits: by identity, the fact from now on, or None where it is gone.
    """
    if len(edits) > _FEW:
        by_name = {identity(fact): fact for fact in facts}
        by_name.update({name: fact for name, fact in edits.items() if fact is not None})
        gone = {name for name, fact in edits.items() if fact is None}
        return tuple(by_name[name] for name in sorted(by_name.keys() - gone))
    amended = list(facts)
    for name, fact in edits.items():
        place = bisect_left(amended, name, key=identity)
        there = place < len(amended) and identity(amended[place]) == name
        amended[place : place + there] = [] if fact is None else [fact]
    return tuple(amended)


def grouped(facts: Iterable[AnyFact], group_of: GroupOf) -> dict[str, tuple[AnyFact, ...]]:
    """Facts by group, in their order."""
    groups: defaultdict[str, list[AnyFact]] = defaultdict(list)
    for fact in facts:
        group = group_of(fact)
        if group is not None:
            groups[group].append(fact)
    return {name: tuple(group) for name, group in groups.items()}


def amended_groups(
    groups: Mapping[str, tuple[AnyFact, ...]],
    before: tuple[AnyFact, ...],
    identity: Callable[[Any], str],
    group_of: GroupOf,
    edits: Mapping[str, AnyFact | None],
) -> dict[str, tuple[AnyFact, ...]]:
    """Groups after some facts came, went or changed.

    Args:
        groups: as they were; sorted by identity within.
        before: all facts as they were, sorted by identity.
        identity: what tells facts apart.
        group_of: the group of a fact.
        edits: by identity, the fact from now on, or None where it is gone.
    """
    by_group: defaultdict[str, dict[str, AnyFact | None]] = defaultdict(dict)
    for name, fact in edits.items():
        old = found(before, identity, name)
        if old is not None and (group := group_of(old)) is not None:
            by_group[group][name] = None
        if fact is not None and (group := group_of(fact)) is not None:
            by_group[group][name] = fact
    amended = dict(groups)
    for group, of_group in by_group.items():
        facts = amended_set(amended.get(group, ()), identity, of_group)
        if facts:
            amended[group] = facts
        else:
            amended.pop(group, None)
    return amended


def named(edits: Mapping[tuple[str, str], Fact | None], kind: str) -> dict[str, Any]:
    """The edits of one kind, by identity."""
    return {identity: fact for (name, identity), fact in edits.items() if name == kind}
