# SPDX-License-Identifier: Apache-2.0
"""What a host has to change when it hears of an epoch: pure functions over values.

Nothing here loads, waits or decides about permission: compositions come from the compiled snapshot; this
module says which experts to load and drop and which running sequences get which set.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from policy.compiled import Compiled, Composed
from policy.deciding.members import composition_digest
from policy.facts.snapshot import Snapshot
from policy.facts.terms import WhenCutOff


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What one deployment may be computed with, as this host decided from its snapshot.

    Attributes:
        deployment: name.
        epoch: of the snapshot.
        base_digest: the base below.
        experts: permitted bundle digests, sorted.
        names: bundle digest to the name shown in receipts.
        top_k: experts per token, the public one counted.
        composition_digest: names base, experts and router.
        valid_until_us: first moment at which an expert has to leave; None: none within this epoch.
        allowed: False where nothing at all may answer, not even the base alone.
        when_cut_off: what becomes of open answers without a lease.
    """

    deployment: str
    epoch: int
    base_digest: str
    experts: tuple[str, ...]
    names: Mapping[str, str]
    top_k: int
    composition_digest: str
    valid_until_us: int | None
    allowed: bool = True
    when_cut_off: WhenCutOff = "hold"

    @classmethod
    def of(cls, composition: Composed, deployment: str, when_cut_off: WhenCutOff = "hold") -> Served:
        """The served form of a policy composition."""
        members = composition.members
        short = [member.name for member in members]
        names = {
            member.bundle_digest: (
                member.name if short.count(member.name) == 1 else f"{member.tenant}/{member.name}"
            )
            for member in members
        }
        return cls(
            deployment=deployment,
            epoch=composition.epoch,
            base_digest=composition.base_digest,
            experts=tuple(sorted(names)),
            names=names,
            top_k=max(1, composition.top_k),
            composition_digest=composition.digest,
            valid_until_us=composition.valid_until_us,
            allowed=composition.verdict == "permit",
            when_cut_off=when_cut_off,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Roster:
    """Everything a host may compute at one moment.

    Attributes:
        epoch: of the snapshot; -1 before the first.
        snapshot_digest: its digest.
        served: by deployment name; only deployments of this host's base.
        kept: experts of this base that their owners permit to somebody for something, used or not: what
            was made of them may stay on the machine, for a roll back. It permits nothing.
    """

    epoch: int = -1
    snapshot_digest: str = ""
    served: Mapping[str, Served]
    kept: frozenset[str] = frozenset()

    @property
    def experts(self) -> frozenset[str]:
        """Every expert that some deployment may use."""
        return frozenset(
            digest for served in self.served.values() if served.allowed for digest in served.experts
        )

    @property
    def expires_at_us(self) -> int | None:
        """The first moment at which some expert has to leave by time."""
        moments = [s.valid_until_us for s in self.served.values() if s.valid_until_us is not None]
        return min(moments, default=None)

    @property
    def compositions(self) -> dict[str, str]:
        """Deployment to composition digest, as acknowledged to the office."""
        return {name: served.composition_digest for name, served in sorted(self.served.items())}


EMPTY_ROSTER = Roster(served={})


def make_roster(compiled: Compiled, base_digest: str, at_us: int) -> Roster:
    """Asks policy about every deployment of a base at one moment.

    Args:
        compiled: the facts.
        base_digest: deployments of other bases are not asked about.
        at_us: microseconds since the Unix epoch.
    """
    snapshot = compiled.snapshot
    return Roster(
        epoch=snapshot.epoch,
        snapshot_digest=snapshot.digest,
        served={
            fact.name: Served.of(compiled.deployment(fact.name, at_us), fact.name, fact.when_cut_off)
            for fact in snapshot.deployments
            if fact.base_digest == base_digest
        },
        kept=_kept(snapshot, base_digest, at_us),
    )


def _kept(snapshot: Snapshot, base_digest: str, at_us: int) -> frozenset[str]:
    """Listed experts of a base with a consent of their owner that stands at a moment."""
    given = {
        (consent.tenant, consent.expert_id)
        for consent in snapshot.consents
        if consent.effect == "permit"
        and consent.state == "given"
        and (consent.valid_until_us is None or at_us < consent.valid_until_us)
    }
    return frozenset(
        fact.bundle_digest
        for fact in snapshot.experts
        if fact.base_digest == base_digest
        and fact.state == "listed"
        and not given.isdisjoint({(fact.tenant, fact.expert_id), (fact.tenant, "*")})
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """A sequence that is being computed.

    Attributes:
        key: the host's name of the sequence.
        deployment: whose composition it runs.
        experts: bundle digests it is computed with.
        top_k: experts per token.
    """

    key: str
    deployment: str
    experts: tuple[str, ...]
    top_k: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NewSet:
    """What a sequence goes on with.

    Attributes:
        experts: bundle digests, sorted.
        top_k: experts per token.
        composition_digest: of this set.
    """

    experts: tuple[str, ...]
    top_k: int
    composition_digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What follows from a roster, in the order in which it is done.

    Attributes:
        end: sequences whose deployment is gone or may not answer at all.
        recompose: sequences that lost an expert, with the set they go on with.
        drop: resident experts that no deployment may use any more.
        load: permitted experts that are not resident.
    """

    end: tuple[str, ...]
    recompose: Mapping[str, NewSet]
    drop: tuple[str, ...]
    load: tuple[str, ...]


def make_plan(roster: Roster, resident: Collection[str], running: Iterable[Running]) -> Plan:
    """Compares what may run with what runs.

    A sequence that lost nothing keeps its set, also when its deployment gained experts: recomputing a prefix
    for an expert it did not ask for would only delay it. One that lost an expert goes on with what is both
    permitted and resident; it never waits for a load, and it never falls back to less than that.
    """
    end = []
    recompose = {}
    for sequence in running:
        served = roster.served.get(sequence.deployment)
        if served is None or not served.allowed:
            end.append(sequence.key)
        elif not set(sequence.experts) <= set(served.experts) or sequence.top_k > served.top_k:
            recompose[sequence.key] = _best_set(served, resident)
    permitted = roster.experts
    return Plan(
        end=tuple(end),
        recompose=recompose,
        drop=tuple(sorted(set(resident) - permitted)),
        load=tuple(sorted(permitted - set(resident))),
    )


def _best_set(served: Served, resident: Collection[str]) -> NewSet:
    experts = tuple(digest for digest in served.experts if digest in resident)
    if experts == served.experts:
        return NewSet(experts=experts, top_k=served.top_k, composition_digest=served.composition_digest)
    top_k = min(served.top_k, len(experts) + 1)
    digest = composition_digest(served.base_digest, experts, top_k)
    return NewSet(experts=experts, top_k=top_k, composition_digest=digest)
