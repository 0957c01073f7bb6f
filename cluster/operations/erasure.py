# SPDX-License-Identifier: Apache-2.0
"""Erasure, legal holds and notifications: who asks, who approves, what has to stay, and who was told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cluster.office.erasing import carry_out
from cluster.operations.scope import check_visible, cut, tenant_scope
from cluster.operations.table import ANYONE, Answer, Operation, Page, Request
from policy.consents.receipts import SignedReceipt
from policy.consents.status import is_valid
from policy.erasures.effective import Effective, effective
from policy.erasures.records import Erasure, HeldKind, Hold, Notification, SubjectKind
from policy.facts.terms import ANY
from tenants.roles import Principal, Role

if TYPE_CHECKING:
    from cluster.office.desk import Desk

_REASON = "why, without naming a person"


class NewErasure(Request):
    """What is to be erased."""

    subject_kind: SubjectKind = Field(description="an expert, a dataset, or the personal data of a consent")
    subject_id: str = Field(max_length=60, description="of the expert, the dataset or the consent record")
    reason: str = Field(min_length=1, max_length=2000, description=_REASON)


class WhichErasure(Request):
    """Which erasure."""

    erasure_id: str = Field(max_length=60)


class ErasurePage(Answer):
    """Erasures, newest first."""

    items: tuple[Erasure, ...]
    next: str | None = None


class NewHold(Request):
    """What has to be kept."""

    subject_kind: HeldKind = Field(description="an expert, a dataset, or all of a tenant")
    subject_id: str = Field(max_length=63)
    reason: str = Field(min_length=1, max_length=2000, description=_REASON)


class LiftedHold(Request):
    """A hold that ends."""

    hold_id: str = Field(max_length=60)
    reason: str = Field(min_length=1, max_length=2000, description=_REASON)


class HoldPage(Answer):
    """Holds, oldest first."""

    items: tuple[Hold, ...]
    next: str | None = None


class WhichExpert(Request):
    """Which expert."""

    expert_id: str = Field(max_length=60)


class WhichNotification(Request):
    """Which notification."""

    notification_id: str = Field(max_length=60)


class NotificationPage(Answer):
    """Notifications, newest first."""

    items: tuple[Notification, ...]
    next: str | None = None


def request_erasure(desk: Desk, principal: Principal, request: NewErasure) -> Erasure:
    """Asks for an erasure; the answer lists what is known of copies."""
    asked = desk.erasures.request(request.subject_kind, request.subject_id, request.reason, principal)
    return _shown(desk, asked)


def list_erasures(desk: Desk, principal: Principal, request: Page) -> ErasurePage:
    """Erasures of one's own things."""
    items, after = cut(desk.erasures.list(tenant_scope(principal)), request, lambda row: row.id)
    return ErasurePage(items=items, next=after)


def show_erasure(desk: Desk, principal: Principal, request: WhichErasure) -> Erasure:
    """One erasure with every copy."""
    return _shown(desk, _visible(desk, principal, request.erasure_id))


def approve_erasure(desk: Desk, principal: Principal, request: WhichErasure) -> Erasure:
    """Takes it out of service for ever and plans every step."""
    return desk.erasures.approve(_visible(desk, principal, request.erasure_id).id, principal)


def reject_erasure(desk: Desk, principal: Principal, request: WhichErasure) -> Erasure:
    """Closes a request."""
    return desk.erasures.reject(_visible(desk, principal, request.erasure_id).id, principal)


def execute_erasure(desk: Desk, principal: Principal, request: WhichErasure) -> Erasure:
    """Does what can be done now."""
    return carry_out(desk, _visible(desk, principal, request.erasure_id).id)


def erasure_record(desk: Desk, principal: Principal, request: WhichErasure) -> SignedReceipt:
    """What became of every copy, signed."""
    return desk.erasures.record(_visible(desk, principal, request.erasure_id).id)


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


def show_effective(desk: Desk, principal: Principal, request: WhichExpert) -> Effective:
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


def list_notifications(desk: Desk, principal: Principal, request: Page) -> NotificationPage:
    """What one's own tenant has to know; staff sees what everybody was told."""
    items, after = cut(desk.notifications.list(tenant_scope(principal)), request, lambda row: row.id)
    return NotificationPage(items=items, next=after)


def acknowledge(desk: Desk, principal: Principal, request: WhichNotification) -> Notification:
    """Takes note."""
    return desk.notifications.acknowledge(request.notification_id, principal)


def _visible(desk: Desk, principal: Principal, erasure_id: str) -> Erasure:
    found = desk.erasures.get(erasure_id)
    check_visible(principal, found.tenant, what="erasure")
    return found


def _shown(desk: Desk, found: Erasure) -> Erasure:
    """Before anybody decided, the copies are those that are known now."""
    if found.state != "requested":
        return found
    return found.model_copy(update={"copies": tuple(desk.erasures.preview(found.id))})


_OWNER_OR_COMPLIANCE = frozenset({Role.OWNER, Role.COMPLIANCE})
_COMPLIANCE = frozenset({Role.COMPLIANCE})
_READS = frozenset({Role.OWNER, Role.COMPLIANCE, Role.AUDITOR, Role.OPERATOR})
_ERASURE = {"erasure_id": "ers_0198f0c2a1b37c4e8d5f60718293a4b5"}
_EXPERT = {"expert_id": "exp_0198f0c2a1b37c4e8d5f60718293a4b5"}
_UNSAID = frozenset({"reason"})

ROWS = (
    Operation(
        name="erasures.request",
        method="POST",
        path="/erasures",
        roles=_OWNER_OR_COMPLIANCE,
        request=NewErasure,
        response=Erasure,
        run=request_erasure,
        summary="Asks for an expert, data or personal data to be erased; lists every copy, changes nothing.",
        example={"subject_kind": "expert", "subject_id": _EXPERT["expert_id"], "reason": "consent withdrawn"},
        unaudited=_UNSAID,
    ),
    Operation(
        name="erasures.list",
        method="GET",
        path="/erasures",
        roles=_READS,
        request=Page,
        response=ErasurePage,
        run=list_erasures,
        summary="Lists erasures of your things.",
        isolated=True,
    ),
    Operation(
        name="erasures.show",
        method="GET",
        path="/erasures/{erasure_id}",
        roles=_READS,
        request=WhichErasure,
        response=Erasure,
        run=show_erasure,
        summary="Shows an erasure: every copy and what became of it, recipients, and influence that stays.",
        example=_ERASURE,
    ),
    Operation(
        name="erasures.approve",
        method="POST",
        path="/erasures/{erasure_id}/approve",
        roles=_OWNER_OR_COMPLIANCE,
        request=WhichErasure,
        response=Erasure,
        run=approve_erasure,
        summary="Approves somebody else's request: out of service at once and for ever, then copy by copy.",
        example=_ERASURE,
    ),
    Operation(
        name="erasures.reject",
        method="POST",
        path="/erasures/{erasure_id}/reject",
        roles=_OWNER_OR_COMPLIANCE,
        request=WhichErasure,
        response=Erasure,
        run=reject_erasure,
        summary="Closes a request for erasure without effect.",
        example=_ERASURE,
    ),
    Operation(
        name="erasures.execute",
        method="POST",
        path="/erasures/{erasure_id}/execute",
        roles=frozenset({Role.OPERATOR, Role.COMPLIANCE}),
        request=WhichErasure,
        response=Erasure,
        run=execute_erasure,
        summary="Goes on with an approved erasure; the office does so by itself, too.",
        example=_ERASURE,
    ),
    Operation(
        name="erasures.record",
        method="GET",
        path="/erasures/{erasure_id}/record",
        roles=_READS,
        request=WhichErasure,
        response=SignedReceipt,
        run=erasure_record,
        summary="Hands out the signed record of a completed erasure; verify-receipt checks it offline.",
        example=_ERASURE,
    ),
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
        roles=_READS,
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
        roles=_READS,
        request=WhichExpert,
        response=Effective,
        run=show_effective,
        summary="Says whether an expert may serve and be erased after owner, orders and holds were heard.",
        example=_EXPERT,
    ),
    Operation(
        name="notifications.list",
        method="GET",
        path="/notifications",
        roles=ANYONE,
        request=Page,
        response=NotificationPage,
        run=list_notifications,
        summary="Lists what your tenant has to know, such as a request to erase copies that you received.",
        isolated=True,
    ),
    Operation(
        name="notifications.acknowledge",
        method="POST",
        path="/notifications/{notification_id}/acknowledge",
        roles=ANYONE,
        request=WhichNotification,
        response=Notification,
        run=acknowledge,
        summary="Says that your tenant took note, and did what was asked.",
        example={"notification_id": "ntf_0198f0c2a1b37c4e8d5f60718293a4b5"},
        isolated=True,
    ),
)
