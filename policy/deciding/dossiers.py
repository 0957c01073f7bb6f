# SPDX-License-Identifier: Apache-2.0
"""What a snapshot says about each expert, read once for all questions about it.

Who owns an expert, what the owners of it and of its datasets permit and forbid, whom it is granted to and
under which licenses it stands: none of it depends on the question. A dossier holds it in the form that the
gates ask for. Knows no use, no consumer and no moment, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from model_core.packing.canonical import canonical_bytes
from policy.deciding.findings import Licensable, Licensed, licensed_together, miss, permitted_by
from policy.deciding.licenses import Said, Subject
from policy.deciding.matching import Permit, permit_of
from policy.deciding.reasons import NearestMiss, Reason, reason
from policy.facts.snapshot import ConsentFact, DatasetFact, ExpertFact, GrantFact, Snapshot
from policy.facts.terms import ANY
from policy.facts.vocabulary import Vocabulary


class Consents(NamedTuple):
    """What one owner says about one thing."""

    permits: tuple[Permit, ...]
    forbids: tuple[ConsentFact, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """One dataset that an expert was trained on.

    Attributes:
        id: of the dataset.
        owner: of the dataset.
        consents: what that owner says about it.
        separate: whether one of its permits is needed.
        denial: what stands against it whatever is asked.
    """

    id: str
    owner: str
    consents: Consents
    separate: bool
    denial: Reason | None


class Permitted(dict[tuple[Licensed, *tuple[Said, ...]], Licensed]):
    """What licenses that all permit leave behind, by what the base's left and what each of these said.

    Args:
        things: what stands under these licenses.
    """

    def __init__(self, things: Sequence[Licensable]) -> None:
        super().__init__()
        self._things = things

    def __missing__(self, key: tuple[Licensed, *tuple[Said, ...]]) -> Licensed:
        """Puts it together, once."""
        base, *said = key
        several = [permitted_by(*one) for one in zip(said, self._things, strict=True)]
        found = self[key] = licensed_together([*several, base])
        return found


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dossier:
    """What a snapshot says about one expert.

    Attributes:
        expert: the fact itself.
        named: how the canonical bytes begin that name the expert and a use.
        denials: what stands against the expert or its owner whatever is asked.
        misses: what would take that away.
        consents: what the owner says about the expert, and about all of its experts.
        lineage: the datasets.
        grants: of the owner for the expert, and for all of its experts.
        things: the expert and its datasets, under their licenses.
        permitted: what these leave behind where all of them permit.
    """

    expert: ExpertFact
    named: bytes
    denials: tuple[Reason, ...]
    misses: tuple[NearestMiss, ...]
    consents: Consents
    lineage: tuple[Lineage, ...]
    grants: tuple[Permit, ...]
    things: tuple[Licensable, ...]
    permitted: Permitted


class Dossiers:
    """The dossiers of one snapshot; whoever opens them again finds those that were read before.

    Args:
        snapshot: the facts.
        words: the vocabulary that they are read with, that of the snapshot.
    """

    def __init__(self, snapshot: Snapshot, words: Vocabulary) -> None:
        self._snapshot, self._words = snapshot, words
        self._read = _read_of(snapshot.digest)

    def of(self, expert: ExpertFact) -> Dossier:
        """What the snapshot says about an expert."""
        bundle_digest = expert.bundle_digest
        found = self._read.get(bundle_digest)
        # Somebody may ask about an expert that the snapshot knows otherwise, or not at all.
        if found is None or found.expert is not expert:
            found = self._read[bundle_digest] = self._open(expert)
        return found

    def _open(self, expert: ExpertFact) -> Dossier:
        snapshot, tenant, expert_id = self._snapshot, expert.tenant, expert.expert_id
        denials, misses = _standing(snapshot, expert)
        things = _things(expert)
        said = [*self._for_all.get(tenant, ()), *snapshot.consents_by_expert.get(expert_id, ())]
        granted = [*self._granted_for_all.get(tenant, ()), *snapshot.grants_by_expert.get(expert_id, ())]
        return Dossier(
            expert=expert,
            named=begun(expert.bundle_digest),
            denials=denials,
            misses=misses,
            consents=self._consents(one for one in said if one.tenant == tenant),
            lineage=tuple(self._lineage(expert, dataset) for dataset in expert.datasets),
            grants=tuple(permit_of(one, self._words) for one in granted if one.tenant == tenant),
            things=things,
            permitted=Permitted(things),
        )

    def _lineage(self, expert: ExpertFact, dataset: DatasetFact) -> Lineage:
        among, denial = {ANY, expert.expert_id}, None
        heard = [
            one
            for one in self._snapshot.consents_by_dataset.get(dataset.id, ())
            if one.tenant == dataset.tenant and one.expert_id in among
        ]
        if dataset.consent == "withdrawn":
            denial = reason("dataset_consent_withdrawn", dataset.id, dataset=dataset.id)
        elif dataset.consent != "separate" and dataset.tenant != expert.tenant:
            denial = reason("dataset_owner_differs", dataset.id, dataset=dataset.id)
        return Lineage(
            id=dataset.id,
            owner=dataset.tenant,
            consents=self._consents(heard),
            separate=dataset.consent == "separate",
            denial=denial,
        )

    def _consents(self, said: Iterable[ConsentFact]) -> Consents:
        permits, forbids = [], []
        for one in said:
            if one.effect == "permit":
                permits.append(permit_of(one, self._words))
            else:
                forbids.append(one)
        return Consents(tuple(permits), tuple(forbids))

    @cached_property
    def _for_all(self) -> dict[str, list[ConsentFact]]:
        """By owner, what it says about all of its experts."""
        found: dict[str, list[ConsentFact]] = {}
        for one in self._snapshot.consents_by_expert.get(ANY, ()):
            found.setdefault(one.tenant, []).append(one)
        return found

    @cached_property
    def _granted_for_all(self) -> dict[str, list[GrantFact]]:
        found: dict[str, list[GrantFact]] = {}
        for one in self._snapshot.grants_by_expert.get(ANY, ()):
            found.setdefault(one.tenant, []).append(one)
        return found


def begun(named: str) -> bytes:
    """How the canonical bytes begin that name an expert and a use."""
    return b'{"expert":' + canonical_bytes(named)


def _things(expert: ExpertFact) -> tuple[Licensable, ...]:
    named = [Licensable(Subject(expert.expert_id, expert.name), expert.license, expert.tenant)]
    for dataset in expert.datasets:
        subject = Subject(dataset.id, f"the dataset {dataset.id}")
        named.append(Licensable(subject, dataset.license, dataset.tenant))
    return tuple(named)


def _standing(snapshot: Snapshot, expert: ExpertFact) -> tuple[tuple[Reason, ...], tuple[NearestMiss, ...]]:
    """Whether owner and expert are known and active, and what would make them so."""
    denials, misses, tenant = [], [], expert.tenant
    owner = snapshot.tenants_by_slug.get(tenant)
    if owner is None:
        denials.append(reason("unknown_owner", tenant, tenant=tenant))
    elif owner.status != "active":
        denials.append(reason("owner_suspended", tenant, tenant=tenant))
    if expert.state != "listed":
        denials.append(reason("expert_not_listed", expert.expert_id, state=expert.state))
        misses.append(miss("identity", tenant, f"The owner {tenant} has to list the expert."))
    return tuple(denials), tuple(misses)


@lru_cache(maxsize=4)
def _read_of(_snapshot_digest: str) -> dict[str, Dossier]:
    """By bundle digest, the dossiers of the snapshot that its digest names; filled as they are read."""
    return {}
