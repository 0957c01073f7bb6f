# SPDX-License-Identifier: Apache-2.0
"""Rows about publishing: a register in a database, read anew and taken one epoch further."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

import migrations
from benchmarks.policy.deciding import settle_down
from benchmarks.policy.world import BASE, DAY_US, NOW_US, World
from benchmarks.report import Row, at_most
from policy.facts.snapshot import Fact, Snapshot
from policy.publishing.publication import Publisher
from policy.register import Register
from policy.tables import (
    BaseRow,
    ConsentRow,
    DeploymentRow,
    ExpertDatasetRow,
    ExpertRow,
    GrantRow,
    ListingRow,
    RuleRow,
)
from tenants.accounts.database import Database
from tenants.accounts.schema import Base
from tenants.accounts.scope import PLATFORM
from tenants.accounts.tables import DatasetRow, PrincipalRow, TenantRow
from tenants.roles import Principal, Role

REBUILD_S, PUBLISH_MS = 2.0, 20.0
_OWNER = "prn_bench"


def publish_rows(
    folder: Path,
    *,
    experts: int = 10_000,
    consents: int = 5,
    grants: int = 5,
    deployments: int = 16,
    acts: int = 40,
) -> list[Row]:
    """Rebuilding a snapshot from the rows of SQLite, and publishing withdrawals one by one.

    Args:
        folder: empty, for the database.
        experts: in the register.
        consents: an expert.
        grants: an expert.
        deployments: of 64 candidates each.
        acts: withdrawals that are timed.

    Raises:
        AssertionError: what is read anew is not what was published.
    """
    world = World(
        experts=experts,
        consents=consents,
        grants=grants,
        deployments=deployments,
        candidates=min(64, experts),
    )
    database = Database(f"sqlite:///{folder / 'register.db'}", scope=PLATFORM)
    migrations.upgrade(database.engine)
    with database.unit_of_work() as session:
        _fill(session, world.snapshot)
        first = Publisher(session, NOW_US)
        first.lock()
        first.publish(reason="bench", subject="bench", principal_id=None, widens=True)
    settle_down()
    facts = len(world.snapshot.consents) + len(world.snapshot.grants) + len(world.snapshot.rules)
    of = f"{experts:,} experts and {facts:,} consents, grants and rules"
    rebuilt_s = [_rebuilt_s(database) for _ in range(3)]
    members, of_all = _withdrawals(database, world, acts)
    return [
        at_most(
            f"snapshot of {of}, rebuilt from the database, best of three",
            min(rebuilt_s),
            REBUILD_S,
            unit="s",
            bar=1,
        ),
        at_most(
            f"withdrawal of any consent among {of}, the whole unit of work, p50",
            statistics.median(of_all),
            PUBLISH_MS,
            unit="ms",
            bar=1,
        ),
        Row(
            name="the same of a member's consent, its deployments' decisions logged, p50",
            ours=statistics.median(members),
            unit="ms",
        ),
    ]


def _rebuilt_s(database: Database) -> float:
    with database.reading() as session:
        publisher = Publisher(session, NOW_US + 1)
        published = publisher.known(publisher.current_epoch())
        began = time.perf_counter()
        rebuilt = publisher.rebuilt(widens=False)
        took_s = time.perf_counter() - began
        if rebuilt.consents != published.consents or rebuilt.experts != published.experts:
            raise AssertionError("what is read anew is not what was published")
    return took_s


def _withdrawals(database: Database, world: World, acts: int) -> tuple[list[float], list[float]]:
    """Milliseconds of withdrawals: of members' consents, and of any."""
    with database.reading() as session:
        publisher = Publisher(session, NOW_US + 1)
        published = publisher.known(publisher.current_epoch())
    serving = {bundle for fact in published.deployments for bundle in fact.members or ()}
    ids = {fact.expert_id for fact in published.experts if fact.bundle_digest in serving}
    said = [fact for fact in world.snapshot.consents if fact.effect == "permit" and fact.dataset_id is None]
    took: list[list[float]] = []
    now_us = NOW_US + DAY_US
    of_members = [consent for consent in said if consent.expert_id in ids]
    withdrawn: set[str] = set()
    for chosen in (of_members, said):
        of_kind = []
        for consent in chosen[:: max(1, len(chosen) // acts)][:acts]:
            if consent.id in withdrawn:
                continue
            withdrawn.add(consent.id)
            roles = frozenset({Role.OWNER})
            owner = Principal(id=_OWNER, tenant=consent.tenant, name="bench", roles=roles)
            now_us += 1_000_000
            began = time.perf_counter()
            with database.unit_of_work() as session:
                Register(session, now_us).withdraw_consent(consent.id, owner)
            of_kind.append((time.perf_counter() - began) * 1e3)
        took.append(of_kind)
    return took[0], took[1]


def _fill(session: Session, snapshot: Snapshot) -> None:
    """Writes the facts of a snapshot as rows."""
    tenants = [{"slug": fact.slug, "status": fact.status, "title": fact.slug} for fact in snapshot.tenants]
    _insert(session, TenantRow, tenants)
    _insert(session, PrincipalRow, [{"id": _OWNER, "tenant": tenants[0]["slug"], "name": "bench"}])
    _insert(session, BaseRow, _columns(snapshot.bases, manifest="{}"))
    experts, datasets, lineage, listings = [], {}, [], []
    for fact in snapshot.experts:
        card = json.dumps({"data_card": {"license": fact.license}})
        experts.append(fact.model_dump(exclude={"datasets", "license"}) | {"manifest": card, "version": 1})
        listings.append(
            {**fact.model_dump(include={"expert_id", "license", "price_micro_per_1k_tokens"}), "epoch": 1}
        )
        for one in fact.datasets:
            stated = {"name": one.id, "card": "{}", "stored_digest": BASE, "size_bytes": 1}
            datasets[one.id] = one.model_dump() | stated
            lineage.append({"expert_id": fact.expert_id, "dataset_id": one.id})
    _insert(session, ExpertRow, experts)
    _insert(session, DatasetRow, list(datasets.values()))
    _insert(session, ExpertDatasetRow, lineage)
    _insert(session, ListingRow, listings)
    _insert(session, ConsentRow, _columns(snapshot.consents))
    _insert(session, GrantRow, _columns(snapshot.grants))
    _insert(session, RuleRow, _columns(snapshot.rules, state="live"))
    deployments = [
        fact.model_dump(include={"name", "tenant", "base_digest"})
        | {"document": fact.model_dump_json(exclude={"members"}), "state": "live"}
        for fact in snapshot.deployments
    ]
    _insert(session, DeploymentRow, deployments)


def _columns(facts: Sequence[Fact], **more: Any) -> list[dict[str, Any]]:
    return [fact.model_dump() | more for fact in facts]


def _insert(session: Session, table: type[Base], rows: Sequence[dict[str, Any]]) -> None:
    """Inserts rows; columns that a row does not state are null, empty or the first moment."""
    columns = table.__table__.columns
    blank = {
        column.name: None if column.nullable else (1 if column.type.python_type is int else "")
        for column in columns
        if column.autoincrement is not True
    }
    stated = [{**blank, **{name: row[name] for name in row if name in columns}} for row in rows]
    session.execute(insert(table), stated)
