# SPDX-License-Identifier: Apache-2.0
"""One question about many experts: what is the same for all of them is found out once.

Whether the question is understood, whether consumer and base stand, what the base's license and every other
license expression say, which rules speak and how far each permit reaches: none of it depends on the expert
that is asked about. A hearing belongs to one question about one snapshot and is forgotten with it. It
decides about no expert.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any, NamedTuple

from model_core.packing.canonical import canonical_bytes
from policy.deciding.dossiers import Dossier, Dossiers
from policy.deciding.findings import (
    UNLICENSED,
    Licensable,
    Licensed,
    denied_by,
    licensed_together,
    miss,
    permitted_by,
)
from policy.deciding.licenses import Said, Subject, Use, ask, may_clash
from policy.deciding.matching import Reach, covers, hits, hits_part_only
from policy.deciding.questions import Asked
from policy.deciding.reasons import NearestMiss, Reason, Weighed, reason, weighed
from policy.errors import UnknownVocabulary
from policy.facts.snapshot import RuleFact, Snapshot
from policy.facts.terms import ACTIONS, ANY, ENGINE_VERSION
from policy.facts.vocabulary import Vocabulary, vocabulary


class Spoken(NamedTuple):
    """What one rule says to the question: it permits, or denies for a reason."""

    place: int
    rule_id: str
    denial: Reason | None = None
    misses: tuple[NearestMiss, ...] = ()


class Heard(NamedTuple):
    """What all rules together say to the question."""

    said: Weighed
    misses: tuple[NearestMiss, ...]


class _Sayings(dict[str, Said]):
    """By license expression, what it says to the use that a question asks about."""

    def __init__(self, snapshot: Snapshot, asked: Asked, words: Vocabulary) -> None:
        super().__init__()
        self._licenses = snapshot.licenses_by_key
        self._use = Use(
            action=asked.action, purpose=asked.purpose, commercial=asked.commercial, vocabulary=words
        )

    def __missing__(self, expression: str) -> Said:
        said = self[expression] = ask(self._licenses, expression, self._use)
        return said


class Hearing:
    """What one question about one snapshot has in common for all experts.

    Args:
        snapshot: the facts.
        asked: the question.

    Attributes:
        understood: whether the question is; where it is not, nothing but ``ground`` may be asked for.
        words: the vocabulary of the snapshot.
        standing: what is to say against consumer and base.
        base_license: what the base's license says.
        ground: what is not understood of the question, or else all that is said about consumer and base.
        use: the use, in words.
        tenant: who asks.
        at_us: for which moment.
        base_digest: on which base.
        may_clash: whether terms of licenses can be in conflict for it.
    """

    words: Vocabulary

    def __init__(self, snapshot: Snapshot, asked: Asked) -> None:
        self.snapshot = snapshot
        self.asked = asked
        self.tenant, self.at_us, self.base_digest = asked.tenant, asked.at_us, asked.base_digest
        self.use = _in_words(asked)
        self.may_clash = may_clash(action=asked.action, commercial=asked.commercial)
        self.standing: tuple[Reason, ...] = ()
        self.base_license = UNLICENSED
        words, self.ground = _understand(snapshot, asked)
        self.understood = words is not None
        if words is not None:
            self.words = words
            self.standing = _stand(snapshot, asked)
            self._sayings = _Sayings(snapshot, asked, words)
            base = _base_of(snapshot, asked)
            self._base_said = () if base is None else (self._sayings[base.expression],)
            self.base_license = UNLICENSED if base is None else self.licensed(base)
            self.ground = (*self.standing, *self.base_license.said.reasons)

    @cached_property
    def dossiers(self) -> Dossiers:
        """What the snapshot says about each expert."""
        return Dossiers(self.snapshot, self.words)

    @cached_property
    def reach(self) -> Reach:
        """What a permit has to say."""
        return Reach(self.asked, self.words)

    @cached_property
    def imprint(self) -> dict[str, Any]:
        """What every decision says of the question and the snapshot, in the order of a decision's fields."""
        snapshot = self.snapshot
        return {
            "at_us": self.asked.at_us,
            "epoch": snapshot.epoch,
            "engine_version": ENGINE_VERSION,
            "snapshot_digest": snapshot.digest,
        }

    @cached_property
    def input_tail(self) -> bytes:
        """How the canonical bytes go on that name this use of this snapshot, after an expert was named."""
        asked = self.asked
        use = [asked.tenant, asked.base_digest, asked.action, asked.purpose, asked.region, asked.commercial]
        return b"," + canonical_bytes({"snapshot": self.snapshot.digest, "use": use})[1:]

    def licensed(self, thing: Licensable) -> Licensed:
        """What the license of one thing says to the use."""
        said = self._sayings[thing.expression]
        return permitted_by(said, thing) if said.permits else denied_by(said, thing, self.use)

    def licenses_of(self, dossier: Dossier) -> Licensed:
        """What the licenses of an expert, of its datasets and of the base say to the use."""
        several = [self._sayings[thing.expression] for thing in dossier.things]
        if all(said.permits for said in (*self._base_said, *several)):
            return dossier.permitted[(self.base_license, *several)]
        return licensed_together([*map(self.licensed, dossier.things), self.base_license])

    def rules_about(self, expert_id: str) -> Heard:
        """What the rules that apply to an expert say."""
        own = self._rules.get(expert_id) if expert_id != ANY else None
        if own is None:
            return self._heard_by_all
        return self._heard([*self._rules.get(ANY, ()), *own])

    @cached_property
    def _rules(self) -> dict[str, list[Spoken]]:
        """By expert, the rules that speak to the question; those for all under ``*``."""
        found: dict[str, list[Spoken]] = {}
        for place, rule in enumerate(self.snapshot.rules):
            if rule.consumer_tenant in {ANY, self.asked.tenant}:
                spoken = self._spoken(place, rule)
                if spoken is not None:
                    found.setdefault(rule.expert_id, []).append(spoken)
        return found

    def _spoken(self, place: int, rule: RuleFact) -> Spoken | None:
        asked, words = self.asked, self.words
        unknown = words.unknown_word(rule.action, rule.purpose, rule.region)
        if unknown is not None:
            return Spoken(place, rule.id, reason("rule_unreadable", rule.id, term=unknown))
        if rule.effect == "permit":
            return Spoken(place, rule.id) if covers(rule, asked, words) else None
        if not hits(rule, asked, words):
            return None
        part = hits_part_only(rule, asked, words)
        text = f": {rule.text}" if rule.text else ""
        denial = reason("rule_forbids_part" if part else "rule_forbids", rule.id, text=text)
        whom = asked.tenant if part else "compliance"
        way_out = miss("rules", whom, f"The rule {rule.id} stands against {self.use}.", rule.id)
        return Spoken(place, rule.id, denial, (way_out,))

    @cached_property
    def _heard_by_all(self) -> Heard:
        return self._heard(self._rules.get(ANY, ()))

    def _heard(self, spoken: Iterable[Spoken]) -> Heard:
        in_place = sorted(spoken, key=lambda one: one.place)
        reasons = [one.denial for one in in_place if one.denial is not None]
        misses = [way_out for one in in_place for way_out in one.misses]
        permitting = [one.rule_id for one in in_place if one.denial is None]
        if permitting:
            reasons.append(reason("rule_permits", min(permitting)))
        else:
            reasons.append(reason("no_permitting_rule"))
            misses.append(miss("rules", "compliance", f"Needs a published rule that permits {self.use}."))
        return Heard(weighed(reasons), tuple(misses))


def _understand(snapshot: Snapshot, asked: Asked) -> tuple[Vocabulary | None, tuple[Reason, ...]]:
    """The vocabulary of the snapshot, if the question can be understood with it; else, what is not."""
    if snapshot.engine_version != ENGINE_VERSION:
        return None, (reason("unknown_engine", version=snapshot.engine_version),)
    try:
        words = vocabulary(snapshot.vocabulary_version)
    except UnknownVocabulary:
        return None, (reason("unknown_vocabulary", version=snapshot.vocabulary_version),)
    not_understood = tuple(
        reason(code, term=term)
        for code, term, known in (
            ("unknown_action", asked.action, asked.action in ACTIONS),
            ("unknown_purpose", asked.purpose, asked.purpose in words.purposes),
            ("unknown_region", asked.region, asked.region in words.regions),
        )
        if not known
    )
    return (None if not_understood else words), not_understood


def _stand(snapshot: Snapshot, asked: Asked) -> tuple[Reason, ...]:
    """What is to say against consumer and base: that they are not known or not active."""
    denials = []
    consumer = snapshot.tenants_by_slug.get(asked.tenant)
    if consumer is None:
        denials.append(reason("unknown_consumer", asked.tenant, tenant=asked.tenant))
    elif consumer.status != "active":
        denials.append(reason("consumer_suspended", asked.tenant, tenant=asked.tenant))
    base = snapshot.bases_by_digest.get(asked.base_digest)
    if base is None:
        denials.append(reason("unknown_base", asked.base_digest, base=asked.base_digest))
    elif base.status != "active":
        denials.append(reason("base_suspended", asked.base_digest, base=base.name))
    return tuple(denials)


def _base_of(snapshot: Snapshot, asked: Asked) -> Licensable | None:
    """The base under its license; None where the snapshot holds no such base."""
    base = snapshot.bases_by_digest.get(asked.base_digest)
    if base is None:
        return None
    return Licensable(Subject(base.base_digest, f"the base {base.name}"), base.license, "platform")


def _in_words(asked: Asked) -> str:
    commercial = "commercial" if asked.commercial else "non-commercial"
    return f"{asked.action} for {asked.purpose} in {asked.region}, {commercial}"
