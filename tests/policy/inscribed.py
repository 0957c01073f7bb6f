# SPDX-License-Identifier: Apache-2.0
"""Writes a world into a register's rows, publishes it and reads the published epoch back.

So a test about facts in memory becomes one about facts that went through a database. What the tables refuse
to hold (an expert on a base that nobody registered, say) has to be left out of a world first: ``storable``.
Knows no rule of deciding.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from worlds import CONSUMERS, OWNERS, bundle

from policy.facts.snapshot import BaseFact, DatasetFact, ExpertFact, Snapshot, TenantFact
from policy.publishing.publication import Publisher
from policy.tables import (
    BaseRow,
    ConsentRow,
    DeploymentRow,
    ExpertDatasetRow,
    ExpertRow,
    GrantRow,
    LicenseRow,
    ListingRow,
    RuleRow,
)
from tenants.accounts.database import Database
from tenants.accounts.tables import DatasetRow, TenantRow

Kept = Callable[[Snapshot], Snapshot]
KINDS = ("tenants", "bases", "experts", "consents", "grants", "rules", "deployments")


def storable(snapshot: Snapshot) -> Snapshot:
    """The world without what the register could never come to hold.

    Every tenant and base that is named exists; a dataset's word is its own unless it is the expert's owner's;
    accesses name an expert, one permit of a kind at a time.
    """
    slugs = {fact.slug: fact for fact in snapshot.tenants}
    owners = {*OWNERS, *CONSUMERS, *(fact.tenant for fact in snapshot.experts)}
    tenants = {slug: TenantFact(slug=slug, status="suspended") for slug in owners} | slugs
    bases = {fact.base_digest: fact for fact in snapshot.bases}
    named = {fact.base_digest for fact in (*snapshot.experts, *snapshot.deployments)}
    for digest in named - set(bases):
        bases[digest] = BaseFact(base_digest=digest, name="late", license="CC0-1.0", status="suspended")
    experts = {fact.expert_id: _expert(fact) for fact in snapshot.experts}
    datasets = {dataset.id for fact in experts.values() for dataset in fact.datasets}
    consents = [fact for fact in snapshot.consents if fact.dataset_id is None or fact.dataset_id in datasets]
    grants = [fact for fact in snapshot.grants if fact.expert_id in experts]
    return snapshot.model_copy(
        update={
            "tenants": tuple(tenants.values()),
            "bases": tuple(bases.values()),
            "experts": tuple(experts.values()),
            "consents": tuple(_one_at_a_time(consents)),
            "grants": tuple(_one_at_a_time(grants)),
        }
    )


def _expert(fact: ExpertFact) -> ExpertFact:
    datasets = tuple(
        DatasetFact(
            id=dataset.id,
            tenant=dataset.tenant,
            license=dataset.license,
            consent="with_expert" if dataset.tenant == fact.tenant else "separate",
        )
        for dataset in fact.datasets
    )
    return fact.model_copy(update={"datasets": datasets})


def _one_at_a_time(facts: list[Any]) -> list[Any]:
    """Drops what says the same as an earlier fact for some time of its own."""
    kept: dict[Any, Any] = {}
    for fact in facts:
        says = fact.model_dump(exclude={"id", "valid_from_us", "valid_until_us", "state", "commercial"})
        kept.setdefault(json.dumps(says, sort_keys=True), fact)
    return list(kept.values())


def through(database: Database, epochs: int = 1) -> Kept:
    """A way to have worlds written, published (so many times) and read back; nothing of them stays."""

    def keep(snapshot: Snapshot) -> Snapshot:
        found: list[Snapshot] = []
        with database.unit_of_work() as session:
            session.add_all(_assets(snapshot))
            session.flush()
            for rows in (_lineage(snapshot), _words(snapshot)):
                session.add_all(rows)
                session.flush()
            publisher = Publisher(session, snapshot.published_at_us)
            for _ in range(epochs):
                epoch = publisher.publish(reason="a world", subject="", principal_id=None, widens=True).epoch
            session.expire_all()
            found.append(publisher.snapshot(epoch))
            session.rollback()
        return _with_members_of(found[0], snapshot)

    return keep


def _with_members_of(published: Snapshot, world: Snapshot) -> Snapshot:
    """Publication composes anew; a world may state other members, to ask what a review let in."""
    members = {fact.name: fact.members for fact in world.deployments}
    facts = tuple(fact.model_copy(update={"members": members[fact.name]}) for fact in published.deployments)
    return published.model_copy(update={"deployments": facts})


def _assets(snapshot: Snapshot) -> list[Any]:
    rows: list[Any] = [
        TenantRow(slug=fact.slug, title=fact.slug, country="DE", status=fact.status, created_at_us=0)
        for fact in snapshot.tenants
    ]
    rows += [BaseRow(**fact.model_dump(), manifest="{}", added_at_us=0) for fact in snapshot.bases]
    rows += [
        LicenseRow(key=fact.key, version=1_000, facets=fact.model_dump_json(), at_us=0)
        for fact in snapshot.licenses
    ]
    return rows


def _lineage(snapshot: Snapshot) -> list[Any]:
    datasets = {dataset.id: dataset for fact in snapshot.experts for dataset in fact.datasets}
    rows: list[Any] = [
        DatasetRow(
            id=fact.id,
            tenant=fact.tenant,
            name=fact.id,
            card="{}",
            license=fact.license,
            stored_digest=bundle(1),
            size_bytes=1,
            created_at_us=0,
        )
        for fact in datasets.values()
    ]
    for number, fact in enumerate(snapshot.experts):
        rows.append(
            ExpertRow(
                expert_id=fact.expert_id,
                tenant=fact.tenant,
                name=fact.name,
                version=number,
                bundle_digest=fact.bundle_digest,
                base_digest=fact.base_digest,
                manifest="{}",
                job_id=None,
                state=fact.state,
                admitted_at_us=0,
            )
        )
    return rows


def _words(snapshot: Snapshot) -> list[Any]:
    rows: list[Any] = []
    for fact in snapshot.experts:
        rows += [ExpertDatasetRow(expert_id=fact.expert_id, dataset_id=one.id) for one in fact.datasets]
        price = fact.price_micro_per_1k_tokens
        rows.append(
            ListingRow(
                expert_id=fact.expert_id,
                epoch=0,
                price_micro_per_1k_tokens=price,
                license=fact.license,
                at_us=0,
            )
        )
    rows += [ConsentRow(**_row(fact), at_us=0) for fact in snapshot.consents]
    rows += [GrantRow(**_row(fact), at_us=0) for fact in snapshot.grants]
    rows += [RuleRow(**fact.model_dump(), state="live", at_us=0) for fact in snapshot.rules]
    for fact in snapshot.deployments:
        document = fact.model_dump_json(exclude={"members"})
        rows.append(
            DeploymentRow(
                name=fact.name,
                tenant=fact.tenant,
                base_digest=fact.base_digest,
                document=document,
                state="live",
                at_us=0,
            )
        )
    return rows


def _row(fact: Any) -> dict[str, Any]:
    return {**fact.model_dump(), "commercial": int(fact.commercial)}
