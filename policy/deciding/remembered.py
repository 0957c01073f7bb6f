# SPDX-License-Identifier: Apache-2.0
"""Decisions that are not made again while nothing they rest on has changed.

Most epochs touch one expert, and many deployments ask for the same use. Whoever follows the register asks
hundreds of questions at every epoch; here each distinct one is decided once, and again only when a fact that
its gates read, or a moment at which one of them begins or ends, lies in between. What is remembered is what
``decide`` said, so a remembered decision names the snapshot that it was made with. Compositions are kept the
same way: one is made again only where a decision or the deployment itself is another.
"""

from __future__ import annotations

import itertools
import threading
from operator import is_
from typing import NamedTuple

from policy.deciding.composition import Composition, compose
from policy.deciding.decision import Decision, decide_heard
from policy.deciding.hearing import Hearing
from policy.deciding.questions import Asked, Question, resolve
from policy.facts.snapshot import ConsentFact, ExpertFact, Fact, GrantFact, Snapshot
from policy.facts.terms import ANY

_Use = tuple[str, str, str, str, str, bool]
_Ground = tuple[object, ...]


class _Made(NamedTuple):
    """A decision, what it rests on, and the moments between which time alone changes nothing."""

    ground: _Ground
    from_us: int
    until_us: int | None
    decision: Decision

    def holds_at(self, at_us: int) -> bool:
        """Whether time alone has changed nothing."""
        return self.from_us <= at_us and (self.until_us is None or at_us < self.until_us)


class Remembered:
    """Answers as ``decide`` does, about one snapshot after the other; not for several threads at once."""

    def __init__(self) -> None:
        self._made: dict[tuple[_Use, str], _Made] = {}
        self._numbers: dict[Fact, int] = {}
        self._next = itertools.count()
        self._snapshot: Snapshot | None = None
        self._hearing: Hearing | None = None
        self._common: _Ground = ()
        self._experts: dict[str, tuple[_Ground, tuple[ConsentFact | GrantFact, ...]]] = {}
        self._composed: dict[tuple[str, bool], tuple[_Ground, tuple[Decision, ...], Composition]] = {}

    def compose(self, snapshot: Snapshot, deployment: str, at_us: int) -> Composition:
        """What ``compose`` says of a deployment; epochs, digests and moments may be of an earlier asking.

        Raises:
            UnknownDeployment: the snapshot does not hold it.
        """
        question = Question(at_us=at_us, deployment=deployment)
        asked = resolve(snapshot, question)
        if snapshot is not self._snapshot:  # a deployment without candidates asks for no decision
            self._turn_to(snapshot)
        named = None if asked.candidates == "*" else frozenset(asked.candidates)
        decisions = tuple(
            self.decide(snapshot, asked, fact)
            for fact in snapshot.experts
            if named is None or fact.expert_id in named or fact.bundle_digest in named
        )
        fact = snapshot.deployments_by_name[deployment]
        # A widening publication looks at a deployment twice: before its members are known, and with them.
        key = deployment, fact.members is None
        ground = (
            fact,
            self._common,
            self._number(snapshot.tenants_by_slug.get(asked.tenant)),
            self._number(snapshot.bases_by_digest.get(asked.base_digest)),
        )
        made = self._composed.get(key)
        # A decision that was made anew is another object, also where it says the same.
        if made is not None and made[0] == ground and _same(made[1], decisions):
            return made[2]
        composed = compose(snapshot, question, decider=self.decide)
        self._composed[key] = ground, decisions, composed
        return composed

    def decide(self, snapshot: Snapshot, asked: Asked, expert: ExpertFact) -> Decision:
        """What ``decide`` says of this expert; epoch, digests and moment may be of an earlier asking."""
        if snapshot is not self._snapshot:
            self._turn_to(snapshot)
        use = (asked.tenant, asked.base_digest, asked.action, asked.purpose, asked.region, asked.commercial)
        key = use, expert.bundle_digest
        about, words = self._about(snapshot, expert)
        ground = (
            self._common,
            about,
            self._number(snapshot.tenants_by_slug.get(asked.tenant)),
            self._number(snapshot.bases_by_digest.get(asked.base_digest)),
        )
        made = self._made.get(key)
        if made is not None and made.ground == ground and made.holds_at(asked.at_us):
            return made.decision
        hearing = self._hearing
        if hearing is None or hearing.asked is not asked or hearing.snapshot is not snapshot:
            hearing = self._hearing = Hearing(snapshot, asked)
        decision = decide_heard(hearing, expert)
        moments = [moment for one in words for moment in (one.valid_from_us, one.valid_until_us)]
        until_us = min((one for one in moments if one is not None and one > asked.at_us), default=None)
        self._made[key] = _Made(ground, asked.at_us, until_us, decision)
        return decision

    def _turn_to(self, snapshot: Snapshot) -> None:
        kinds = (snapshot.tenants, snapshot.bases, snapshot.licenses, snapshot.experts, snapshot.consents)
        facts: itertools.chain[Fact] = itertools.chain(*kinds, snapshot.grants, snapshot.rules)
        # An equal fact keeps its number, so that a comparison of numbers is one of facts.
        before, self._numbers = self._numbers, {}
        for fact in facts:
            known = before.get(fact)
            self._numbers[fact] = next(self._next) if known is None else known
        here = {fact.bundle_digest for fact in snapshot.experts}
        self._made = {key: made for key, made in self._made.items() if key[1] in here}
        self._experts = {}
        live = snapshot.deployments_by_name
        self._composed = {key: made for key, made in self._composed.items() if key[0] in live}
        self._common = (
            snapshot.engine_version,
            snapshot.vocabulary_version,
            tuple(self._numbers[fact] for fact in snapshot.licenses),
            tuple(self._numbers[fact] for fact in snapshot.rules),
        )
        self._snapshot = snapshot

    def _about(
        self, snapshot: Snapshot, expert: ExpertFact
    ) -> tuple[_Ground, tuple[ConsentFact | GrantFact, ...]]:
        """Everything that was said about an expert, by number and in full."""
        if expert.bundle_digest not in self._experts:
            named = (expert.expert_id, ANY)
            words: list[ConsentFact | GrantFact] = []
            for name in named:
                words += snapshot.consents_by_expert.get(name, ())
                words += snapshot.grants_by_expert.get(name, ())
            for dataset in expert.datasets:
                words += snapshot.consents_by_dataset.get(dataset.id, ())
            owner = self._number(snapshot.tenants_by_slug.get(expert.tenant))
            numbers = tuple(self._numbers[word] for word in words)
            self._experts[expert.bundle_digest] = (self._numbers[expert], owner, numbers), tuple(words)
        return self._experts[expert.bundle_digest]

    def _number(self, fact: Fact | None) -> int | None:
        return None if fact is None else self._numbers[fact]


def _same(some: tuple[Decision, ...], others: tuple[Decision, ...]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))


def remembered() -> Remembered:
    """The memory of the thread that asks: publications come one after the other, each close to the last."""
    if not hasattr(_OF_THREAD, "memory"):
        _OF_THREAD.memory = Remembered()
    memory: Remembered = _OF_THREAD.memory
    return memory


_OF_THREAD = threading.local()
