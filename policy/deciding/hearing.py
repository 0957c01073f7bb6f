# SPDX-License-Identifier: Apache-2.0
"""One question about many experts: what is the same for all of them is found out once.

Whether the question is understood, whether consumer and base stand, what the base's license and every other
license expression say, which rules speak and how far each permit reaches: none of it depends on the expert
that is asked about. A hearing belongs to one question about one snapshot and is forgotten with it. It
decides about no expert.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from model_core.packing.canonical import canonical_bytes
from policy.deciding.findings import Findings, miss
from policy.deciding.licenses import Said, Subject, Use, ask, may_clash
from policy.deciding.matching import Reach, covers, hits, hits_part_only
from policy.deciding.questions import Asked
from policy.deciding.reasons import NearestMiss, Reason, reason
from policy.errors import UnknownVocabulary
from policy.facts.snapshot import ConsentFact, ExpertFact, GrantFact, RuleFact, Snapshot
from policy.facts.terms import ACTIONS, ANY, ENGINE_VERSION
from policy.facts.vocabulary import Vocabulary, vocabulary


class Consents(NamedTuple):
    """What one owner says: permits and prohibitions."""

    permits: list[ConsentFact]
    forbids: list[ConsentFact]


class Spoken(NamedTuple):
    """What one rule says to the question: it permits, or denies for a reason."""

    place: int
    rule_id: str
    denial: Reason | None = None
    misses: tuple[NearestMiss, ...] = ()


class Heard(NamedTuple):
    """What all rules together say to the question."""

    reasons: tuple[Reason, ...]
    misses: tuple[NearestMiss, ...]


class Hearing:
    """What one question about one snapshot has in common for all experts.

    Args:
        snapshot: the facts.
        asked: the question.

    Attributes:
        ground: whether the question is understood, and then whether consumer and base stand and the base's
            license permits.
        words: the vocabulary of the snapshot; None where the question is not understood with it.
        standing: what of ``ground`` is about consumer and base.
        base_license: what of it is about the base's license.
        base_said: what the base's license says; None where there is no such base.
        use: the use, in words.
        tenant: who asks.
        at_us: for which moment.
        base_digest: on which base.
        tenants: of the snapshot, by slug.
        by_expert: consents of the snapshot.
        by_dataset: the same about datasets.
        granted: grants of the snapshot.
        may_clash: whether terms of licenses can be in conflict for it.
    """

    def __init__(self, snapshot: Snapshot, asked: Asked) -> None:
        self.snapshot = snapshot
        self.asked = asked
        # Fields of models cost more to read than all that is done with them, so they are read once.
        self.tenant, self.at_us, self.base_digest = asked.tenant, asked.at_us, asked.base_digest
        self.tenants, self.by_expert = snapshot.tenants_by_slug, snapshot.consents_by_expert
        self.by_dataset, self.granted = snapshot.consents_by_dataset, snapshot.grants_by_expert
        self._needs: dict[tuple[str, str, str | None], str] = {}
        self.use = _in_words(asked)
        self.may_clash = may_clash(action=asked.action, commercial=asked.commercial)
        self.standing, self.base_license = Findings(), Findings()
        self.ground = Findings()
        self._licenses: dict[str, Said] = {}
        self.base_said: Said | None = None
        self.words = _understand(snapshot, asked, self.ground)
        if self.words is not None:
            _stand(snapshot, asked, self.standing)
            base = snapshot.bases_by_digest.get(asked.base_digest)
            if base is not None:
                subject = Subject(base.base_digest, f"the base {base.name}")
                self.base_said = self.said_of(base.license)
                self.ask_license(subject, base.license, "platform", self.base_license)
            self.ground.join(self.standing)
            self.ground.join(self.base_license)

    @cached_property
    def reach(self) -> Reach:
        """What a permit has to say."""
        return Reach(self.asked, self._words)

    def consents_of(self, expert: ExpertFact) -> Consents:
        """What an owner says about one expert, and about all of its experts."""
        about = vars(expert)
        tenant = about["tenant"]
        for_all = self._consents_for_all.get(tenant)
        permits, forbids = ([], []) if for_all is None else (for_all.permits[:], for_all.forbids[:])
        for one in self.by_expert.get(about["expert_id"], ()):
            said = vars(one)
            if said["tenant"] == tenant:
                (permits if said["effect"] == "permit" else forbids).append(one)
        return Consents(permits, forbids)

    def grants_of(self, expert: ExpertFact) -> list[GrantFact]:
        """The grants of an owner for one expert, and for all of its experts."""
        about = vars(expert)
        tenant = about["tenant"]
        of_expert = self.granted.get(about["expert_id"], ())
        given = [one for one in of_expert if vars(one)["tenant"] == tenant]
        given += self._grants_for_all.get(tenant, ())
        return given

    def need(self, gate: str, sentence: str, owner: str, dataset: str | None) -> str:
        """What is needed from an owner, said once for all of its experts."""
        key = gate, owner, dataset
        said = self._needs.get(key)
        if said is None:
            said = sentence.format(owner=owner, dataset=dataset, use=self.use, consumer=self.tenant)
            self._needs[key] = said
        return said

    @cached_property
    def _consents_for_all(self) -> dict[str, Consents]:
        found: dict[str, Consents] = {}
        for one in self.snapshot.consents_by_expert.get(ANY, ()):
            said = found.setdefault(one.tenant, Consents([], []))
            (said.permits if one.effect == "permit" else said.forbids).append(one)
        return found

    @cached_property
    def _grants_for_all(self) -> dict[str, list[GrantFact]]:
        found: dict[str, list[GrantFact]] = {}
        for one in self.snapshot.grants_by_expert.get(ANY, ()):
            found.setdefault(one.tenant, []).append(one)
        return found

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

    def said_of(self, expression: str) -> Said:
        """What a license expression says to the use."""
        said = self._licenses.get(expression)
        if said is None:
            asked = self.asked
            use = Use(
                action=asked.action,
                purpose=asked.purpose,
                commercial=asked.commercial,
                vocabulary=self._words,
            )
            said = self._licenses[expression] = ask(self.snapshot.licenses_by_key, expression, use)
        return said

    @cached_property
    def permitted(self) -> dict[tuple[object, ...], Findings]:
        """What licenses that all permit leave behind, by expert and by what each of them said."""
        return _permitted_in(self.snapshot.digest)

    def ask_license(self, subject: Subject, expression: str, owner: str, findings: Findings) -> None:
        """Asks the license of one thing and writes down what it says."""
        said = self.said_of(expression)
        if said.permits:
            findings.license(said, subject, expression)
            return
        findings.reasons += said.denials_of(subject)
        need = f"{subject.name} needs other or reviewed terms instead of {expression}: {self.use}."
        findings.miss(miss("license", owner, need, subject.id))

    def rules_about(self, expert_id: str) -> Heard:
        """What the rules that apply to an expert say."""
        own = self._rules.get(expert_id) if expert_id != ANY else None
        if own is None:
            return self._heard_by_all
        return self._heard([*self._rules.get(ANY, ()), *own])

    @cached_property
    def _words(self) -> Vocabulary:
        return self.words or vocabulary(self.snapshot.vocabulary_version)

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
        asked, words = self.asked, self._words
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
        return Heard(tuple(reasons), tuple(misses))


def _understand(snapshot: Snapshot, asked: Asked, findings: Findings) -> Vocabulary | None:
    """The vocabulary of the snapshot, if the question can be understood with it."""
    if snapshot.engine_version != ENGINE_VERSION:
        findings.say(reason("unknown_engine", version=snapshot.engine_version))
        return None
    try:
        words = vocabulary(snapshot.vocabulary_version)
    except UnknownVocabulary:
        findings.say(reason("unknown_vocabulary", version=snapshot.vocabulary_version))
        return None
    for code, term, known in (
        ("unknown_action", asked.action, asked.action in ACTIONS),
        ("unknown_purpose", asked.purpose, asked.purpose in words.purposes),
        ("unknown_region", asked.region, asked.region in words.regions),
    ):
        if not known:
            findings.say(reason(code, term=term))
    return None if findings.reasons else words


def _stand(snapshot: Snapshot, asked: Asked, findings: Findings) -> None:
    """Whether consumer and base are known and active."""
    consumer = snapshot.tenants_by_slug.get(asked.tenant)
    if consumer is None:
        findings.say(reason("unknown_consumer", asked.tenant, tenant=asked.tenant))
    elif consumer.status != "active":
        findings.say(reason("consumer_suspended", asked.tenant, tenant=asked.tenant))
    base = snapshot.bases_by_digest.get(asked.base_digest)
    if base is None:
        findings.say(reason("unknown_base", asked.base_digest, base=asked.base_digest))
    elif base.status != "active":
        findings.say(reason("base_suspended", asked.base_digest, base=base.name))


@lru_cache(maxsize=8)
def _permitted_in(_snapshot_digest: str) -> dict[tuple[object, ...], Findings]:
    """For the facts of one snapshot, which its digest names; filled by the gates."""
    return {}


def _in_words(asked: Asked) -> str:
    commercial = "commercial" if asked.commercial else "non-commercial"
    return f"{asked.action} for {asked.purpose} in {asked.region}, {commercial}"
