# SPDX-License-Identifier: Apache-2.0
"""The emergency stop and the way back: at once where they narrow, reviewed where they would widen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cluster.operations.changes import ChangeId, cut_change, visible_change
from cluster.operations.scope import cut, tenant_scope
from cluster.operations.table import ANYONE, EDITORS, Answer, Operation, Page, Request
from policy.records.changes import RollbackRecord, StopKind, StopRecord
from tenants.roles import Principal

if TYPE_CHECKING:
    from cluster.office.desk import Desk


class NewStop(Request):
    """What has to stop, now."""

    kind: StopKind = Field(description="what is stopped")
    subject: str = Field(
        min_length=1,
        max_length=120,
        description="an expert's id, a tenant, a deployment, a license, a purpose",
    )
    reason: str = Field(min_length=1, max_length=2000, description="what happened, for whoever signs")


class StopId(Request):
    """Which stop."""

    stop_id: str = Field(max_length=60)


class StopQuery(Page):
    """Which stops."""

    overdue: bool | None = Field(default=None, description="only those whose second signature is late")


class StopPage(Answer):
    """Stops, newest first."""

    items: tuple[StopRecord, ...]
    next: str | None = None


def stop(desk: Desk, principal: Principal, request: NewStop) -> StopRecord:
    """Takes something out of use at once."""
    return desk.stops.stop(principal, request.kind, request.subject, request.reason)


def listed(desk: Desk, principal: Principal, request: StopQuery) -> StopPage:
    """Stops of one's own things; staff and auditors see all."""
    rows = desk.stops.list(tenant_scope(principal))
    if request.overdue is not None:
        rows = [row for row in rows if (row.state == "overdue") == request.overdue]
    items, after = cut(rows, request, lambda row: row.id)
    return StopPage(items=items, next=after)


def sign(desk: Desk, principal: Principal, request: StopId) -> StopRecord:
    """Puts the second signature under a stop."""
    return desk.stops.sign(request.stop_id, principal)


def roll_back(desk: Desk, principal: Principal, request: ChangeId) -> RollbackRecord:
    """Undoes a published change."""
    record = visible_change(desk, principal, request.change_id)
    undone = desk.rollback.roll_back(record.id, principal)
    if undone.change is None:
        return undone
    return undone.model_copy(update={"change": cut_change(desk, principal, undone.change)})


ROWS = (
    Operation(
        name="stops.create",
        method="POST",
        path="/stops",
        roles=EDITORS,
        request=NewStop,
        response=StopRecord,
        run=stop,
        summary="Takes an expert, tenant, deployment, license or purpose out of use at once.",
        example={"kind": "purpose", "subject": "research", "reason": "Incident 7 is being looked into."},
        unaudited=frozenset({"reason"}),
    ),
    Operation(
        name="stops.list",
        method="GET",
        path="/stops",
        roles=ANYONE,
        request=StopQuery,
        response=StopPage,
        run=listed,
        summary="Lists emergency stops, with those whose second signature is missing or overdue.",
    ),
    Operation(
        name="stops.sign",
        method="POST",
        path="/stops/{stop_id}/sign",
        roles=EDITORS,
        request=StopId,
        response=StopRecord,
        run=sign,
        summary="Puts the second signature under somebody else's emergency stop.",
        example={"stop_id": "stp_0198f0c2a1b37c4e8d5f60718293a4b5"},
    ),
    Operation(
        name="changes.rollback",
        method="POST",
        path="/changes/{change_id}/rollback",
        roles=EDITORS,
        request=ChangeId,
        response=RollbackRecord,
        run=roll_back,
        summary="Undoes a published change: at once what narrows, the rest as a change to be approved.",
        example={"change_id": "chg_0198f0c2a1b37c4e8d5f60718293a4b5"},
    ),
)
