# SPDX-License-Identifier: Apache-2.0
"""Changes and epochs: edits on their way to publication, and what was published.

How a change is written before anybody reviews it stands in ``cluster.operations.drafting``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cluster.errors import RoleRequired
from cluster.operations.scope import check_visible, cut, sees_everything, tenant_scope, unknown
from cluster.operations.table import ANYONE, Answer, Nothing, Operation, Page, Request
from policy.errors import NotFound
from policy.facts.snapshot import Snapshot
from policy.records.changes import ChangeRecord, ChangeState, DeploymentPreview, Preview
from policy.records.epochs import AcknowledgementRecord, ServerRecord
from policy.records.items import ChangeItem
from tenants.roles import Principal, Role

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


class EpochNumber(Request):
    """Which epoch."""

    epoch: int = Field(ge=0, lt=2**31)


class EpochView(Answer):
    """What is in force now."""

    epoch: int
    snapshot_digest: str
    published_at_us: int
    engine_version: str
    vocabulary_version: str


class Acknowledgements(Answer):
    """Which servers run what an epoch permits, and where every server stands."""

    epoch: int
    items: tuple[AcknowledgementRecord, ...]
    servers: tuple[ServerRecord, ...]


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
    return cut_change(desk, principal, visible_change(desk, principal, request.change_id))


def preview(desk: Desk, principal: Principal, request: ChangeId) -> Preview:
    """What the change would do now."""
    record = visible_change(desk, principal, request.change_id, previewed=False)
    if record.state == "draft":
        return _cut_preview(desk, principal, desk.drafts.preview(record.id))
    return _cut_preview(desk, principal, desk.register.preview(record.id))


def approve(desk: Desk, principal: Principal, request: Approval) -> Approved:
    """Publishes a change, or lets it wait for its moment."""
    record = visible_change(desk, principal, request.change_id, previewed=False)
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
    record = visible_change(desk, principal, request.change_id, previewed=False)
    return desk.register.reject(record.id, principal, request.comment)


def current_epoch(desk: Desk, principal: Principal, request: Nothing) -> EpochView:
    """The epoch in force."""
    del principal, request
    return _epoch_view(desk.register.snapshot(None))


def snapshot(desk: Desk, principal: Principal, request: EpochNumber) -> Snapshot:
    """Every fact of an epoch."""
    if not sees_everything(principal):
        raise RoleRequired(
            "A snapshot holds every tenant's facts. Ask the platform's compliance staff or its auditors.",
            operation="epochs.snapshot",
        )
    return desk.register.snapshot(request.epoch)


def acknowledgements(desk: Desk, principal: Principal, request: EpochNumber) -> Acknowledgements:
    """Who runs an epoch."""
    del principal
    return Acknowledgements(
        epoch=request.epoch,
        items=tuple(desk.register.acknowledgements(request.epoch)),
        servers=tuple(desk.register.servers()),
    )


def visible_change(
    desk: Desk, principal: Principal, change_id: str, *, previewed: bool = True
) -> ChangeRecord:
    """A change or draft that the principal may see.

    Raises:
        UnknownObject: there is none, or it is another tenant's.
    """
    try:
        record = desk.drafts.find(change_id) or desk.register.change(change_id, previewed=previewed)
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
        kept = {
            name: tuple(one for one in getattr(line, name) if one in own)
            for name in ("before", "after", "gained", "lost")
        }
        reasons = {one: why for one, why in line.reasons.items() if one in own}
        return line.model_copy(update={**kept, "reasons": reasons})

    cut_lines = (cut_down(line) for line in found.deployments)
    return tuple(line for line in cut_lines if line.deployment in mine or line.before or line.after)


def _epoch_view(found: Snapshot) -> EpochView:
    return EpochView(
        epoch=found.epoch,
        snapshot_digest=found.digest,
        published_at_us=found.published_at_us,
        engine_version=found.engine_version,
        vocabulary_version=found.vocabulary_version,
    )


_DRAFTS = frozenset({Role.OWNER, Role.DEVELOPER, Role.COMPLIANCE, Role.OPERATOR})
_REVIEWS = frozenset({Role.OWNER, Role.DEVELOPER, Role.COMPLIANCE, Role.OPERATOR})
_CHANGE = "chg_0198f0c2a1b37c4e8d5f60718293a4b5"

ROWS = (
    Operation(
        name="changes.propose",
        method="POST",
        path="/changes",
        roles=_DRAFTS,
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
        roles=_REVIEWS,
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
        roles=_REVIEWS,
        request=Rejection,
        response=ChangeRecord,
        run=reject,
        summary="Closes a change without publishing it.",
        example={"change_id": _CHANGE, "comment": "Name the region."},
    ),
    Operation(
        name="epochs.current",
        method="GET",
        path="/epochs/current",
        roles=ANYONE,
        request=Nothing,
        response=EpochView,
        run=current_epoch,
        summary="Says which epoch is in force, with its digest.",
    ),
    Operation(
        name="epochs.snapshot",
        method="GET",
        path="/epochs/{epoch}/snapshot",
        roles=frozenset({Role.OPERATOR, Role.COMPLIANCE, Role.AUDITOR}),
        request=EpochNumber,
        response=Snapshot,
        run=snapshot,
        summary="Gives every fact of a published epoch.",
        example={"epoch": 1},
    ),
    Operation(
        name="epochs.acknowledgements",
        method="GET",
        path="/epochs/{epoch}/acknowledgements",
        roles=ANYONE,
        request=EpochNumber,
        response=Acknowledgements,
        run=acknowledgements,
        summary="Says which servers run what an epoch permits.",
        example={"epoch": 1},
    ),
)
