# SPDX-License-Identifier: Apache-2.0
"""Erasure: who asks, who approves, what became of every copy, and who was told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cluster.office.erasing import carry_out
from cluster.operations.scope import check_visible, cut, tenant_scope
from cluster.operations.table import ANYONE, READERS, Answer, Operation, Page, Request
from policy.consents.receipts import SignedReceipt
from policy.erasures.records import Erasure, Notification, SubjectKind
from tenants.roles import Principal, Role

if TYPE_CHECKING:
    from cluster.office.desk import Desk

#: What is said of a reason; it is kept for ever.
REASON = "why, without naming a person"


class NewErasure(Request):
    """What is to be erased."""

    subject_kind: SubjectKind = Field(description="an expert, a dataset, or the personal data of a consent")
    subject_id: str = Field(max_length=60, description="of the expert, the dataset or the consent record")
    reason: str = Field(min_length=1, max_length=2000, description=REASON)


class WhichErasure(Request):
    """Which erasure."""

    erasure_id: str = Field(max_length=60)


class ErasurePage(Answer):
    """Erasures, newest first."""

    items: tuple[Erasure, ...]
    next: str | None = None


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
_ERASURE = {"erasure_id": "ers_0198f0c2a1b37c4e8d5f60718293a4b5"}
_EXPERT_ID = "exp_0198f0c2a1b37c4e8d5f60718293a4b5"

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
        example={"subject_kind": "expert", "subject_id": _EXPERT_ID, "reason": "consent withdrawn"},
        unaudited=frozenset({"reason"}),
    ),
    Operation(
        name="erasures.list",
        method="GET",
        path="/erasures",
        roles=READERS,
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
        roles=READERS,
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
        roles=READERS,
        request=WhichErasure,
        response=SignedReceipt,
        run=erasure_record,
        summary="Hands out the signed record of a completed erasure; verify-receipt checks it offline.",
        example=_ERASURE,
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
