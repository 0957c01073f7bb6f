# SPDX-License-Identifier: Apache-2.0
"""Changes: edits on their way to publication, laid before reviewers, approved or rejected.

How a change is written before anybody reviews it stands in ``cluster.operations.drafting``; what becomes of a
published one in ``epochs`` and ``acknowledging`` beside it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cluster.operations.scope import check_visible, cut, cut_lists, sees_everything, tenant_scope, unknown
from cluster.operations.table import ANYONE, EDITORS, Answer, Operation, Page, Request
from policy.errors import NotFound, PolicyError
from policy.records.changes import ChangeRecord, ChangeState, DeploymentPreview, Preview
from policy.records.items import ChangeItem
from tenants.roles import Principal

if TYPE_CHECKING:
    from cluster.office.desk import Desk


class NewChange(Request):
    """Several edits that are reviewed and published together."""

    title: str = Field(min_length=1, max_length=200)
    items: tuple[ChangeItem, ...] = Field(min_length=1, max_length=200)
    effective_at_us: int | None = Field(
        default=None, ge=0, lt=2**53, description="publish at this moment; with the approval if left out"
    )
    draft: bool = Field(default=False, description="keep it as a draft that you edit and submit later")


class ChangeQuery(Page):
    """Which changes."""

    state: ChangeState | None = None


class ChangeId(Request):
    """Which change."""

    change_id: str = Field(max_length=60)


class Approval(ChangeId):
    """A second person's word; the digest says to what."""

    digest: str = Field(max_length=71, description="digest of the change as you read it")


class Rejection(ChangeId):
    """A second person's no."""

    comment: str = Field(min_length=1, max_length=2000, description="what to do differently")


class Approved(Answer):
    """What an approval did: published the change as an epoch, or fixed when it will be."""

    change_id: str
    state: Literal["approved", "scheduled"]
    epoch: int | None
    at_us: int
    snapshot_digest: str | None
    reason: str
    subject: str
    principal_id: str | None
    effective_at_us: int | None


class ChangePage(Answer):
    """Changes, newest first."""

    items: tuple[ChangeRecord, ...]
    next: str | None = None


def propose(desk: Desk, principal: Principal, request: NewChange) -> ChangeRecord:
    """Lays a change before its reviewers, or keeps it as a draft."""
    write = desk.drafts.begin if request.draft else desk.register.propose
    written = write(principal, request.title, request.items, request.effective_at_us)
    return cut_change(desk, principal, written)


def listed(desk: Desk, principal: Principal, request: ChangeQuery) -> ChangePage:
    """Changes of one's own tenant; compliance reviews all."""
    own = tenant_scope(principal)
    found = [*desk.register.changes(request.state), *desk.drafts.list(request.state)]
    rows = sorted((row for row in found if own in {None, row.tenant}), key=lambda row: row.id, reverse=True)
    items, after = cut(rows, request, lambda row: row.id)
    return ChangePage(items=tuple(row.model_copy(update={"preview": None}) for row in items), next=after)


def show(desk: Desk, principal: Principal, request: ChangeId) -> ChangeRecord:
    """One change with its items and preview."""
    record = visible_change(desk, principal, request.change_id)
    if record.state == "proposed":
        # Edits that fit the register no more have no preview; they can be read and rejected all the same.
        with suppress(PolicyError):
            record = desk.register.change(record.id)
    return cut_change(desk, principal, record)


def preview(desk: Desk, principal: Principal, request: ChangeId) -> Preview:
    """What the change would do now."""
    record = visible_change(desk, principal, request.change_id)
    if record.state == "draft":
        return _cut_preview(desk, principal, desk.drafts.preview(record.id))
    return _cut_preview(desk, principal, desk.register.preview(record.id))


def approve(desk: Desk, principal: Principal, request: Approval) -> Approved:
    """Publishes a change, or lets it wait for its moment."""
    record = visible_change(desk, principal, request.change_id)
    if record.effective_at_us is not None and desk.schedule.time_us() < record.effective_at_us:
        waiting = desk.register.schedule(record.id, request.digest, principal)
        return Approved(
            change_id=waiting.id,
            state="scheduled",
            epoch=None,
            at_us=desk.now_us,
            snapshot_digest=None,
            reason="change",
            subject=waiting.id,
            principal_id=principal.id,
            effective_at_us=waiting.effective_at_us,
        )
    published = desk.register.approve(record.id, request.digest, principal)
    fields = published.model_dump() | {"change_id": record.id, "effective_at_us": record.effective_at_us}
    return Approved(state="approved", **fields)


def reject(desk: Desk, principal: Principal, request: Rejection) -> ChangeRecord:
    """Closes a change without publishing it."""
    record = visible_change(desk, principal, request.change_id)
    return desk.register.reject(record.id, principal, request.comment)


def draft_one(desk: Desk, principal: Principal, title: str, item: ChangeItem) -> ChangeRecord:
    """Lays one edit before its reviewers."""
    return cut_change(desk, principal, desk.register.propose(principal, title, (item,)))


def visible_change(desk: Desk, principal: Principal, change_id: str) -> ChangeRecord:
    """A change or draft that the principal may see, without its preview.

    Raises:
        UnknownObject: there is none, or it is another tenant's.
    """
    try:
        record = desk.drafts.find(change_id) or desk.register.change(change_id, previewed=False)
    except NotFound:
        raise unknown("change") from None
    check_visible(principal, record.tenant, what="change")
    return record


def cut_change(desk: Desk, principal: Principal, record: ChangeRecord) -> ChangeRecord:
    """A change with as much of its preview as the viewer may see."""
    if record.preview is None:
        return record
    return record.model_copy(update={"preview": _cut_preview(desk, principal, record.preview)})


def _cut_preview(desk: Desk, principal: Principal, found: Preview) -> Preview:
    if sees_everything(principal):
        return found
    return found.model_copy(update={"deployments": _own_part(desk, principal, found)})


def _own_part(desk: Desk, principal: Principal, found: Preview) -> tuple[DeploymentPreview, ...]:
    """The preview's lines on one's own deployments and experts: other tenants' uses are theirs to know."""
    mine = {fact.name for fact in desk.register.snapshot().deployments if fact.tenant == principal.tenant}
    own = {row.expert_id for row in desk.register.experts(principal.tenant)}

    def cut_down(line: DeploymentPreview) -> DeploymentPreview:
        if line.deployment in mine:
            return line
        reasons = {one: why for one, why in line.reasons.items() if one in own}
        return cut_lists(line, own, "before", "after", "gained", "lost", reasons=reasons)

    cut_lines = (cut_down(line) for line in found.deployments)
    return tuple(line for line in cut_lines if line.deployment in mine or line.before or line.after)


_CHANGE = "chg_0198f0c2a1b37c4e8d5f60718293a4b5"

ROWS = (
    Operation(
        name="changes.propose",
        method="POST",
        path="/changes",
        roles=EDITORS,
        request=NewChange,
        response=ChangeRecord,
        run=propose,
        summary="Lays several edits before a reviewer, to be published together; or keeps them as a draft.",
        example={
            "title": "Offer the notes for research",
            "items": [{"kind": "consent.give", "expert_id": "*", "purpose": "research"}],
        },
    ),
    Operation(
        name="changes.list",
        method="GET",
        path="/changes",
        roles=ANYONE,
        request=ChangeQuery,
        response=ChangePage,
        run=listed,
        summary="Lists changes, newest first.",
        isolated=True,
    ),
    Operation(
        name="changes.show",
        method="GET",
        path="/changes/{change_id}",
        roles=ANYONE,
        request=ChangeId,
        response=ChangeRecord,
        run=show,
        summary="Shows a change with its edits and its digest.",
        tag="version",
        rehearses=True,
        example={"change_id": _CHANGE},
    ),
    Operation(
        name="changes.preview",
        method="GET",
        path="/changes/{change_id}/preview",
        roles=ANYONE,
        request=ChangeId,
        response=Preview,
        run=preview,
        summary="Shows which deployments would gain and lose which experts.",
        rehearses=True,
        example={"change_id": _CHANGE},
    ),
    Operation(
        name="changes.approve",
        method="POST",
        path="/changes/{change_id}/approve",
        roles=EDITORS,
        request=Approval,
        response=Approved,
        run=approve,
        summary="Publishes a change that somebody else drafted, at once or at the moment it names.",
        example={"change_id": _CHANGE, "digest": "sha256:" + "0" * 64},
    ),
    Operation(
        name="changes.reject",
        method="POST",
        path="/changes/{change_id}/reject",
        roles=EDITORS,
        request=Rejection,
        response=ChangeRecord,
        run=reject,
        summary="Closes a change without publishing it.",
        example={"change_id": _CHANGE, "comment": "Name the region."},
    ),
)
