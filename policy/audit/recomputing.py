# SPDX-License-Identifier: Apache-2.0
"""Computes anew what other records imply, and names what disagrees.

Seals say that a row is the one that was written; this says that what was written follows from the acts in
the audit chain: epochs and their snapshots from ``epoch.publish``, changes from the epoch that carried them
out or the act that closed them, deployments from the last snapshot, keys and their roles from the acts
that made and revoked them, and the sums of budgets from reservations and usage. Acts of before this was
chained explain nothing, so a missing act counts only in a chain that begins with the founding of the
platform.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from model_core.errors import ProductError
from policy.audit.verifying import Bad
from policy.epochs import archive
from policy.tables import (
    AuditRow,
    BudgetRow,
    ChangeRow,
    DeploymentRow,
    PublicationRow,
    ReservationRow,
    UsageRecordRow,
    UsageShareRow,
)
from tenants.accounts.tables import KeyRow

SENTENCES: Final[Mapping[str, str]] = {
    "publication_unexplained": "the epoch is not the one whose publication was chained",
    "snapshot_differs": "the snapshot is not the one whose digest was published",
    "change_unexplained": "the change's state does not follow from the acts upon it",
    "deployment_differs": "the deployment is not the one that the last epoch published",
    "key_unexplained": "no chained act made the key with these roles, or revoked it",
    "budget_differs": "the sums are not those of the tenant's reservations and usage",
}
_NEVER: Final = 1 << 62
#: Act that closes a change without effect → what its stage may say then. An author's rejection withdraws.
_CLOSINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "changes.reject": ("", "withdrawn"),
    "changes.withdraw": ("withdrawn",),
    "changes.revise": ("revised",),
    "changes.fail": ("failed",),
}
_ACTS: Final = ("epoch.publish", *_CLOSINGS, "keys.create", "keys.revoke")


def recompute(session: Session) -> Iterator[Bad]:
    """Names what does not follow from the acts, each table in turn."""
    acts = _acts(session)
    founded = session.scalar(select(AuditRow.action).where(AuditRow.seq == 1)) == "tenants.create"
    yield from _publications(session, acts["epoch.publish"])
    yield from _changes(session, acts, founded=founded)
    yield from _deployments(session)
    yield from _keys(session, acts, founded=founded)
    yield from _budgets(session)


def _acts(session: Session) -> dict[str, dict[str, tuple[str, dict[str, Any]]]]:
    """Actor and facts of the newest act on each object, by action."""
    found: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {action: {} for action in _ACTS}
    query = select(AuditRow.action, AuditRow.object, AuditRow.actor, AuditRow.facts)
    for action, object_, actor, facts in session.execute(
        query.where(AuditRow.action.in_(_ACTS)).order_by(AuditRow.seq)
    ):
        found[action][object_] = (actor, json.loads(facts))
    return found


def _publications(session: Session, acts: Mapping[str, tuple[str, Mapping[str, Any]]]) -> Iterator[Bad]:
    stored = dict(archive.digests(session))
    seen = set()
    for row in session.scalars(select(PublicationRow).order_by(PublicationRow.epoch)):
        seen.add(f"epoch:{row.epoch}")
        actor, facts = acts.get(f"epoch:{row.epoch}", ("", {}))
        stated = {name: getattr(row, name) for name in ("snapshot_digest", "reason", "subject", "change_id")}
        told = {name: facts.get(name) for name in stated}
        if told != stated or actor != (row.principal_id or "platform"):
            yield _bad("publications", row.epoch, "publication_unexplained")
        elif stored.get(row.epoch) != row.snapshot_digest:
            yield _bad("snapshots", row.epoch, "snapshot_differs")
    for missing in sorted(acts.keys() - seen):
        yield _bad("publications", missing.removeprefix("epoch:"), "publication_unexplained")


def _changes(session: Session, acts: Mapping[str, Any], *, founded: bool) -> Iterator[Bad]:
    published = {
        facts["change_id"]: (int(name.removeprefix("epoch:")))
        for name, (_, facts) in acts["epoch.publish"].items()
        if facts.get("change_id")
    }
    row = ChangeRow
    query = select(row.id, row.state, row.stage, row.epoch).order_by(row.id)
    for change_id, state, stage, epoch in session.execute(query):
        stages = [ends for act, ends in _CLOSINGS.items() if f"changes/{change_id}" in acts[act]]
        told = published.pop(change_id, None)
        holds = told == epoch and (told is None or state == "approved")
        if stages:
            holds = holds and state == "rejected" and stage in stages[0]
        elif founded:
            holds = holds and state != "rejected"
        if not holds:
            yield _bad("changes", change_id, "change_unexplained")
    for change_id in sorted(published):
        yield _bad("changes", change_id, "change_unexplained")


def _deployments(session: Session) -> Iterator[Bad]:
    last = session.scalars(select(PublicationRow).order_by(PublicationRow.epoch.desc()).limit(1)).first()
    if last is None:
        return
    try:
        published = archive.read(session, last.epoch, last.snapshot_digest).deployments_by_name
    except ProductError:
        return  # named as a snapshot already
    rows = {row.name: row for row in session.scalars(select(DeploymentRow).order_by(DeploymentRow.name))}
    for name, row in rows.items():
        fact = published.get(name)
        stored = json.loads(row.document) if row.state == "live" else None
        said = None if fact is None else fact.model_dump(mode="json")
        same = said is None if stored is None else said is not None and _agree(stored, said, row)
        if not same:
            yield _bad("deployments", name, "deployment_differs")
    for name in sorted(published.keys() - rows.keys()):
        yield _bad("deployments", name, "deployment_differs")


def _agree(stored: Mapping[str, Any], said: Mapping[str, Any], row: DeploymentRow) -> bool:
    names = (stored.keys() & said.keys()) - {"members"}
    same = all(stored[name] == said[name] for name in names)
    return same and (row.tenant, row.base_digest) == (said["tenant"], said["base_digest"])


def _keys(session: Session, acts: Mapping[str, Any], *, founded: bool) -> Iterator[Bad]:
    for row in session.scalars(select(KeyRow).order_by(KeyRow.key_id)):
        made = acts["keys.create"].get(f"keys/{row.key_id}")
        revoked = f"keys/{row.key_id}" in acts["keys.revoke"]
        if made is None and not founded:
            continue
        wrong = made is None or sorted(made[1].get("roles", ())) != row.roles.split()
        if wrong or revoked != (row.revoked_at_us is not None):
            yield _bad("api_keys", row.key_id, "key_unexplained")


def _budgets(session: Session) -> Iterator[Bad]:
    record, share = UsageRecordRow, UsageShareRow
    same = (share.server_id == record.server_id) & (share.sequence == record.sequence) & (share.n == record.n)
    spending = select(record.tenant, func.sum(share.amount_micro)).join(share, same).group_by(record.tenant)
    holding = (
        select(ReservationRow.tenant, func.sum(ReservationRow.held_micro))
        .where(ReservationRow.state == "held")
        .group_by(ReservationRow.tenant)
    )
    spent, held = (_sums(session.execute(query)) for query in (spending, holding))
    for row in session.scalars(select(BudgetRow).order_by(BudgetRow.tenant)):
        told = (spent.pop(row.tenant, 0), held.pop(row.tenant, 0))
        if told != (row.spent_micro, row.held_micro):
            yield _bad("budgets", row.tenant, "budget_differs")
    for tenant in sorted(name for sums in (spent, held) for name, total in sums.items() if total):
        yield _bad("budgets", tenant, "budget_differs")


def _sums(rows: Iterable[Any]) -> dict[str, int]:
    return {tenant: int(total) for tenant, total in rows}


def _bad(table: str, key: object, reason: str) -> Bad:
    return Bad(seal=_NEVER, table=table, key=str(key), reason=reason)
