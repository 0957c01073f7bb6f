# SPDX-License-Identifier: Apache-2.0
"""The five gates that an expert has to pass, one function each.

Every gate looks at the facts of its kind and writes findings: reasons for and against, the moment at
which its yes ends, and, for a no, the nearest miss. All gates are always asked, so a denial names
everything that is missing. Knows nothing of other experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from policy.errors import UnknownVocabulary
from policy.licenses import NO_TERMS, Subject, Terms, Use, evaluate
from policy.matching import (
    FOREVER_US,
    Lapse,
    chain,
    covers,
    hits,
    hits_part_only,
    lapse,
    nearest,
    not_over,
    shortfall,
)
from policy.questions import Asked, LicenseChoice
from policy.reasons import NearestMiss, Reason, reason
from policy.snapshot import ConsentFact, DatasetFact, ExpertFact, GrantFact, Snapshot
from policy.terms import ACTIONS, ANY, ENGINE_VERSION, Gate
from policy.vocabulary import Vocabulary, vocabulary


@dataclass(kw_only=True, slots=True)
class Findings:
    """What the gates wrote down about one expert; ``ends_us`` is the end of the yes, exclusive."""

    reasons: list[Reason] = field(default_factory=list)
    misses: list[NearestMiss] = field(default_factory=list)
    choices: list[LicenseChoice] = field(default_factory=list)
    terms: Terms = NO_TERMS
    ends_us: int = FOREVER_US

    def say(self, one: Reason) -> None:
        """Adds a reason."""
        self.reasons.append(one)

    def until(self, at_us: int) -> None:
        """Ends the yes at this moment at the latest."""
        self.ends_us = min(self.ends_us, at_us)

    def miss(self, gate: Gate, ask: str, sentence: str, fact_id: str | None = None, *differs: str) -> None:
        """Adds what would open a gate."""
        miss = NearestMiss(gate=gate, ask=ask, sentence=sentence, fact_id=fact_id, differs=differs)
        if miss not in self.misses:
            self.misses.append(miss)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One expert before the gates, with all that they may look at and the findings they write to."""

    snapshot: Snapshot
    asked: Asked
    expert: ExpertFact
    words: Vocabulary
    findings: Findings


def examine(snapshot: Snapshot, asked: Asked, expert: ExpertFact) -> Findings:
    """Sends one expert through all gates."""
    findings = Findings()
    words = understand(snapshot, asked, findings)
    if words is None:
        return findings
    case = Case(snapshot=snapshot, asked=asked, expert=expert, words=words, findings=findings)
    for gate in (_identity, _consent, _grant, _license, _rules):
        gate(case)
    return findings


def understand(snapshot: Snapshot, asked: Asked, findings: Findings) -> Vocabulary | None:
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


def stand(snapshot: Snapshot, asked: Asked, findings: Findings) -> None:
    """Whether consumer and base are known and active; this part is the same for every expert."""
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


def license_of_base(snapshot: Snapshot, asked: Asked, words: Vocabulary, findings: Findings) -> None:
    """Whether the base's license permits the use (an unknown base was said by ``stand``)."""
    base = snapshot.bases_by_digest.get(asked.base_digest)
    if base is not None:
        _ask_license(
            snapshot,
            asked,
            words,
            _Licensed(Subject(base.base_digest, f"the base {base.name}"), base.license, "platform"),
            findings,
        )


def _identity(case: Case) -> None:
    snapshot, asked, expert, findings = case.snapshot, case.asked, case.expert, case.findings
    before = len(findings.reasons)
    stand(snapshot, asked, findings)
    owner = snapshot.tenants_by_slug.get(expert.tenant)
    if owner is None:
        findings.say(reason("unknown_owner", expert.tenant, tenant=expert.tenant))
    elif owner.status != "active":
        findings.say(reason("owner_suspended", expert.tenant, tenant=expert.tenant))
    if expert.base_digest != asked.base_digest:
        findings.say(reason("other_base", expert.base_digest, asked.base_digest))
    if expert.state != "listed":
        findings.say(reason("expert_not_listed", expert.expert_id, state=expert.state))
        findings.miss("identity", expert.tenant, f"The owner {expert.tenant} has to list the expert.")
    if len(findings.reasons) == before:
        cited = (asked.tenant, expert.tenant, asked.base_digest, expert.expert_id)
        findings.say(reason("identity_holds", *cited))


def _consent(case: Case) -> None:
    snapshot, expert, findings = case.snapshot, case.expert, case.findings
    by_expert = snapshot.consents_by_expert
    said = [*by_expert.get(expert.expert_id, ()), *by_expert.get(ANY, ())]
    said = [consent for consent in said if consent.tenant == expert.tenant]
    _prohibitions(case, said)
    _permission(case, [c for c in said if c.effect == "permit"], _about_expert(case))
    if not expert.datasets:
        findings.say(reason("lineage_missing", expert.expert_id))
    for dataset in expert.datasets:
        said = [
            consent
            for consent in snapshot.consents_by_dataset.get(dataset.id, ())
            if consent.tenant == dataset.tenant and consent.expert_id in (ANY, expert.expert_id)
        ]
        _prohibitions(case, said)
        if dataset.consent == "withdrawn":
            findings.say(reason("dataset_consent_withdrawn", dataset.id, dataset=dataset.id))
        elif dataset.consent == "separate":
            _permission(case, [c for c in said if c.effect == "permit"], _about_dataset(case, dataset))
        elif dataset.tenant != expert.tenant:
            findings.say(reason("dataset_owner_differs", dataset.id, dataset=dataset.id))


def _prohibitions(case: Case, said: Sequence[ConsentFact]) -> None:
    """One owner's prohibitions: those that hit now, and when others begin to."""
    asked, words, findings = case.asked, case.words, case.findings
    for consent in said:
        aimed = consent.recipient in (ANY, asked.tenant)
        unknown = words.unknown_word(consent.action, consent.purpose, consent.region)
        if (
            consent.effect == "permit"
            or consent.state != "given"
            or not aimed
            or not not_over(consent, asked.at_us)
            or (unknown is None and not hits(consent, asked, words))
        ):
            continue
        if consent.valid_from_us > asked.at_us:
            findings.until(consent.valid_from_us)
        elif unknown is not None:
            findings.say(reason("consent_unreadable", consent.id, tenant=consent.tenant, term=unknown))
        elif hits_part_only(consent, asked, words):
            findings.say(reason("consent_forbids_part", consent.id, tenant=consent.tenant))
            leave_out = f"Narrow the use so that it leaves out {consent.purpose} in {consent.region}."
            findings.miss("consent", asked.tenant, leave_out, consent.id)
        else:
            findings.say(reason("consent_forbids", consent.id, tenant=consent.tenant))
            lift = f"{consent.tenant} would have to lift the prohibition {consent.id}."
            findings.miss("consent", consent.tenant, lift, consent.id)


class _Permission(NamedTuple):
    """How a gate speaks about the permits that it looks for; codes by how the nearest one lapsed."""

    gate: Gate
    owner: str
    yes: str
    no: Mapping[Lapse | None, str]
    need: str
    always_cited: tuple[str, ...] = ()
    dataset: str = ""


def _permission(case: Case, permits: Sequence[ConsentFact] | Sequence[GrantFact], about: _Permission) -> None:
    """Looks for permits that cover the use now, and says until when, or how the nearest one misses."""
    asked, findings = case.asked, case.findings
    misses = {permit.id: shortfall(permit, asked, case.words) for permit in permits}
    covering = [permit for permit in permits if not misses[permit.id] - {"not_yet", "expired"}]
    links, ends_us = chain(covering, asked.at_us)
    words = {"tenant": about.owner, "consumer": asked.tenant, "dataset": about.dataset}
    if links:
        findings.say(reason(about.yes, *(link.id for link in links), *about.always_cited, **words))
        findings.until(ends_us)
        return
    near = nearest(permits, misses)
    how = lapse(misses[near.id]) if near else None
    cited = (near.id, *about.always_cited) if near and how else about.always_cited
    findings.say(reason(about.no[how], *cited, **words))
    differs = sorted(misses[near.id]) if near else ()
    findings.miss(about.gate, about.owner, about.need, near.id if near else None, *differs)


def _about_expert(case: Case) -> _Permission:
    return _Permission(
        gate="consent",
        owner=case.expert.tenant,
        yes="consent_permits",
        no={
            None: "no_consent",
            "state": "consent_withdrawn",
            "expired": "consent_expired",
            "not_yet": "consent_not_yet",
        },
        need=f"Needs consent of {case.expert.tenant}: {_use(case.asked)}, by {case.asked.tenant}.",
    )


def _about_dataset(case: Case, dataset: DatasetFact) -> _Permission:
    return _Permission(
        gate="consent",
        owner=dataset.tenant,
        yes="dataset_consent_permits",
        no={
            None: "no_dataset_consent",
            "state": "dataset_consent_withdrawn",
            "expired": "dataset_consent_expired",
            "not_yet": "dataset_consent_not_yet",
        },
        need=f"Needs consent of {dataset.tenant} for {dataset.id}: {_use(case.asked)} by {case.asked.tenant}",
        always_cited=(dataset.id,),
        dataset=dataset.id,
    )


def _grant(case: Case) -> None:
    owner, by_expert = case.expert.tenant, case.snapshot.grants_by_expert
    given = [*by_expert.get(case.expert.expert_id, ()), *by_expert.get(ANY, ())]
    about = _Permission(
        gate="grant",
        owner=owner,
        yes="grant_permits",
        no={
            None: "no_grant",
            "state": "grant_revoked",
            "expired": "grant_expired",
            "not_yet": "grant_not_yet",
        },
        need=f"Needs a grant of {owner} to {case.asked.tenant}: {_use(case.asked)}.",
    )
    _permission(case, [grant for grant in given if grant.tenant == owner], about)


def _license(case: Case) -> None:
    asked, expert, findings = case.asked, case.expert, case.findings
    subjects = [_Licensed(Subject(expert.expert_id, expert.name), expert.license, expert.tenant)]
    subjects += [
        _Licensed(Subject(dataset.id, f"the dataset {dataset.id}"), dataset.license, dataset.tenant)
        for dataset in expert.datasets
    ]
    for subject in subjects:
        _ask_license(case.snapshot, asked, case.words, subject, findings)
    license_of_base(case.snapshot, asked, case.words, findings)
    conflict = findings.terms.conflict(action=asked.action, commercial=asked.commercial)
    if conflict == "share_alike":
        groups = " and ".join(sorted(findings.terms.share_alike))
        findings.say(reason("share_alike_conflict", expert.expert_id, groups=groups))
    elif conflict == "royalty":
        findings.say(reason("royalty_overflow", expert.expert_id, total=findings.terms.royalty_ppm()))


class _Licensed(NamedTuple):
    """What is licensed, how, and by whom."""

    subject: Subject
    expression: str
    owner: str


def _ask_license(
    snapshot: Snapshot, asked: Asked, words: Vocabulary, licensed: _Licensed, findings: Findings
) -> None:
    subject, expression, owner = licensed
    use = Use(action=asked.action, purpose=asked.purpose, commercial=asked.commercial, vocabulary=words)
    answer = evaluate(snapshot.licenses_by_key, subject, expression, use)
    for denial in answer.denials:
        findings.say(denial)
    if answer.permits:
        chosen = " AND ".join(answer.chosen)
        findings.say(
            reason("license_permits", subject.id, *answer.chosen, subject=subject.name, chosen=chosen)
        )
        findings.choices.append(
            LicenseChoice(subject=subject.id, expression=expression, chosen=answer.chosen)
        )
        findings.terms = findings.terms.join(answer.terms)
    else:
        need = f"{subject.name} needs other or reviewed terms instead of {expression}: {_use(asked)}."
        findings.miss("license", owner, need, subject.id)


def _rules(case: Case) -> None:
    asked, words, findings = case.asked, case.words, case.findings
    permitting: list[str] = []
    for rule in case.snapshot.rules:
        if rule.expert_id not in (ANY, case.expert.expert_id) or rule.consumer_tenant not in (
            ANY,
            asked.tenant,
        ):
            continue
        unknown = words.unknown_word(rule.action, rule.purpose, rule.region)
        if unknown is not None:
            findings.say(reason("rule_unreadable", rule.id, term=unknown))
        elif rule.effect == "permit":
            if covers(rule, asked, words):
                permitting.append(rule.id)
        elif hits(rule, asked, words):
            part = hits_part_only(rule, asked, words)
            text = f": {rule.text}" if rule.text else ""
            findings.say(reason("rule_forbids_part" if part else "rule_forbids", rule.id, text=text))
            ask = asked.tenant if part else "compliance"
            findings.miss("rules", ask, f"The rule {rule.id} stands against {_use(asked)}.", rule.id)
    if permitting:
        findings.say(reason("rule_permits", min(permitting)))
    else:
        findings.say(reason("no_permitting_rule"))
        findings.miss("rules", "compliance", f"Needs a published rule that permits {_use(asked)}.")


def _use(asked: Asked) -> str:
    commercial = "commercial" if asked.commercial else "non-commercial"
    return f"{asked.action} for {asked.purpose} in {asked.region}, {commercial}"
