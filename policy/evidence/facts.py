# SPDX-License-Identifier: Apache-2.0
"""What is known of one deployment at an epoch, gathered once for every page of its evidence.

Knows nothing of formats.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from policy.deciding.composition import Composition, compose
from policy.deciding.questions import Question
from policy.errors import NotFound
from policy.facts.snapshot import DeploymentFact, LicenseFact
from policy.publishing.publication import Publisher
from policy.records.assets import BaseRecord, ExpertRecord
from policy.records.consents import ConsentRecord
from policy.records.decisions import DecisionRecord
from policy.records.epochs import Publication
from policy.register import Register
from tenants.accounts.datasets import DatasetRecord, Datasets

_DECISIONS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """One deployment as an epoch has it.

    Attributes:
        at_us: the moment of the composition: now for the current epoch, else the epoch's own.
        members: expert versions that serve, in the composition's order.
        datasets: what they were trained on, by id.
        licenses: reviewed facets by key, of everything above.
        consents: owners' words that speak of members or their datasets, with their history.
        decisions: logged answers of the deployment up to the epoch, newest first.
    """

    deployment: DeploymentFact
    publication: Publication
    composition: Composition
    at_us: int
    base: BaseRecord
    members: tuple[ExpertRecord, ...]
    datasets: tuple[DatasetRecord, ...]
    licenses: tuple[LicenseFact, ...]
    consents: tuple[ConsentRecord, ...]
    decisions: tuple[DecisionRecord, ...]


def gather(session: Session, now_us: int, name: str, epoch: int | None = None) -> Facts:
    """Gathers what an epoch says of a deployment.

    Args:
        session: a reading unit of work that sees every tenant's rows.
        now_us: its time.
        name: of the deployment.
        epoch: which; the current one with None.

    Raises:
        NotFound: no such epoch, or the deployment is not in it.
    """
    register = Register(session, now_us)
    snapshot = register.snapshot(epoch)
    fact = snapshot.deployments_by_name.get(name)
    if fact is None:
        raise NotFound(f"Epoch {snapshot.epoch} has no such deployment; list the deployments.", name=name)
    at_us = now_us if snapshot.epoch == register.current_epoch() else snapshot.published_at_us
    composition = compose(snapshot, Question(at_us=at_us, deployment=name))
    members = tuple(register.expert(member.expert_id) for member in composition.members)
    ids = sorted({dataset_id for member in members for dataset_id in member.dataset_ids})
    room = Datasets(session, now_us)
    ours = {member.expert_id for member in members} | {"*"}
    owners = {member.tenant for member in members}
    decisions = register.decisions(deployment=name, limit=500)
    return Facts(
        deployment=fact,
        publication=Publisher(session, now_us).publication(snapshot.epoch),
        composition=composition,
        at_us=at_us,
        base=register.base(fact.base_digest),
        members=members,
        datasets=tuple(room.get(dataset_id) for dataset_id in ids),
        licenses=tuple(sorted(snapshot.licenses, key=lambda fact: fact.key)),
        consents=tuple(
            word
            for word in register.consents(None)
            if word.tenant in owners and (word.expert_id in ours or word.dataset_id in ids)
        ),
        decisions=tuple(one for one in decisions if one.epoch <= snapshot.epoch)[:_DECISIONS],
    )
