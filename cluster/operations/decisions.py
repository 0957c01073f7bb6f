# SPDX-License-Identifier: Apache-2.0
"""Decisions: why each expert was in or out when a composition was decided, and the same answers again later.

Whoever may read a decision sees as much of it as of the composition that came of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cluster.operations.deployments import cut_composition
from cluster.operations.scope import cut, sees_everything, unknown
from cluster.operations.table import ANYONE, Answer, Operation, Page, Request
from model_core.packing.canonical import digest_bytes
from policy.records.decisions import DecisionRecord
from tenants.roles import Principal

if TYPE_CHECKING:
    from cluster.office.desk import Desk


MAX_DECISIONS = 2000


class DecisionQuery(Page):
    """Which decisions."""

    deployment: str | None = Field(default=None, max_length=63)
    epoch: int | None = Field(default=None, ge=0, lt=2**31)


class DecisionId(Request):
    """Which decision."""

    decision_id: str = Field(max_length=60)


class Replay(Answer):
    """A logged answer beside the one that the same snapshot and question give now.

    The answers themselves, canonical JSON, are for the platform's staff: they speak of every tenant.
    """

    decision_id: str
    equal: bool
    before_digest: str
    after_digest: str
    before: str | None = None
    after: str | None = None


class DecisionPage(Answer):
    """Logged decisions, newest first."""

    items: tuple[DecisionRecord, ...]
    next: str | None = None


def list_decisions(desk: Desk, principal: Principal, request: DecisionQuery) -> DecisionPage:
    """Logged decisions that the caller may read."""
    rows = [
        _cut_decision(desk, principal, row)
        for row in desk.register.decisions(
            deployment=request.deployment, epoch=request.epoch, limit=MAX_DECISIONS
        )
        if _reads(principal, row)
    ]
    items, after = cut(rows, request, lambda row: row.id)
    return DecisionPage(items=items, next=after)


def show_decision(desk: Desk, principal: Principal, request: DecisionId) -> DecisionRecord:
    """One logged decision."""
    return _cut_decision(desk, principal, _readable(desk, principal, request.decision_id))


def replay_decision(desk: Desk, principal: Principal, request: DecisionId) -> Replay:
    """Decides the same question on the same snapshot again and compares."""
    record = _readable(desk, principal, request.decision_id)
    found = desk.register.replay(record.id)
    shown = {"before": found.before, "after": found.after} if sees_everything(principal) else {}
    return Replay(
        decision_id=found.decision_id,
        equal=found.equal,
        before_digest=digest_bytes(found.before.encode()),
        after_digest=digest_bytes(found.after.encode()),
        **shown,
    )


def _cut_decision(desk: Desk, principal: Principal, record: DecisionRecord) -> DecisionRecord:
    """A logged decision with as much of its answer as the viewer may see."""
    composition, _ = cut_composition(desk, principal, record.composition)
    kept = {one.expert_id for one in composition.decisions}
    verdicts = tuple(one for one in record.verdicts if one.expert_id in kept)
    return record.model_copy(update={"composition": composition, "verdicts": verdicts})


def _reads(principal: Principal, record: DecisionRecord) -> bool:
    if sees_everything(principal) or record.consumer_tenant == principal.tenant:
        return True
    return any(one.tenant == principal.tenant for one in record.composition.decisions)


def _readable(desk: Desk, principal: Principal, decision_id: str) -> DecisionRecord:
    record = desk.register.decision(decision_id)
    if not _reads(principal, record):
        raise unknown("decision")
    return record


_DECISION = {"decision_id": "dec_0198f0c2a1b37c4e8d5f60718293a4b5"}

ROWS = (
    Operation(
        name="decisions.list",
        method="GET",
        path="/decisions",
        roles=ANYONE,
        request=DecisionQuery,
        response=DecisionPage,
        run=list_decisions,
        summary="Lists logged decisions about your deployments and your experts.",
    ),
    Operation(
        name="decisions.show",
        method="GET",
        path="/decisions/{decision_id}",
        roles=ANYONE,
        request=DecisionId,
        response=DecisionRecord,
        run=show_decision,
        summary="Shows a logged decision with its reasons.",
        example=_DECISION,
    ),
    Operation(
        name="decisions.replay",
        method="GET",
        path="/decisions/{decision_id}/replay",
        roles=ANYONE,
        request=DecisionId,
        response=Replay,
        run=replay_decision,
        summary="Decides the same question on the same snapshot again and compares.",
        example=_DECISION,
    ),
)
