# SPDX-License-Identifier: Apache-2.0
"""The five gates that an expert has to pass, one function each.

Every gate looks at the facts of its kind and writes findings: reasons for and against, the moment at
which its yes ends, and, for a no, the nearest miss. All gates are always asked, so a denial names
everything that is missing. Knows nothing of other experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from policy.deciding.dossiers import Dossier
from policy.deciding.findings import Findings, miss
from policy.deciding.hearing import Hearing
from policy.deciding.matching import Lapse, Permit, chain, hits, hits_part_only, nearest, not_over
from policy.deciding.reasons import Reason, Weighed, alone, reason, weighed
from policy.facts.snapshot import ConsentFact
from policy.facts.terms import ANY, Gate


def examine(hearing: Hearing, dossier: Dossier) -> tuple[tuple[Reason, ...], int, Findings]:
    """Sends one expert through all gates.

    Returns:
        their reasons, in order; the place of the outcome (see ``Weighed``); and what else they found.
    """
    findings = Findings()
    identity, worst_identity = _identity(hearing, dossier, findings)
    consent, worst_consent = _consent(hearing, dossier, findings)
    grant, worst_grant = _grant(hearing, dossier, findings)
    license_, worst_license = _license(hearing, dossier, findings)
    rules, worst_rules = _rules(hearing, dossier, findings)
    worst = min(worst_identity, worst_consent, worst_grant, worst_license, worst_rules)
    return identity + consent + grant + license_ + rules, worst, findings


def _identity(hearing: Hearing, dossier: Dossier, findings: Findings) -> Weighed:
    expert = dossier.expert
    base_digest = expert.base_digest
    other_base = base_digest != hearing.base_digest
    if not (hearing.standing or dossier.denials or other_base):
        return alone("identity_holds", hearing.tenant, expert.tenant, base_digest, expert.expert_id)
    findings.misses += dossier.misses
    elsewhere = [reason("other_base", base_digest, hearing.base_digest)] if other_base else []
    return weighed([*hearing.standing, *dossier.denials, *elsewhere])


def _consent(hearing: Hearing, dossier: Dossier, findings: Findings) -> Weighed:
    expert, (permits, forbids) = dossier.expert, dossier.consents
    said = _permission(hearing, permits, _OF_EXPERT, expert.tenant, expert.tenant, findings)
    more = _prohibitions(hearing, forbids, findings)
    if not dossier.lineage:
        more.append(reason("lineage_missing", expert.expert_id))
    for dataset in dossier.lineage:
        permits, forbids = dataset.consents
        more += _prohibitions(hearing, forbids, findings)
        if dataset.denial is not None:
            more.append(dataset.denial)
        if dataset.separate:
            of_dataset = _permission(
                hearing, permits, _OF_DATASET, dataset.owner, dataset.id, findings, dataset.id
            )
            more += of_dataset.reasons
    return weighed([*said.reasons, *more]) if more else said


def _prohibitions(hearing: Hearing, said: Sequence[ConsentFact], findings: Findings) -> list[Reason]:
    """One owner's prohibitions: those that hit now, and when others begin to."""
    asked, words = hearing.asked, hearing.words
    found: list[Reason] = []
    for consent in said:
        if consent.state != "given":
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
            findings.ends_us = min(findings.ends_us, consent.valid_from_us)
        elif unknown is not None:
            found.append(reason("consent_unreadable", consent.id, tenant=consent.tenant, term=unknown))
        elif hits_part_only(consent, asked, words):
            found.append(reason("consent_forbids_part", consent.id, tenant=consent.tenant))
            leave_out = f"Narrow the use so that it leaves out {consent.purpose} in {consent.region}."
            findings.misses.append(miss("consent", asked.tenant, leave_out, consent.id))
        else:
            found.append(reason("consent_forbids", consent.id, tenant=consent.tenant))
            lift = f"{consent.tenant} would have to lift the prohibition {consent.id}."
            findings.misses.append(miss("consent", consent.tenant, lift, consent.id))
    return found


class _Codes(NamedTuple):
    """How a gate speaks about permits.

    Attributes:
        gate: which.
        yes: the code of a yes.
        no: the code of a no, by how the nearest permit lapsed.
        names: what the sentences of these codes name.
        need: what is needed after a no.
    """

    gate: Gate
    yes: str
    no: Mapping[Lapse | None, str]
    names: Literal["tenant", "dataset", "consumer"]
    need: str


_OF_EXPERT: Final = _Codes(
    gate="consent",
    yes="consent_permits",
    no={
        None: "no_consent",
        "state": "consent_withdrawn",
        "expired": "consent_expired",
        "not_yet": "consent_not_yet",
    },
    names="tenant",
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
    names="dataset",
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
    names="consumer",
    need="Needs a grant of {owner} to {consumer}: {use}.",
)


def _permission(
    hearing: Hearing,
    permits: Sequence[Permit],
    codes: _Codes,
    owner: str,
    named: str,
    findings: Findings,
    *always: str,
) -> Weighed:
    """Looks for an owner's permits that cover the use now.

    Says until when they do, or how the nearest one misses.

    Args:
        hearing: of the question.
        permits: of the owner, for one thing.
        codes: how the gate speaks about them.
        owner: whose they are.
        named: what the sentence names.
        findings: gets the end of a yes or what is missing.
        always: what is cited, yes or no.
    """
    reach = hearing.reach
    links, ends_us = chain([one for one in permits if not reach[one[0]]], hearing.at_us)
    if links:
        findings.ends_us = min(findings.ends_us, ends_us)
        return _about_permits(codes.yes, codes.names, named, *links, *always)
    near, (_, fields, lapse) = nearest(permits, reach)
    need = _need(codes.need, owner, named, hearing.use, hearing.tenant)
    findings.misses.append(miss(codes.gate, owner, need, near, fields))
    cited = always if near is None or lapse is None else (near, *always)
    return _about_permits(codes.no[lapse], codes.names, named, *cited)


@lru_cache(maxsize=8_192)
def _need(sentence: str, owner: str, named: str, use: str, consumer: str) -> str:
    return sentence.format(owner=owner, dataset=named, use=use, consumer=consumer)


@lru_cache(maxsize=32_768)
def _about_permits(code: str, names: str, named: str, *cited: str) -> Weighed:
    return alone(code, *cited, **{names: named})


def _grant(hearing: Hearing, dossier: Dossier, findings: Findings) -> Weighed:
    owner = dossier.expert.tenant
    return _permission(hearing, dossier.grants, _OF_GRANT, owner, hearing.tenant, findings)


def _license(hearing: Hearing, dossier: Dossier, findings: Findings) -> Weighed:
    found = findings.licensed = hearing.licenses_of(dossier)
    findings.misses += found.misses
    terms, asked, expert_id = found.terms, hearing.asked, dossier.expert.expert_id
    conflict = terms.conflict(action=asked.action, commercial=asked.commercial)
    if conflict == "share_alike":
        groups = " and ".join(sorted(terms.share_alike))
        return weighed([*found.said.reasons, reason("share_alike_conflict", expert_id, groups=groups)])
    if conflict == "royalty":
        total = terms.royalty_ppm()
        return weighed([*found.said.reasons, reason("royalty_overflow", expert_id, total=total)])
    return found.said


def _rules(hearing: Hearing, dossier: Dossier, findings: Findings) -> Weighed:
    said, misses = hearing.rules_about(dossier.expert.expert_id)
    findings.misses += misses
    return said
