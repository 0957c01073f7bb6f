# SPDX-License-Identifier: Apache-2.0
"""Whose decisions may be otherwise between two epochs; what a narrowing one leaves of each deployment.

A fact is read by the decisions about few experts. Every other decision is what it was, so an epoch looks at
those few and not at all candidates of all deployments. Where a fact reaches far (a license, a rule for
everybody, another engine), or is of an unknown kind, everything counts as touched. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

from policy.deciding.decision import decide
from policy.deciding.questions import Question, resolve
from policy.facts.kinds import (
    BaseFact,
    ConsentFact,
    DeploymentFact,
    ExpertFact,
    Fact,
    GrantFact,
    RuleFact,
    TenantFact,
)
from policy.facts.snapshot import Edits, Snapshot
from policy.facts.terms import ANY


@dataclass(frozen=True, kw_only=True, slots=True)
class Touched:
    """What may be decided otherwise than before.

    Attributes:
        everything: all of it; the other fields say nothing then.
        experts: bundle digests of the experts about which any decision may be otherwise.
        names: the same experts, by everything that a deployment may call them.
        consumers: tenants for whose deployments every decision may be otherwise.
        bases: base digests likewise.
        deployments: deployments that are themselves otherwise, or gone.
    """

    everything: bool = False
    experts: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    consumers: frozenset[str] = frozenset()
    bases: frozenset[str] = frozenset()
    deployments: frozenset[str] = frozenset()

    def wholly(self, fact: DeploymentFact) -> bool:
        """Whether any decision for a deployment may be otherwise."""
        return (
            self.everything
            or fact.name in self.deployments
            or fact.tenant in self.consumers
            or fact.base_digest in self.bases
        )

    def affects(self, fact: DeploymentFact) -> bool:
        """Whether any decision about a candidate of a deployment may be otherwise."""
        if self.wholly(fact):
            return True
        return bool(self.names) if fact.candidates == ANY else not self.names.isdisjoint(fact.candidates)


def touched_by(before: Snapshot, after: Snapshot, edits: Edits) -> Touched:
    """What the way from one snapshot to the next touches, the time that passed included.

    Args:
        before: the earlier one.
        after: the later one.
        edits: the facts in which they differ.
    """
    words = ("vocabulary_version", "engine_version")
    reach = _Reach(after)
    far = any(getattr(before, name) != getattr(after, name) for name in words)
    for key, new in edits.items():
        old = before.fact(*key)
        far = far or _other_terms(old, new) or not all(map(reach.add, (old, new)))
    # Time alone has turned these; what the epoch changed of them is in the edits.
    end = bisect_right(before.upcoming, after.published_at_us, key=lambda turn: turn[0])
    for _, kind, name in before.upcoming[:end]:
        reach.add(before.fact(kind, name))
    return Touched(everything=True) if far else reach.touched()


class _Reach:
    """Collects whom facts speak of."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._experts: dict[str, ExpertFact] = {}
        self._consumers: set[str] = set()
        self._bases: set[str] = set()
        self._deployments: set[str] = set()

    def add(self, fact: Fact | None) -> bool:
        """Notes whom a fact speaks of; False where that is everybody, or unknown."""
        match fact:
            case None:
                pass
            case ExpertFact():
                self._experts[fact.bundle_digest] = fact
            case TenantFact():
                self._consumers.add(fact.slug)
                self._speak_of(self._snapshot.experts_by_tenant, fact.slug)
            case BaseFact():
                self._bases.add(fact.base_digest)
            case DeploymentFact():
                self._deployments.add(fact.name)
            case ConsentFact(dataset_id=str(dataset_id)):
                self._speak_of(self._snapshot.experts_by_dataset, dataset_id)
            case ConsentFact() | GrantFact() if fact.expert_id == ANY:
                self._speak_of(self._snapshot.experts_by_tenant, fact.tenant)
            case ConsentFact() | GrantFact():
                self._speak_of(self._snapshot.experts_by_id, fact.expert_id)
            case RuleFact() if fact.expert_id != ANY:
                self._speak_of(self._snapshot.experts_by_id, fact.expert_id)
            case RuleFact() if fact.consumer_tenant != ANY:
                self._consumers.add(fact.consumer_tenant)
            case _:
                return False
        return True

    def touched(self) -> Touched:
        """Everybody that was noted."""
        ids = {fact.expert_id for fact in self._experts.values()}
        return Touched(
            experts=frozenset(self._experts),
            names=frozenset(ids.union(self._experts)),
            consumers=frozenset(self._consumers),
            bases=frozenset(self._bases),
            deployments=frozenset(self._deployments),
        )

    def _speak_of(self, groups: Mapping[str, tuple[ExpertFact, ...]], name: str) -> None:
        self._experts |= {fact.bundle_digest: fact for fact in groups.get(name, ())}


def _other_terms(old: Fact | None, new: Fact | None) -> bool:
    """Whether an expert came under other terms, which may be in the way of whoever serves beside it."""
    if not isinstance(old, ExpertFact) or not isinstance(new, ExpertFact):
        return False
    return (old.license, old.datasets, old.tenant) != (new.license, new.datasets, new.tenant)


def narrowed(after: Snapshot, touched: Touched) -> dict[tuple[str, str], Fact | None]:
    """The deployments of an epoch that only narrows, as far as they lose members by it.

    Members of one epoch stand together without conflict, and so do any of them alone: terms only ever add
    up. So a member stays unless its own decision turned, and nobody comes.

    Args:
        after: the next epoch, its deployments with the members of the last.
        touched: by the way between them; not everything.
    """
    edits: dict[tuple[str, str], Fact | None] = {}
    for fact in after.deployments:
        last = fact.members or ()
        if fact.members is None:  # no review has let anybody in
            edits["deployments", fact.name] = fact.model_copy(update={"members": ()})
        wholly = touched.wholly(fact)
        doubtful = set(last) if wholly else touched.experts.intersection(last)
        if not doubtful:
            continue
        asked = resolve(after, Question(at_us=after.published_at_us, deployment=fact.name))
        lost = {
            digest
            for digest in doubtful
            if (expert := after.fact("experts", digest)) is None
            or decide(after, asked, expert).verdict != "permit"  # type: ignore[arg-type]
        }
        if lost:
            members = tuple(digest for digest in last if digest not in lost)
            edits["deployments", fact.name] = fact.model_copy(update={"members": members})
    return edits
