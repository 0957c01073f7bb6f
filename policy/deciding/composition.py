# SPDX-License-Identifier: Apache-2.0
"""Which experts may serve a deployment together?

``compose`` asks ``decide`` about every candidate, keeps those that the last review let in, and settles
conflicts of license terms between the members as the deployment says: all or none (``strict``), or by a
published order (``drop_by_rule``). It is as pure as ``decide``: the last members are part of the
snapshot. A member that a review let in can only leave between reviews. It loads and runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

from model_core.packing.canonical import canonical_bytes
from policy.deciding.decision import Decision, decide, decide_heard
from policy.deciding.hearing import Hearing
from policy.deciding.licenses import Terms, can_clash, joined, terms_of
from policy.deciding.members import Member, composition_digest
from policy.deciding.questions import Asked, Question, Value, resolve
from policy.deciding.reasons import (
    Obligation,
    Reason,
    in_order,
    is_denial,
    obligations_in_order,
    outcome_at,
    reason,
    weighed,
)
from policy.facts.snapshot import ExpertFact, Snapshot
from policy.facts.terms import ENGINE_VERSION, AtUs, Count, TopK, Verdict
from policy.facts.values import built

__all__ = ["Composition", "Member", "Question", "compose", "composition_digest"]


Decider = Callable[[Snapshot, Asked, ExpertFact], Decision]


class Composition(Value):
    """Base + permitted expert versions in canonical order (by bundle digest), and why.

    ``top_k`` is what runs: ``top_k_asked``, but at most the members and the public expert. ``digest``
    names base, members and router. ``verdict`` is deny where nothing at all may answer (``reasons`` say
    why: the consumer, the base, its license, or a conflict under ``strict``); a permit without members
    is the public base alone. ``dropped`` are permitted versions that ``drop_by_rule`` left out.
    ``valid_until_us``: the first moment at which a member has to leave (None: not within this epoch).
    """

    deployment: str | None
    tenant: str
    base_digest: str
    epoch: Count
    at_us: AtUs
    verdict: Verdict
    reasons: tuple[Reason, ...] = ()
    members: tuple[Member, ...]
    dropped: tuple[str, ...] = ()
    top_k: TopK
    top_k_asked: TopK
    digest: str
    obligations: tuple[Obligation, ...] = ()
    decisions: tuple[Decision, ...]
    valid_until_us: AtUs | None
    snapshot_digest: str
    engine_version: str

    def to_json(self) -> bytes:
        """The canonical bytes of the whole answer."""
        return canonical_bytes(self.model_dump(mode="json"))


def compose(snapshot: Snapshot, question: Question, *, decider: Decider | None = None) -> Composition:
    """Decides about every candidate and composes those that may serve together.

    Args:
        snapshot: the facts.
        question: a deployment, or a use spelled out, at one moment.
        decider: says what ``decide`` says, which is asked with None; ``remembered`` has one that remembers.

    Raises:
        UnknownDeployment, IncompleteQuestion: the question itself makes no sense.
    """
    asked = resolve(snapshot, question)
    hearing = Hearing(snapshot, asked)
    experts = _candidates(snapshot, asked)
    if decider is None:
        decisions = {expert.bundle_digest: decide_heard(hearing, expert) for expert in experts}
    else:
        decisions = {expert.bundle_digest: decider(snapshot, asked, expert) for expert in experts}
    _hold_back(decisions, asked)
    set_reasons, dropped = _settle(hearing, decisions) if hearing.may_clash else ([], [])
    reasons = in_order([one for one in (*hearing.ground, *set_reasons) if is_denial(one)])
    permitted = {bundle: one for bundle, one in decisions.items() if one.verdict == "permit"}
    members = [expert for expert in experts if expert.bundle_digest in permitted]
    top_k = min(asked.top_k, len(members) + 1)
    ends = [end for one in permitted.values() if (end := one.valid_until_us) is not None]
    obligations = [owed for one in permitted.values() for owed in one.obligations]
    return Composition(
        deployment=asked.deployment,
        tenant=asked.tenant,
        base_digest=asked.base_digest,
        epoch=snapshot.epoch,
        at_us=asked.at_us,
        verdict="deny" if reasons else "permit",
        reasons=reasons,
        members=tuple(_member(expert) for expert in members),
        dropped=tuple(dropped),
        top_k=top_k,
        top_k_asked=asked.top_k,
        digest=composition_digest(asked.base_digest, [m.bundle_digest for m in members], top_k),
        obligations=obligations_in_order(
            [*obligations, *(() if reasons else hearing.base_license.obligations)]
        ),
        decisions=(*decisions.values(), *_unknown(snapshot, asked, experts)),
        valid_until_us=min(ends, default=None),
        snapshot_digest=snapshot.digest,
        engine_version=ENGINE_VERSION,
    )


def _member(expert: ExpertFact) -> Member:
    return built(
        Member,
        {
            "bundle_digest": expert.bundle_digest,
            "expert_id": expert.expert_id,
            "name": expert.name,
            "tenant": expert.tenant,
            "price_micro_per_1k_tokens": expert.price_micro_per_1k_tokens,
        },
    )


def _candidates(snapshot: Snapshot, asked: Asked) -> list[ExpertFact]:
    """The candidates in canonical order: by bundle digest, as the snapshot keeps them."""
    if asked.candidates == "*":
        return list(snapshot.experts)
    called = (fact for name in asked.candidates for fact in _called(snapshot, name))
    found = {fact.bundle_digest: fact for fact in called}
    return [found[bundle] for bundle in sorted(found)]


def _names(expert: ExpertFact) -> tuple[str, str]:
    return expert.expert_id, expert.bundle_digest


def _called(snapshot: Snapshot, name: str) -> list[ExpertFact]:
    """The versions that a name means: those of an expert, or the one bundle."""
    one = snapshot.fact("experts", name)
    return [*snapshot.experts_by_id.get(name, ()), *([one] if isinstance(one, ExpertFact) else [])]


def _unknown(snapshot: Snapshot, asked: Asked, experts: Sequence[ExpertFact]) -> list[Decision]:
    """Denials for candidates that the snapshot does not hold, by name."""
    if asked.candidates == "*":
        return []
    known = {name for one in experts for name in _names(one)}
    return [decide(snapshot, asked, name) for name in sorted(set(asked.candidates) - known)]


def _hold_back(decisions: dict[str, Decision], asked: Asked) -> None:
    """Denies permitted candidates that no review has let in."""
    if asked.members is None:
        return
    let_in = frozenset(asked.members)
    for bundle_digest, decision in decisions.items():
        if decision.verdict == "permit" and bundle_digest not in let_in:
            decisions[bundle_digest] = _denied(decision, reason("awaits_review", bundle_digest))


def _settle(hearing: Hearing, decisions: dict[str, Decision]) -> tuple[list[Reason], list[str]]:
    """Takes conflicts between permitted members out of ``decisions``.

    Returns:
        reasons that deny the whole composition, and the bundle digests that were dropped.
    """
    snapshot, asked, base = hearing.snapshot, hearing.asked, hearing.base_license.terms
    burdened = {fact.key for fact in snapshot.licenses if can_clash(fact)}
    everyone = [bundle for bundle, decision in decisions.items() if decision.verdict == "permit"]
    terms = {bundle: _burden(snapshot, asked, decisions[bundle], burdened) for bundle in everyone}

    def conflict(bundles: Sequence[str]) -> Reason | None:
        together = joined([base, *(one for bundle in bundles for one in terms[bundle])])
        kind = together.conflict(action=asked.action, commercial=asked.commercial)
        if kind == "share_alike":
            groups = " and ".join(sorted(together.share_alike))
            return reason("conflict_share_alike", *bundles, groups=groups)
        if kind == "royalty":
            return reason("conflict_royalty", *bundles, total=together.royalty_ppm())
        return None

    everything = conflict(everyone)
    if everything is None:
        return [], []
    base_alone = conflict([])
    if base_alone is not None:
        return [base_alone], []
    if asked.on_conflict == "strict":
        culprits, why = _minimal(everyone, everything, conflict)
        for bundle in everyone:
            said = why if bundle in culprits else reason("conflict_elsewhere", *culprits)
            decisions[bundle] = _denied(decisions[bundle], said)
        return [why], []
    kept: list[str] = []
    dropped: list[str] = []
    for bundle in sorted(everyone, key=lambda one: _rank(decisions[one], asked.priority)):
        clash = conflict([*kept, bundle])
        if clash is None:
            kept.append(bundle)
        else:
            dropped.append(bundle)
            decisions[bundle] = _denied(decisions[bundle], clash)
    return [], sorted(dropped)


def _minimal(
    bundles: Sequence[str], why: Reason, conflict: Callable[[Sequence[str]], Reason | None]
) -> tuple[list[str], Reason]:
    """A conflict set from which nothing can be taken, tried in canonical order, and its conflict."""
    kept = list(bundles)
    for bundle in bundles:
        without = [one for one in kept if one != bundle]
        clash = conflict(without)
        if clash is not None:
            kept, why = without, clash
    return kept, why


def _rank(decision: Decision, priority: Sequence[str]) -> tuple[int, str, str]:
    """The order in which ``drop_by_rule`` keeps: the published priority, then expert id, then digest."""
    place = priority.index(decision.expert_id) if decision.expert_id in priority else len(priority)
    return place, decision.expert_id, decision.bundle_digest


def _burden(snapshot: Snapshot, asked: Asked, decision: Decision, burdened: Set[str]) -> list[Terms]:
    """Those terms that can clash, of the licenses that a permit rests on."""
    return [
        terms_of(snapshot.licenses_by_key[key.lower()], choice.subject, commercial=asked.commercial)
        for choice in decision.licenses
        for key in choice.chosen
        if key in burdened
    ]


def _denied(decision: Decision, why: Reason) -> Decision:
    """A permit that the set took back; its reasons stay, since the gates did hold."""
    reasons, worst = weighed([*decision.reasons, why])
    return decision.model_copy(
        update={
            "verdict": "deny",
            "outcome": outcome_at(worst),
            "reasons": reasons,
            "obligations": (),
            "licenses": (),
            "valid_until_us": None,
        }
    )
