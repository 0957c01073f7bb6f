# SPDX-License-Identifier: Apache-2.0
"""May this expert serve this use at this moment? The one pure answer.

``decide`` is a function of a snapshot and a question and of nothing else: no clock, queries, randomness
or floats. Five gates must all hold: identity, consent (of the expert's owner and for every dataset of
its lineage), grant, license, rules. A forbid beats every permit; what is missing, unknown or unreadable
denies with its code. A permit whose words are unreadable covers nothing; a prohibition, or any rule,
whose words are unreadable denies. It does not know which other experts are asked for (see
``policy.deciding.composition``), nor whether a budget is left (see admission).
"""

from __future__ import annotations

from typing import Any

from model_core.packing.canonical import digest_bytes
from policy.deciding.dossiers import begun
from policy.deciding.gates import examine
from policy.deciding.hearing import Hearing
from policy.deciding.matching import FOREVER_US
from policy.deciding.questions import Asked, LicenseChoice, Question, Value, resolve
from policy.deciding.reasons import (
    PERMITTED,
    NearestMiss,
    Obligation,
    Reason,
    Weighed,
    in_order,
    outcome_at,
    reason,
    weighed,
)
from policy.facts.snapshot import ExpertFact, Snapshot
from policy.facts.terms import GATES, AtUs, Count, Outcome, Verdict
from policy.facts.values import built

__all__ = ["Asked", "Decision", "LicenseChoice", "Question", "decide", "redacted", "resolve"]

_PLACE_OF_GATE = {gate: place for place, gate in enumerate(GATES)}
_PRIVATE_CODES = frozenset({"consent_forbids", "consent_forbids_part", "consent_unreadable"})


class Decision(Value):
    """Permit or deny for one expert version, with everything needed to understand and replay it.

    ``valid_until_us`` of a permit is exact: it holds at every moment before and no longer at that one
    (None: as long as the epoch). A denial stands until another epoch or moment is asked about.
    ``input_digest`` covers snapshot, use and expert, not the moment.
    """

    expert_id: str
    bundle_digest: str
    name: str
    tenant: str
    verdict: Verdict
    outcome: Outcome
    reasons: tuple[Reason, ...]
    nearest_miss: tuple[NearestMiss, ...] = ()
    obligations: tuple[Obligation, ...] = ()
    licenses: tuple[LicenseChoice, ...] = ()
    valid_until_us: AtUs | None = None
    at_us: AtUs
    epoch: Count
    engine_version: str
    snapshot_digest: str
    input_digest: str


def decide(snapshot: Snapshot, question: Question | Asked, expert: ExpertFact | str) -> Decision:
    """Decides whether one expert version may serve one use at one moment.

    Args:
        snapshot: the facts.
        question: the use; a ``Question`` is resolved first.
        expert: the version, or its bundle digest, or its expert id where it has one version only.

    Raises:
        UnknownDeployment, IncompleteQuestion: the question itself makes no sense. Everything else is
            answered with a denial.
    """
    asked = question if isinstance(question, Asked) else resolve(snapshot, question)
    hearing = Hearing(snapshot, asked)
    if isinstance(expert, str):
        found = [fact for fact in snapshot.experts if expert in (fact.bundle_digest, fact.expert_id)]
        if len(found) != 1:
            code = "ambiguous_expert" if found else "unknown_expert"
            why = weighed([reason(code, expert, expert=expert)])
            return _denied(hearing, begun(expert), (expert, "", "", ""), why)
        expert = found[0]
    return decide_heard(hearing, expert)


def decide_heard(hearing: Hearing, expert: ExpertFact) -> Decision:
    """What ``decide`` says of one expert, where the same question is asked about many."""
    if not hearing.understood:
        about = expert.expert_id, expert.bundle_digest, expert.name, expert.tenant
        return _denied(hearing, begun(expert.bundle_digest), about, weighed(hearing.ground))
    dossier = hearing.dossiers.of(expert)
    reasons, worst, findings = examine(hearing, dossier)
    permitted = worst == PERMITTED
    licensed, ends_us = findings.licensed, findings.ends_us
    said = {
        "expert_id": expert.expert_id,
        "bundle_digest": expert.bundle_digest,
        "name": expert.name,
        "tenant": expert.tenant,
        "verdict": "permit" if permitted else "deny",
        "outcome": outcome_at(worst),
        "reasons": reasons,
        "nearest_miss": () if permitted else _in_order(findings.misses),
        "obligations": licensed.obligations if permitted else (),
        "licenses": licensed.choices if permitted else (),
        "valid_until_us": ends_us if permitted and ends_us < FOREVER_US else None,
    }
    return _decision(hearing, dossier.named, said)


def redacted(decision: Decision, viewer_tenant: str) -> Decision:
    """What a tenant may see: to anyone but the owner, the owner's prohibitions are withheld.

    That the provider refuses stays visible; whom and what the prohibition names does not.
    """
    if viewer_tenant == decision.tenant:
        return decision
    reasons = [reason("consent_withheld") if one.code in _PRIVATE_CODES else one for one in decision.reasons]
    misses = tuple(miss for miss in decision.nearest_miss if not (miss.gate == "consent" and miss.fact_id))
    return decision.model_copy(update={"reasons": in_order(reasons), "nearest_miss": misses})


def _denied(hearing: Hearing, named: bytes, about: tuple[str, str, str, str], why: Weighed) -> Decision:
    """The denial of what no gate was asked about: by expert id, bundle digest, name and owner."""
    said = {
        **dict(zip(("expert_id", "bundle_digest", "name", "tenant"), about, strict=True)),
        "verdict": "deny",
        "outcome": outcome_at(why.worst),
        "reasons": why.reasons,
        "nearest_miss": (),
        "obligations": (),
        "licenses": (),
        "valid_until_us": None,
    }
    return _decision(hearing, named, said)


def _decision(hearing: Hearing, named: bytes, said: dict[str, Any]) -> Decision:
    """A decision, with what names the question; the fields are in their declared order."""
    said.update(hearing.imprint)
    said["input_digest"] = digest_bytes(named + hearing.input_tail)
    return built(Decision, said)


def _in_order(misses: list[NearestMiss]) -> tuple[NearestMiss, ...]:
    """By gate, fact and sentence, each once."""
    if len(misses) == 1:
        return (misses[0],)
    distinct = {_key(one): one for one in misses}
    return tuple([distinct[key] for key in sorted(distinct)])


def _key(miss: NearestMiss) -> tuple[int, str, str, str, tuple[str, ...]]:
    return _PLACE_OF_GATE[miss.gate], miss.fact_id or "", miss.sentence, miss.ask, miss.differs
