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

from functools import lru_cache
from typing import Any

from model_core.packing.canonical import canonical_bytes, digest_bytes
from policy.deciding.gates import examine
from policy.deciding.hearing import Hearing
from policy.deciding.matching import FOREVER_US
from policy.deciding.questions import Asked, LicenseChoice, Question, Value, resolve
from policy.deciding.reasons import NearestMiss, Obligation, Reason, in_order, outcome_of, reason, weighed
from policy.facts.snapshot import ExpertFact, Snapshot
from policy.facts.terms import GATES, AtUs, Count, Outcome, Verdict
from policy.facts.values import built

__all__ = ["Asked", "Decision", "LicenseChoice", "Question", "decide", "redacted", "resolve"]

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
            return _denied_by_name(hearing, expert, reason(code, expert, expert=expert))
        expert = found[0]
    return decide_heard(hearing, expert)


def decide_heard(hearing: Hearing, expert: ExpertFact) -> Decision:
    """What ``decide`` says of one expert, where the same question is asked about many."""
    findings = examine(hearing, expert)
    reasons, outcome = weighed(findings.reasons)
    permitted = outcome == "permit"
    ends_us = findings.ends_us if findings.ends_us < FOREVER_US else None
    said = vars(expert)
    return _decision(
        hearing,
        said["bundle_digest"],
        {
            "expert_id": said["expert_id"],
            "bundle_digest": said["bundle_digest"],
            "name": said["name"],
            "tenant": said["tenant"],
            "verdict": "permit" if permitted else "deny",
            "outcome": outcome,
            "reasons": reasons,
            "nearest_miss": () if permitted else _in_order(findings.misses),
            "obligations": tuple(findings.obligations) if permitted else (),
            "licenses": tuple(findings.choices) if permitted else (),
            "valid_until_us": ends_us if permitted else None,
        },
    )


def redacted(decision: Decision, viewer_tenant: str) -> Decision:
    """What a tenant may see: to anyone but the owner, the owner's prohibitions are withheld.

    That the provider refuses stays visible; whom and what the prohibition names does not.
    """
    if viewer_tenant == decision.tenant:
        return decision
    reasons = [reason("consent_withheld") if one.code in _PRIVATE_CODES else one for one in decision.reasons]
    misses = tuple(miss for miss in decision.nearest_miss if not (miss.gate == "consent" and miss.fact_id))
    return decision.model_copy(update={"reasons": in_order(reasons), "nearest_miss": misses})


def _denied_by_name(hearing: Hearing, name: str, why: Reason) -> Decision:
    return _decision(
        hearing,
        name,
        {
            "expert_id": name,
            "bundle_digest": "",
            "name": "",
            "tenant": "",
            "verdict": "deny",
            "outcome": outcome_of((why,)),
            "reasons": (why,),
            "nearest_miss": (),
            "obligations": (),
            "licenses": (),
            "valid_until_us": None,
        },
    )


def _decision(hearing: Hearing, named: str, said: dict[str, Any]) -> Decision:
    """A decision, with what names the question; the fields are in their declared order."""
    said.update(hearing.imprint)
    said["input_digest"] = digest_bytes(_begun(named) + hearing.input_tail)
    return built(Decision, said)


@lru_cache(maxsize=8_192)
def _begun(named: str) -> bytes:
    """How the canonical bytes begin that name an expert and a use."""
    return b'{"expert":' + canonical_bytes(named)


def _in_order(misses: list[NearestMiss]) -> tuple[NearestMiss, ...]:
    return tuple(sorted(misses, key=_miss_order))


def _miss_order(miss: NearestMiss) -> tuple[int, str, str]:
    return GATES.index(miss.gate), miss.fact_id or "", miss.sentence
