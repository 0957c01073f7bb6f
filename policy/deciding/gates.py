# SPDX-License-Identifier: Apache-2.0
"""The five gates that an expert has to pass, one function each.

Every gate looks at the facts of its kind and writes findings: reasons for and against, the moment at
which its yes ends, and, for a no, the nearest miss. All gates are always asked, so a denial names
everything that is missing. Knows nothing of other experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from policy.deciding.findings import Findings, miss
from policy.deciding.hearing import Hearing
from policy.deciding.licenses import Subject
from policy.deciding.matching import Lapse, chain, hits, hits_part_only, lapse, nearest, not_over
from policy.deciding.reasons import in_order, obligations_in_order, reason
from policy.facts.snapshot import ConsentFact, DatasetFact, ExpertFact, GrantFact
from policy.facts.terms import ANY, Gate


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
    said = vars(expert)
    tenant, base_digest, expert_id, state = (
        said["tenant"],
        said["base_digest"],
        said["expert_id"],
        said["state"],
    )
    findings.reasons += hearing.standing.reasons
    owner = hearing.tenants.get(tenant)
    if owner is None:
        findings.say(reason("unknown_owner", tenant, tenant=tenant))
    elif owner.status != "active":
        findings.say(reason("owner_suspended", tenant, tenant=tenant))
    if base_digest != hearing.base_digest:
        findings.say(reason("other_base", base_digest, hearing.base_digest))
    if state != "listed":
        findings.say(reason("expert_not_listed", expert_id, state=state))
        findings.miss(miss("identity", tenant, f"The owner {tenant} has to list the expert."))
    if not findings.reasons:
        findings.say(reason("identity_holds", hearing.tenant, tenant, base_digest, expert_id))


def _consent(hearing: Hearing, expert: ExpertFact, findings: Findings) -> None:
    permits, forbids = hearing.consents_of(expert)
    _prohibitions(hearing, forbids, findings)
    about = vars(expert)
    _permission(hearing, permits, _OF_EXPERT, about["tenant"], None, findings)
    if not about["datasets"]:
        findings.say(reason("lineage_missing", expert.expert_id))
    for dataset in about["datasets"]:
        _consent_of_dataset(hearing, expert, dataset, findings)


def _consent_of_dataset(
    hearing: Hearing, expert: ExpertFact, dataset: DatasetFact, findings: Findings
) -> None:
    about = vars(dataset)
    id_, tenant, speaks = about["id"], about["tenant"], about["consent"]
    heard = hearing.by_dataset.get(id_, ())
    if heard:
        among = {ANY, expert.expert_id}
        heard = tuple(one for one in heard if one.tenant == tenant and one.expert_id in among)
        _prohibitions(hearing, [one for one in heard if one.effect != "permit"], findings)
    if speaks == "withdrawn":
        findings.say(reason("dataset_consent_withdrawn", id_, dataset=id_))
    elif speaks == "separate":
        permits = [one for one in heard if one.effect == "permit"]
        _permission(hearing, permits, _OF_DATASET, tenant, id_, findings)
    elif tenant != expert.tenant:
        findings.say(reason("dataset_owner_differs", id_, dataset=id_))


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
    codes: _Codes,
    owner: str,
    dataset: str | None,
    findings: Findings,
) -> None:
    """Looks for an owner's permits that cover the use now, for one dataset if for one.

    Says until when they do, or how the nearest one misses.
    """
    links, ends_us = chain(hearing.reach.covering(permits), hearing.at_us)
    words = {"tenant": owner, "consumer": hearing.tenant, "dataset": dataset}
    always = () if dataset is None else (dataset,)
    if links:
        findings.say(reason(codes.yes, *[link.id for link in links], *always, **words))
        findings.until(ends_us)
        return
    near, misses = nearest(permits, hearing.reach)
    how = lapse(misses) if near else None
    cited = (near.id, *always) if near and how else always
    findings.say(reason(codes.no[how], *cited, **words))
    need = hearing.need(codes.yes, codes.need, owner, dataset)
    findings.miss(miss(codes.gate, owner, need, near.id if near else None, *misses))


def _grant(hearing: Hearing, expert: ExpertFact, findings: Findings) -> None:
    _permission(hearing, hearing.grants_of(expert), _OF_GRANT, expert.tenant, None, findings)


def _license(hearing: Hearing, expert: ExpertFact, findings: Findings) -> None:
    about = vars(expert)
    said = [hearing.said_of(vars(one)["license"]) for one in (expert, *about["datasets"])]
    base = hearing.base_said
    if base is None or base.denials or [one for one in said if one.denials]:
        _ask_licenses(hearing, expert, findings)
    else:
        key = about["bundle_digest"], base, *said
        found = hearing.permitted.get(key)
        if found is None:
            found = Findings()
            _ask_licenses(hearing, expert, found)
            found.reasons = list(in_order(found.reasons))
            found.obligations = list(obligations_in_order(found.obligations))
            hearing.permitted[key] = found
        # Nothing else adds to these three, and whoever reads them adds nothing.
        findings.choices, findings.obligations = found.choices, found.obligations
        findings.burdens = found.burdens
        findings.reasons += found.reasons
    if not findings.burdens or not hearing.may_clash:
        return
    terms, asked = findings.terms(), hearing.asked
    conflict = terms.conflict(action=asked.action, commercial=asked.commercial)
    if conflict == "share_alike":
        groups = " and ".join(sorted(terms.share_alike))
        findings.say(reason("share_alike_conflict", expert.expert_id, groups=groups))
    elif conflict == "royalty":
        findings.say(reason("royalty_overflow", expert.expert_id, total=terms.royalty_ppm()))


def _ask_licenses(hearing: Hearing, expert: ExpertFact, findings: Findings) -> None:
    """Asks the licenses of an expert, of its datasets and of the base."""
    hearing.ask_license(Subject(expert.expert_id, expert.name), expert.license, expert.tenant, findings)
    for dataset in expert.datasets:
        subject = Subject(dataset.id, f"the dataset {dataset.id}")
        hearing.ask_license(subject, dataset.license, dataset.tenant, findings)
    findings.join(hearing.base_license)


def _rules(hearing: Hearing, expert: ExpertFact, findings: Findings) -> None:
    heard = hearing.rules_about(expert.expert_id)
    findings.reasons += heard.reasons
    findings.miss(*heard.misses)
