# SPDX-License-Identifier: Apache-2.0
"""The five gates that an expert has to pass, one function each.

Every gate looks at the facts of its kind and writes findings: reasons for and against, the moment at
which its yes ends, and, for a no, the nearest miss. All gates are always asked, so a denial names
everything that is missing. Knows nothing of other experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from policy.findings import Findings, miss
from policy.hearing import Hearing
from policy.licenses import Subject, joined
from policy.matching import Lapse, chain, hits, hits_part_only, lapse, nearest, not_over
from policy.reasons import reason
from policy.snapshot import ConsentFact, DatasetFact, ExpertFact, GrantFact
from policy.terms import ANY, Gate


def examine(hearing: Hearing, expert: ExpertFact) -> Findings:
    """Sends one expert through all gates."""
    findings = Findings()
    if hearing.words is None:
        findings.join(hearing.ground)
        return findings
    for gate in (_identity, _consent, _grant, _license, _rules):
        gate(hearing, expert, findings)
    return findings


def _identity(hearing: Hearing, expert: ExpertFact, findings: Findings) -> None:
    asked = hearing.asked
    findings.reasons += hearing.standing.reasons
    owner = hearing.snapshot.tenants_by_slug.get(expert.tenant)
    if owner is None:
        findings.say(reason("unknown_owner", expert.tenant, tenant=expert.tenant))
    elif owner.status != "active":
        findings.say(reason("owner_suspended", expert.tenant, tenant=expert.tenant))
    if expert.base_digest != asked.base_digest:
        findings.say(reason("other_base", expert.base_digest, asked.base_digest))
    if expert.state != "listed":
        findings.say(reason("expert_not_listed", expert.expert_id, state=expert.state))
        way_out = f"The owner {expert.tenant} has to list the expert."
        findings.miss(miss("identity", expert.tenant, way_out))
    if not findings.reasons:
        cited = (asked.tenant, expert.tenant, asked.base_digest, expert.expert_id)
        findings.say(reason("identity_holds", *cited))


def _consent(hearing: Hearing, expert: ExpertFact, findings: Findings) -> None:
    permits, forbids = hearing.consents_of(expert)
    if forbids:
        _prohibitions(hearing, forbids, findings)
    _permission(hearing, permits, _Sought(_OF_EXPERT, expert.tenant), findings)
    if not expert.datasets:
        findings.say(reason("lineage_missing", expert.expert_id))
    for dataset in expert.datasets:
        _consent_of_dataset(hearing, expert, dataset, findings)


def _consent_of_dataset(
    hearing: Hearing, expert: ExpertFact, dataset: DatasetFact, findings: Findings
) -> None:
    said = [
        consent
        for consent in hearing.snapshot.consents_by_dataset.get(dataset.id, ())
        if consent.tenant == dataset.tenant and consent.expert_id in {ANY, expert.expert_id}
    ]
    _prohibitions(hearing, [one for one in said if one.effect != "permit"], findings)
    if dataset.consent == "withdrawn":
        findings.say(reason("dataset_consent_withdrawn", dataset.id, dataset=dataset.id))
    elif dataset.consent == "separate":
        permits = [one for one in said if one.effect == "permit"]
        _permission(hearing, permits, _Sought(_OF_DATASET, dataset.tenant, dataset.id), findings)
    elif dataset.tenant != expert.tenant:
        findings.say(reason("dataset_owner_differs", dataset.id, dataset=dataset.id))


def _prohibitions(hearing: Hearing, said: Sequence[ConsentFact], findings: Findings) -> None:
    """One owner's prohibitions: those that hit now, and when others begin to."""
    asked, words = hearing.asked, hearing.words
    for consent in said:
        if consent.state != "given" or words is None:
            continue
        aimed = consent.recipient in {ANY, asked.tenant}
        unknown = words.unknown_word(consent.action, consent.purpose, consent.region)
        if (
            not aimed
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
            findings.miss(miss("consent", asked.tenant, leave_out, consent.id))
        else:
            findings.say(reason("consent_forbids", consent.id, tenant=consent.tenant))
            lift = f"{consent.tenant} would have to lift the prohibition {consent.id}."
            findings.miss(miss("consent", consent.tenant, lift, consent.id))


class _Codes(NamedTuple):
    """How a gate speaks about permits: of a yes, of a no by how the nearest one lapsed, and of the need."""

    gate: Gate
    yes: str
    no: Mapping[Lapse | None, str]
    need: str


class _Sought(NamedTuple):
    """Whose permit is looked for, and for which dataset if for one."""

    codes: _Codes
    owner: str
    dataset: str | None = None


_OF_EXPERT: Final = _Codes(
    gate="consent",
    yes="consent_permits",
    no={
        None: "no_consent",
        "state": "consent_withdrawn",
        "expired": "consent_expired",
        "not_yet": "consent_not_yet",
    },
    need="Needs consent of {owner}: {use}, by {consumer}.",
)
_OF_DATASET: Final = _Codes(
    gate="consent",
    yes="dataset_consent_permits",
    no={
        None: "no_dataset_consent",
        "state": "dataset_consent_withdrawn",
        "expired": "dataset_consent_expired",
        "not_yet": "dataset_consent_not_yet",
    },
    need="Needs consent of {owner} for {dataset}: {use} by {consumer}",
)
_OF_GRANT: Final = _Codes(
    gate="grant",
    yes="grant_permits",
    no={
        None: "no_grant",
        "state": "grant_revoked",
        "expired": "grant_expired",
        "not_yet": "grant_not_yet",
    },
    need="Needs a grant of {owner} to {consumer}: {use}.",
)


def _permission(
    hearing: Hearing,
    permits: Sequence[ConsentFact] | Sequence[GrantFact],
    sought: _Sought,
    findings: Findings,
) -> None:
    """Looks for permits that cover the use now, and says until when, or how the nearest one misses."""
    (codes, owner, dataset), asked = sought, hearing.asked
    links, ends_us = chain(hearing.reach.covering(permits), asked.at_us)
    words = {"tenant": owner, "consumer": asked.tenant, "dataset": dataset}
    always = () if dataset is None else (dataset,)
    if links:
        findings.say(reason(codes.yes, *[link.id for link in links], *always, **words))
        findings.until(ends_us)
        return
    near, misses = nearest(permits, hearing.reach)
    how = lapse(misses) if near else None
    cited = (near.id, *always) if near and how else always
    findings.say(reason(codes.no[how], *cited, **words))
    need = codes.need.format(owner=owner, dataset=dataset, use=hearing.use, consumer=asked.tenant)
    findings.miss(miss(codes.gate, owner, need, near.id if near else None, *misses))


def _grant(hearing: Hearing, expert: ExpertFact, findings: Findings) -> None:
    _permission(hearing, hearing.grants_of(expert), _Sought(_OF_GRANT, expert.tenant), findings)


def _license(hearing: Hearing, expert: ExpertFact, findings: Findings) -> None:
    own = Subject(expert.expert_id, expert.name)
    hearing.ask_license(own, expert.license, expert.tenant, findings)
    for dataset in expert.datasets:
        subject = Subject(dataset.id, f"the dataset {dataset.id}")
        hearing.ask_license(subject, dataset.license, dataset.tenant, findings)
    findings.join(hearing.base_license)
    if not findings.burdens:
        return
    terms, asked = joined(findings.burdens), hearing.asked
    conflict = terms.conflict(action=asked.action, commercial=asked.commercial)
    if conflict == "share_alike":
        groups = " and ".join(sorted(terms.share_alike))
        findings.say(reason("share_alike_conflict", expert.expert_id, groups=groups))
    elif conflict == "royalty":
        findings.say(reason("royalty_overflow", expert.expert_id, total=terms.royalty_ppm()))


def _rules(hearing: Hearing, expert: ExpertFact, findings: Findings) -> None:
    heard = hearing.rules_about(expert.expert_id)
    findings.reasons += heard.reasons
    findings.miss(*heard.misses)
