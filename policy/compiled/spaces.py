# SPDX-License-Identifier: Apache-2.0
"""Permits and forbids of one snapshot as arrays, whoever said them.

Consents, grants and published rules have one form here: who is meant, what is said, from when until when,
and the *slot* that it is about, such as "consents of anna to exp_1". An expert passes if each of its
*needs* is met by a permit in one of two slots (the expert's own and the one for all), and no forbid hits a
slot that it *watches*. Knows no licenses and no standing of anybody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from policy.compiled.words import Effect, Flags, Numbers, Spoken, is_readable, spoken
from policy.deciding.questions import Asked
from policy.facts.snapshot import ConsentFact, GrantFact, RuleFact, Snapshot
from policy.facts.terms import ANY

FOREVER_US: Final = 2**53
"""Later than every moment that a fact can state."""


class Said(NamedTuple):
    """One consent, grant or rule, in the words that they have in common."""

    slot: int
    recipient: str
    action: str
    purpose: str
    region: str
    commercial: bool
    from_us: int
    until_us: int


class Look(NamedTuple):
    """Number of an expert, and the slots about it and about all experts that it looks at."""

    expert: int
    own: int
    all: int


class Slots:
    """Numbers for what facts may be about."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, ...], int] = {}

    def _number(self, *slot: str) -> int:
        return self._numbers.setdefault(slot, len(self._numbers))

    def about(self, expert: int, kind: str, expert_id: str, *who: str) -> Look:
        """How an expert looks at what is said about it under a kind."""
        return Look(expert, self._number(kind, expert_id, *who), self._number(kind, ANY, *who))

    def find(self, *slot: str) -> int | None:
        """The number of a slot that somebody looks at; None where a fact about it could change nothing."""
        return self._numbers.get(slot)

    def __len__(self) -> int:
        return len(self._numbers)


@dataclass(frozen=True, kw_only=True, slots=True)
class Looks:
    """Who looks at which slots: one entry an expert and thing that is needed or watched.

    Attributes:
        expert: number of the expert.
        own: the slot that is about this expert.
        all: the slot of the same speaker that is about all experts.
    """

    expert: Numbers
    own: Numbers
    all: Numbers

    def at(self, marked_S: Flags) -> Flags:
        """Which entries look at a marked slot."""
        found: Flags = marked_S[self.own] | marked_S[self.all]
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """Facts of one effect.

    Attributes:
        words: what they speak to.
        to_all: those that mean every consumer.
        to_tenant: by consumer, those that name it.
        not_commercial: those that do not cover commercial use.
        slot: what each is about.
        from_us: when each begins.
        until_us: when each is over, ``FOREVER_US`` for never.
        slots: how many there are.
        by_slot: the facts in the order of their slots.
        starts: where those of a slot begin in ``by_slot``; one more than there are slots.
    """

    words: Spoken
    to_all: Flags
    to_tenant: Mapping[str, Numbers]
    not_commercial: Numbers
    slot: Numbers
    from_us: Numbers
    until_us: Numbers
    slots: int
    by_slot: Numbers
    starts: Numbers

    def speaking(self, asked: Asked) -> Flags:
        """Which facts speak to a use, at whatever moment."""
        here = self.words.to(asked.action, asked.purpose, asked.region)
        named = self.to_tenant.get(asked.tenant)
        if named is None:
            here &= self.to_all
        else:
            meant = self.to_all.copy()
            meant[named] = True
            here &= meant
        if asked.commercial:
            here[self.not_commercial] = False
        return here

    def live(self, at_us: int) -> Flags:
        """Which facts stand at a moment."""
        found: Flags = (self.from_us <= at_us) & (at_us < self.until_us)
        return found

    def slots_of(self, facts: Flags) -> Flags:
        """Which slots some facts are about."""
        marked = np.zeros(self.slots, np.bool_)
        marked[self.slot[facts]] = True
        return marked

    def in_slot(self, slot: int) -> Numbers:
        """The facts that are about a slot."""
        return self.by_slot[self.starts[slot] : self.starts[slot + 1]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spaces:
    """Everything that was said, and who looks at it.

    Attributes:
        permits: with ``needs`` that they may meet.
        forbids: with ``watches`` that they may hit.
    """

    permits: Space
    needs: Looks
    forbids: Space
    watches: Looks


def lay_out(snapshot: Snapshot) -> Spaces:
    """Reads consents, grants and rules into arrays."""
    slots, experts, version = Slots(), snapshot.experts, snapshot.vocabulary_version
    consents = [slots.about(n, "consent", e.expert_id, e.tenant) for n, e in enumerate(experts)]
    grants = [slots.about(n, "grant", e.expert_id, e.tenant) for n, e in enumerate(experts)]
    rules = [slots.about(n, "rule", e.expert_id) for n, e in enumerate(experts)]
    lineage = [
        (slots.about(n, "dataset", expert.expert_id, dataset.tenant, dataset.id), dataset.consent)
        for n, expert in enumerate(experts)
        for dataset in expert.datasets
    ]
    needs = [*consents, *grants, *rules, *(look for look, word in lineage if word == "separate")]
    watches = [*consents, *rules, *(look for look, _ in lineage)]
    said: dict[Effect, list[Said]] = {"permit": [], "forbid": []}
    for consent in snapshot.consents:
        if consent.state == "given":
            _add(said[consent.effect], _slot_of(slots, consent), consent.recipient, consent)
    for grant in snapshot.grants:
        if grant.state == "given":
            slot = slots.find("grant", grant.expert_id, grant.tenant)
            _add(said["permit"], slot, grant.consumer_tenant, grant)
    for rule in snapshot.rules:
        # A rule that nobody can read denies, also where it meant to permit.
        effect: Effect = rule.effect if is_readable(rule, version) else "forbid"
        _add(said[effect], slots.find("rule", rule.expert_id), rule.consumer_tenant, rule)
    return Spaces(
        permits=_space(said["permit"], version, "permit", len(slots)),
        needs=_looks(needs),
        forbids=_space(said["forbid"], version, "forbid", len(slots)),
        watches=_looks(watches),
    )


def _slot_of(slots: Slots, consent: ConsentFact) -> int | None:
    if consent.dataset_id is None:
        return slots.find("consent", consent.expert_id, consent.tenant)
    return slots.find("dataset", consent.expert_id, consent.tenant, consent.dataset_id)


def _add(
    said: list[Said], slot: int | None, recipient: str, fact: ConsentFact | GrantFact | RuleFact
) -> None:
    if slot is None:
        return
    from_us, until_us, commercial = 0, FOREVER_US, True
    if not isinstance(fact, RuleFact):
        from_us, commercial = fact.valid_from_us, fact.commercial
        until_us = FOREVER_US if fact.valid_until_us is None else fact.valid_until_us
    if from_us < until_us:
        words = fact.action, fact.purpose, fact.region
        said.append(Said(slot, recipient, *words, commercial, from_us, until_us))


def _space(said: list[Said], version: str, effect: Effect, slots: int) -> Space:
    to_tenant: defaultdict[str, list[int]] = defaultdict(list)
    for number, one in enumerate(said):
        if one.recipient != ANY:
            to_tenant[one.recipient].append(number)
    slot = _numbers(one.slot for one in said)
    by_slot = np.argsort(slot, kind="stable")
    return Space(
        words=spoken(said, version, effect),
        to_all=np.array([one.recipient == ANY for one in said], np.bool_),
        to_tenant={tenant: _numbers(numbers) for tenant, numbers in to_tenant.items()},
        # A forbid hits both kinds of use whatever it says.
        not_commercial=_numbers(n for n, one in enumerate(said) if effect == "permit" and not one.commercial),
        slot=slot,
        from_us=_numbers(one.from_us for one in said),
        until_us=_numbers(one.until_us for one in said),
        slots=slots,
        by_slot=by_slot,
        starts=np.searchsorted(slot[by_slot], np.arange(slots + 1)),
    )


def _looks(looks: Sequence[Look]) -> Looks:
    return Looks(
        expert=_numbers(one.expert for one in looks),
        own=_numbers(one.own for one in looks),
        all=_numbers(one.all for one in looks),
    )


def _numbers(values: Iterable[int]) -> Numbers:
    return np.fromiter(values, np.int64)
