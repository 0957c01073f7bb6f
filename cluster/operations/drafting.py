# SPDX-License-Identifier: Apache-2.0
"""Writing a change before its review: edit, submit, revise, withdraw."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cluster.operations.changes import ChangeId, cut_change, visible_change
from cluster.operations.table import EDITORS, Operation, Request
from policy.records.changes import ChangeRecord
from policy.records.items import ChangeItem
from tenants.roles import Principal

if TYPE_CHECKING:
    from cluster.office.desk import Desk


class DraftEdit(Request):
    """The whole of a draft's next version."""

    change_id: str = Field(max_length=60)
    version: int = Field(ge=1, lt=2**31, description="the version that you read")
    title: str = Field(min_length=1, max_length=200)
    items: tuple[ChangeItem, ...] = Field(min_length=1, max_length=200)
    effective_at_us: int | None = Field(
        default=None, ge=0, lt=2**53, description="publish at this moment; with the approval if left out"
    )


class DraftVersion(ChangeId):
    """Which draft, as it was read."""

    version: int = Field(ge=1, lt=2**31, description="the version that you read")


class Withdrawal(ChangeId):
    """An author's second thoughts."""

    comment: str = Field(default="", max_length=2000, description="why")


def edit(desk: Desk, principal: Principal, request: DraftEdit) -> ChangeRecord:
    """Writes a draft's next version."""
    visible_change(desk, principal, request.change_id)
    return desk.drafts.edit(
        request.change_id, principal, request.version, request.title, request.items, request.effective_at_us
    )


def submit(desk: Desk, principal: Principal, request: DraftVersion) -> ChangeRecord:
    """Lays a draft before its reviewers."""
    visible_change(desk, principal, request.change_id)
    return cut_change(desk, principal, desk.drafts.submit(request.change_id, principal, request.version))


def revise(desk: Desk, principal: Principal, request: ChangeId) -> ChangeRecord:
    """Closes one's change and opens a draft of it."""
    visible_change(desk, principal, request.change_id)
    return desk.drafts.revise(request.change_id, principal)


def withdraw(desk: Desk, principal: Principal, request: Withdrawal) -> ChangeRecord:
    """Gives one's change up."""
    visible_change(desk, principal, request.change_id)
    return desk.drafts.withdraw(request.change_id, principal, request.comment)


_CHANGE = "chg_0198f0c2a1b37c4e8d5f60718293a4b5"

ROWS = (
    Operation(
        name="changes.edit",
        method="PUT",
        path="/changes/{change_id}",
        roles=EDITORS,
        request=DraftEdit,
        response=ChangeRecord,
        run=edit,
        summary="Writes the next version of one's draft; whatever was said of the version before is void.",
        if_match="version",
        example={
            "change_id": _CHANGE,
            "version": 1,
            "title": "Offer the notes for research",
            "items": [{"kind": "consent.give", "expert_id": "*", "purpose": "research"}],
        },
    ),
    Operation(
        name="changes.submit",
        method="POST",
        path="/changes/{change_id}/submit",
        roles=EDITORS,
        request=DraftVersion,
        response=ChangeRecord,
        run=submit,
        summary="Lays one's draft before a reviewer.",
        if_match="version",
        example={"change_id": _CHANGE, "version": 1},
    ),
    Operation(
        name="changes.revise",
        method="POST",
        path="/changes/{change_id}/revise",
        roles=EDITORS,
        request=ChangeId,
        response=ChangeRecord,
        run=revise,
        summary="Closes one's open change, with any approval it had, and opens a draft of the same edits.",
        example={"change_id": _CHANGE},
    ),
    Operation(
        name="changes.withdraw",
        method="POST",
        path="/changes/{change_id}/withdraw",
        roles=EDITORS,
        request=Withdrawal,
        response=ChangeRecord,
        run=withdraw,
        summary="Gives up one's own draft or open change, also one that waits for its moment.",
        example={"change_id": _CHANGE},
    ),
)
