# SPDX-License-Identifier: Apache-2.0
"""Rows of changes and of drafts as the one document that people read. Knows nothing of who may read it."""

from __future__ import annotations

from policy.changing.contents import read_items
from policy.epochs.reading import columns_for
from policy.records.changes import ApprovalRecord, ChangeRecord, Preview
from policy.tables import ApprovalRow, ChangeRow, DraftRow


def change_record(
    row: ChangeRow, approval: ApprovalRow | None = None, *, preview: Preview | None = None
) -> ChangeRecord:
    """A change that was laid before reviewers.

    Args:
        row: the change.
        approval: the word that it waits with, where it is scheduled.
        preview: what it would do, where that is wanted.
    """
    fields = columns_for(ChangeRecord, row)
    said = None
    if approval is not None:
        said = ApprovalRecord(
            principal_id=approval.principal_id, name=approval.principal_name, at_us=approval.at_us
        )
    more = {"state": row.stage or row.state, "approval": said, "preview": preview}
    return ChangeRecord.model_validate({**fields, "items": read_items(row.items), **more})


def draft_record(row: DraftRow) -> ChangeRecord:
    """A draft that no reviewer has seen; what is decided of changes is still open."""
    return ChangeRecord(
        id=row.id,
        title=row.title,
        tenant=row.tenant,
        author_id=row.author_id,
        author_name=row.author_name,
        items=read_items(row.items),
        digest=row.digest,
        state="draft" if row.state == "draft" else "withdrawn",
        created_at_us=row.created_at_us,
        decided_by=None,
        decided_at_us=None,
        comment="",
        epoch=None,
        effective_at_us=row.effective_at_us,
        revises=row.revises,
        version=row.version,
    )
