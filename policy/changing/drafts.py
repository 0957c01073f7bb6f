# SPDX-License-Identifier: Apache-2.0
"""Changes that their author still writes: edited, then laid before reviewers or given up.

Every edit makes the next version and another digest, so no word that was given for one version counts for
another. A draft keeps its id when it goes into review; from then on its content stands, and who wants it
otherwise revises it: that closes the change, with any approval it had, and opens a draft of the same content.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from model_core.packing.ids import new_id
from policy.changing.changes import Changes
from policy.changing.contents import change_digest, check_form, read_items, write_items
from policy.changing.showing import draft_record
from policy.errors import ChangeClosed, NotAllowed, NotFound, NotYours, StaleDraft
from policy.guards.authority import Authority
from policy.records.changes import ChangeRecord, Preview
from policy.records.items import ChangeItem
from policy.tables import DraftRow
from tenants.accounts.database import lock_for_writing
from tenants.roles import PLATFORM_ROLES, Principal


class Drafts:
    """The writing desk of the review room, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us
        self._changes = Changes(session, now_us)
        self._authority = Authority(session)

    def begin(
        self,
        principal: Principal,
        title: str,
        items: Sequence[ChangeItem],
        effective_at_us: int | None = None,
        *,
        revises: str | None = None,
    ) -> ChangeRecord:
        """Writes a draft's first version; nobody is asked to review it.

        Raises:
            InvalidChange: no title, no edits, too many, or a moment that is over.
            NotAllowed: the principal's role does not make such edits.
            NotFound: an edit names what does not exist, or what is another tenant's.
        """
        title = self._check(principal, title, items, effective_at_us)
        document = write_items(items)
        change_id = new_id("chg")
        row = DraftRow(
            id=change_id,
            tenant=principal.tenant,
            author_id=principal.id,
            author_name=principal.name,
            revises=revises,
            created_at_us=self._now_us,
            title=title,
            items=document.decode(),
            digest=change_digest(change_id, title, principal.id, document, effective_at_us),
            effective_at_us=effective_at_us,
            version=1,
            state="draft",
            edited_at_us=self._now_us,
        )
        self._session.add(row)
        self._session.flush()
        return draft_record(row)

    def edit(
        self,
        change_id: str,
        principal: Principal,
        version: int,
        title: str,
        items: Sequence[ChangeItem],
        effective_at_us: int | None = None,
    ) -> ChangeRecord:
        """Writes the next version.

        Args:
            change_id: which draft.
            principal: its author.
            version: the one that was read.
            title: what it is for.
            items: all edits, not only those that are new.
            effective_at_us: when an approved change is published; None for with its approval.

        Raises:
            StaleDraft: another version was written meanwhile.
            ChangeClosed: it is no draft any more.
            NotAllowed, NotFound, InvalidChange: as ``begin``, or somebody else's draft.
        """
        row = self._own(change_id, principal, version)
        row.title = self._check(principal, title, items, effective_at_us)
        document = write_items(items)
        row.items, row.effective_at_us = document.decode(), effective_at_us
        row.digest = change_digest(row.id, row.title, row.author_id, document, effective_at_us)
        row.version, row.edited_at_us = version + 1, self._now_us
        self._session.flush()
        return draft_record(row)

    def submit(self, change_id: str, principal: Principal, version: int) -> ChangeRecord:
        """Lays a draft before its reviewers, under its id.

        Raises:
            StaleDraft: another version was written meanwhile.
            PolicyError: as ``Changes.propose``.
        """
        row = self._own(change_id, principal, version)
        row.state, row.edited_at_us = "submitted", self._now_us
        self._session.flush()
        items = read_items(row.items)
        return self._changes.propose(principal, row.title, items, row.effective_at_us, change_id=row.id)

    def withdraw(self, change_id: str, principal: Principal, comment: str) -> ChangeRecord:
        """Gives up one's own change: a draft, one under review, or one that is scheduled.

        Raises:
            NotAllowed: somebody else wrote it.
            ChangeClosed: it was decided before.
            NotFound: no such change, or not visible to the principal.
        """
        row = self._session.get(DraftRow, change_id)
        if row is not None and row.state == "draft":
            row = self._own(change_id, principal, row.version)
            row.state, row.edited_at_us = "withdrawn", self._now_us
            self._session.flush()
            return draft_record(row)
        self._check_author(change_id, principal)
        return self._changes.reject(change_id, principal, comment)

    def revise(self, change_id: str, principal: Principal) -> ChangeRecord:
        """Closes one's own open change, with any approval it had, and opens a draft of the same content.

        Raises:
            NotAllowed: somebody else wrote it.
            ChangeClosed: it was decided before.
            NotFound: no such change, or not visible to the principal.
        """
        before = self._check_author(change_id, principal)
        self._changes.check_open(change_id, principal)
        moment = before.effective_at_us
        if moment is not None and moment <= self._changes.time_us():
            moment = None
        draft = self.begin(principal, before.title, before.items, moment, revises=change_id)
        self._changes.close(change_id, "revised", f"Revised as {draft.id}.", principal.id)
        return draft

    def preview(self, change_id: str) -> Preview:
        """Says what a draft would do to every deployment if it were published now.

        Raises:
            NotFound: there is no such draft.
        """
        row = self._session.get(DraftRow, change_id)
        if row is None:
            raise NotFound("There is no such draft; list the changes.", change_id=change_id)
        return self._changes.glance(read_items(row.items), row.tenant)

    def list(self, state: str | None = None) -> Records:
        """Drafts that were never laid before reviewers, newest first."""
        query = select(DraftRow).where(DraftRow.state != "submitted").order_by(DraftRow.id.desc())
        if state is not None:
            query = query.where(DraftRow.state == state)
        return [draft_record(row) for row in self._session.scalars(query)]

    def find(self, change_id: str) -> ChangeRecord | None:
        """A draft, or None where there is none of this id or it went into review."""
        row = self._session.get(DraftRow, change_id)
        return None if row is None or row.state == "submitted" else draft_record(row)

    def _check(
        self, principal: Principal, title: str, items: Sequence[ChangeItem], effective_at_us: int | None
    ) -> str:
        checked = check_form(title, items, effective_at_us, self._changes.time_us())
        for item in items:
            self._authority.check_author(principal, item)
        return checked

    def _check_author(self, change_id: str, principal: Principal) -> ChangeRecord:
        record = self._changes.get(change_id, previewed=False)
        if record.author_id != principal.id:
            _refuse_stranger(change_id, record.tenant, principal)
        return record

    def _own(self, change_id: str, principal: Principal, version: int) -> DraftRow:
        lock_for_writing(self._session, f"draft:{change_id}")
        row = self._session.get(DraftRow, change_id, populate_existing=True)
        if row is None:
            raise NotFound("There is no such draft; list the changes.", change_id=change_id)
        if row.author_id != principal.id:
            _refuse_stranger(change_id, row.tenant, principal)
        if row.state != "draft":
            raise ChangeClosed(
                f"The draft was {row.state} before; revise the change instead.",
                change_id=change_id,
                state=row.state,
            )
        if row.version != version:
            raise StaleDraft(
                f"The draft is at version {row.version} by now; read it again and repeat your edit.",
                change_id=change_id,
                version=row.version,
            )
        return row


# Named here because inside the class ``list`` is the method.
Records = list[ChangeRecord]


def _refuse_stranger(change_id: str, tenant: str, principal: Principal) -> None:
    if tenant != principal.tenant and not principal.has(*PLATFORM_ROLES):
        raise NotYours("There is no such change; list the changes.", change_id=change_id)
    raise NotAllowed("Only its author edits, submits, revises or withdraws a change.", change_id=change_id)
