# SPDX-License-Identifier: Apache-2.0
"""Changes under review and published, their previews and approvals, stops and the way back."""

from __future__ import annotations

from typing import Literal

from policy.records.epochs import Publication
from policy.records.items import ChangeItem
from policy.records.record import Record


class DeploymentPreview(Record):
    """What a change does to one deployment, by expert id; ``reasons`` says why the others stay out."""

    deployment: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    reasons: dict[str, str]


class Preview(Record):
    """What a change would do if it were published now."""

    epoch_base: int
    deployments: tuple[DeploymentPreview, ...]


ChangeState = Literal[
    "draft", "proposed", "scheduled", "approved", "rejected", "withdrawn", "revised", "failed"
]


class ApprovalRecord(Record):
    """Who approved a change that is published later, and when."""

    principal_id: str
    name: str
    at_us: int


class ChangeRecord(Record):
    """A draft of edits and where it stands; ``digest`` is what an approval must name.

    ``proposed`` is under review, ``scheduled`` approved for a later moment, ``approved`` published. What is
    ``failed`` could not be published any more when its moment came, and ``comment`` says why.
    """

    id: str
    title: str
    tenant: str
    author_id: str
    author_name: str
    items: tuple[ChangeItem, ...]
    digest: str
    state: ChangeState
    created_at_us: int
    decided_by: str | None
    decided_at_us: int | None
    comment: str
    epoch: int | None
    preview: Preview | None = None
    effective_at_us: int | None = None
    approval: ApprovalRecord | None = None
    rolls_back: str | None = None
    revises: str | None = None
    version: int = 1


StopKind = Literal["expert", "tenant", "deployment", "license", "purpose"]


class StopRecord(Record):
    """An emergency stop. ``in_force`` says whether its subject is still out of use, whoever signed.

    ``fact_id`` names the fact that stops: a rule, a license's version, or the subject itself.
    """

    id: str
    kind: StopKind
    subject: str
    tenant: str | None
    fact_id: str
    reason: str
    principal_id: str
    principal_name: str
    at_us: int
    epoch: int
    second_signature_due_at_us: int
    signed_by: str | None
    signed_at_us: int | None
    state: Literal["awaits_signature", "overdue", "signed"]
    in_force: bool


class RollbackRecord(Record):
    """What undid a change: epochs that narrowed at once, and a change that somebody else approves."""

    rolls_back: str
    publications: tuple[Publication, ...]
    change: ChangeRecord | None
