# SPDX-License-Identifier: Apache-2.0
"""Legal holds, and what they and every other word leave of an expert."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cluster.operations.erasure import REASON
from cluster.operations.experts import ExpertId
from cluster.operations.scope import check_visible, cut, tenant_scope
from cluster.operations.table import READERS, Answer, Operation, Page, Request
from policy.consents.status import is_valid
from policy.erasures.effective import Effective, effective
from policy.erasures.records import HeldKind, Hold
from policy.facts.terms import ANY
from tenants.roles import Principal, Role

if TYPE_CHECKING:
    from cluster.office.desk import Desk


class NewHold(Request):
    """What has to be kept."""

    subject_kind: HeldKind = Field(description="an expert, a dataset, or all of a tenant")
    subject_id: str = Field(max_length=63)
    reason: str = Field(min_length=1, max_length=2000, description=REASON)


class LiftedHold(Request):
    """A hold that ends."""

    hold_id: str = Field(max_length=60)
    reason: str = Field(min_length=1, max_length=2000, description=REASON)


class HoldPage(Answer):
    """Holds, oldest first."""

    items: tuple[Hold, ...]
    next: str | None = None


def set_hold(desk: Desk, principal: Principal, request: NewHold) -> Hold:
    """Orders that something is kept."""
    return desk.holds.set(request.subject_kind, request.subject_id, request.reason, principal)


def lift_hold(desk: Desk, principal: Principal, request: LiftedHold) -> Hold:
    """Ends a hold."""
    return desk.holds.lift(request.hold_id, request.reason, principal)


def list_holds(desk: Desk, principal: Principal, request: Page) -> HoldPage:
    """Holds on one's own things."""
    items, after = cut(desk.holds.list(tenant_scope(principal)), request, lambda row: row.id)
    return HoldPage(items=items, next=after)


def show_effective(desk: Desk, principal: Principal, request: ExpertId) -> Effective:
    """What may be done with an expert, and by whose word not."""
    expert = desk.register.expert(request.expert_id)
    check_visible(principal, expert.tenant, what="expert")
    subjects = [("expert", expert.expert_id), *(("dataset", one) for one in expert.dataset_ids)]
    consents = [
        row
        for row in desk.register.consents(expert.tenant)
        if row.effect == "permit" and row.expert_id in {ANY, expert.expert_id} and row.dataset_id is None
    ]
    rules = [
        rule
        for rule in desk.register.rules()
        if rule.effect == "forbid" and rule.expert_id == expert.expert_id
    ]
    return effective(
        owner_permits=expert.state == "listed" and any(is_valid(row.status) for row in consents),
        ordered_to_stop=bool(rules),
        held=bool(desk.holds.on(expert.tenant, *subjects)),
        erased=expert.state == "erased",
    )


_COMPLIANCE = frozenset({Role.COMPLIANCE})
_EXPERT = {"expert_id": "exp_0198f0c2a1b37c4e8d5f60718293a4b5"}
_UNSAID = frozenset({"reason"})

ROWS = (
    Operation(
        name="holds.set",
        method="POST",
        path="/holds",
        roles=_COMPLIANCE,
        request=NewHold,
        response=Hold,
        run=set_hold,
        summary="Orders that something is kept, whoever wants it erased; it permits no use of it.",
        example={"subject_kind": "expert", "subject_id": _EXPERT["expert_id"], "reason": "case 4711"},
        unaudited=_UNSAID,
    ),
    Operation(
        name="holds.lift",
        method="POST",
        path="/holds/{hold_id}/lift",
        roles=_COMPLIANCE,
        request=LiftedHold,
        response=Hold,
        run=lift_hold,
        summary="Ends a legal hold.",
        example={"hold_id": "hld_0198f0c2a1b37c4e8d5f60718293a4b5", "reason": "case closed"},
        unaudited=_UNSAID,
    ),
    Operation(
        name="holds.list",
        method="GET",
        path="/holds",
        roles=READERS,
        request=Page,
        response=HoldPage,
        run=list_holds,
        summary="Lists legal holds on your things, lifted ones included.",
        isolated=True,
    ),
    Operation(
        name="experts.effective",
        method="GET",
        path="/experts/{expert_id}/effective",
        roles=READERS,
        request=ExpertId,
        response=Effective,
        run=show_effective,
        summary="Says whether an expert may serve and be erased after owner, orders and holds were heard.",
        example=_EXPERT,
    ),
)
