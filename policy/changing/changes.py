# SPDX-License-Identifier: Apache-2.0
"""Widening: propose, preview, approve. Two people, always; the second one signs a digest.

Who may do what (law 10):

=================  ==========================================  =============================================
edit               proposed by                                 approved by somebody else, who is
=================  ==========================================  =============================================
consent, grant,    an owner's principal of the expert's (or    an owner's principal of the same tenant, or
listing            dataset's) own tenant                       compliance
expert.resume      the same, or compliance                     compliance
rule.permit,       compliance                                  compliance or operator
rule.lift,
license.put
tenant.resume      compliance or operator                      compliance or operator
deployment.put     a developer of the deployment's tenant      compliance
=================  ==========================================  =============================================

A change with several edits needs an author and an approver who qualify for every one of them. No setting
switches any of this off. Both must still qualify at the moment of publication, which is that of the approval
or, where the change names one, a later one (see ``schedule``). What is under review never changes: whoever
wants it otherwise closes it and writes another (see ``drafts``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from model_core.packing.ids import check_name, new_id
from policy.changing.approving import Approving
from policy.changing.contents import change_digest, check_form, read_items, write_items
from policy.changing.edits import Edits
from policy.changing.glance import compare
from policy.changing.showing import change_record
from policy.errors import (
    ChangeClosed,
    InvalidChange,
    NotFound,
    NotYetDue,
    NotYours,
)
from policy.facts.snapshot import Snapshot
from policy.guards.authority import Authority
from policy.publishing.decision_log import DecisionLog
from policy.publishing.publication import Publisher
from policy.records.changes import ChangeRecord, Preview
from policy.records.epochs import Publication
from policy.records.items import ChangeItem, DeploymentPut
from policy.tables import ApprovalRow, ChangeRow, PublicationRow
from tenants.roles import PLATFORM_ROLES, Principal


class Changes:
    """The review room, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us
        self._publisher = Publisher(session, now_us)
        self._authority = Authority(session)
        self._edits = Edits(session, now_us)
        self._approving = Approving(session, now_us)

    def propose(
        self,
        principal: Principal,
        title: str,
        items: Sequence[ChangeItem],
        effective_at_us: int | None = None,
        *,
        change_id: str | None = None,
        rolls_back: str | None = None,
    ) -> ChangeRecord:
        """Lays a change before its reviewers. Nothing takes effect.

        Args:
            principal: the author.
            title: what it is for.
            items: the edits.
            effective_at_us: when an approved change is published; None for with its approval.
            change_id: the draft's, where there was one.
            rolls_back: the change that this one undoes.

        Raises:
            InvalidChange: no edits, too many, or edits that contradict the register.
            NotAllowed: the principal's role does not make such edits.
            NotFound: an edit names what does not exist, or what is another tenant's.
        """
        title = check_form(title, items, effective_at_us, self.time_us())
        for item in items:
            if isinstance(item, DeploymentPut):
                check_name(item.name, "deployment")
            self._authority.check_author(principal, item)
            self._edits.check(item)
        document = write_items(items)
        change_id = change_id or new_id("chg")
        row = ChangeRow(
            id=change_id,
            title=title,
            tenant=principal.tenant,
            author_id=principal.id,
            author_name=principal.name,
            items=document.decode(),
            digest=change_digest(change_id, title, principal.id, document, effective_at_us),
            state="proposed",
            created_at_us=self._now_us,
            decided_by=None,
            decided_at_us=None,
            comment="",
            epoch=None,
            stage="",
            effective_at_us=effective_at_us,
            rolls_back=rolls_back,
        )
        self._session.add(row)
        self._session.flush()
        return change_record(row, preview=self.preview(change_id))

    def time_us(self) -> int:
        """The register's time: the clock's, but never before the last publication."""
        last_us = self._session.scalar(select(func.max(PublicationRow.at_us))) or 0
        return max(self._now_us, last_us)

    @contextmanager
    def carried_out(self, items: Sequence[ChangeItem], tenant: str) -> Iterator[Snapshot]:
        """Yields the snapshot that publishing the edits now would freeze, and leaves nothing behind.

        They are carried out by the code that publication uses, looked at, and rolled back.
        """
        savepoint = self._session.begin_nested()
        try:
            epoch = self._publisher.current_epoch() + 1
            for item in items:
                self._edits.apply(item, tenant, epoch, principal_id=None)
            yield self._publisher.draft(widens=True)
        finally:
            savepoint.rollback()

    def preview(self, change_id: str) -> Preview:
        """Says what the change would do to every deployment if it were published now."""
        row = self._row(change_id)
        return self.glance(read_items(row.items), row.tenant)

    def glance(self, items: Sequence[ChangeItem], tenant: str) -> Preview:
        """Says what edits would do to every deployment if they were published now.

        Args:
            items: the edits.
            tenant: whose word they are.
        """
        before = self._publisher.standing().snapshot
        with self.carried_out(items, tenant) as after:
            return compare(before, after, self._now_us)

    def approve(self, change_id: str, digest: str, principal: Principal) -> Publication:
        """Publishes the change as the next epoch.

        Args:
            change_id: which change.
            digest: what the approver read; must be the change's digest.
            principal: somebody else than the author, see the table above.

        Raises:
            SelfApproval: the author approves.
            DigestChanged: the digest is not the change's.
            ChangeClosed: it was decided before.
            NotYetDue: it names a later moment; see ``schedule``.
            NotAllowed: the principal may not approve such edits.
            AuthorityLapsed: the author may no longer propose them.
            NotFound: no such change, or not visible to the principal.
        """
        self._publisher.lock()
        row = self._approvable(change_id, digest, principal)
        if row.effective_at_us is not None and self.time_us() < row.effective_at_us:
            raise NotYetDue(
                "The change names a later moment of publication; schedule it.",
                change_id=change_id,
                effective_at_us=row.effective_at_us,
            )
        return self._publish(row, principal.id, self._now_us)

    def schedule(self, change_id: str, digest: str, principal: Principal) -> ChangeRecord:
        """Approves a change that is published at the moment it names, if it still can be then.

        Raises:
            InvalidChange: it names no moment.
            PolicyError: as ``approve``.
        """
        self._publisher.lock()
        row = self._approvable(change_id, digest, principal)
        if row.effective_at_us is None:
            raise InvalidChange("The change names no moment of publication; approve it.", change_id=change_id)
        for item in read_items(row.items):
            self._edits.check(item)
        self._session.add(
            ApprovalRow(
                change_id=row.id,
                digest=digest,
                principal_id=principal.id,
                principal_name=principal.name,
                at_us=self._now_us,
            )
        )
        row.stage = "scheduled"
        self._session.flush()
        return self.get(row.id, previewed=False)

    def publish_scheduled(self, change_id: str) -> Publication:
        """Publishes a scheduled change whose moment has come, by the word of who approved it.

        Raises:
            PolicyError: it can no longer be published, and why; nothing changed.
        """
        self._publisher.lock()
        row = self._row(change_id)
        approval = self._session.get(ApprovalRow, change_id)
        if approval is None or row.stage != "scheduled" or row.state != "proposed":
            raise ChangeClosed("The change is not scheduled.", change_id=change_id)
        if row.effective_at_us is None or self.time_us() < row.effective_at_us:
            raise NotYetDue("The change's moment has not come.", change_id=change_id)
        self._approving.check_earlier(row, approval)
        return self._publish(row, approval.principal_id, approval.at_us)

    def reject(self, change_id: str, principal: Principal, comment: str) -> ChangeRecord:
        """Closes a change without effect, also a scheduled one. Its author may do so too: that withdraws it.

        Raises:
            ChangeClosed: it was decided before.
            NotAllowed: the principal could neither approve it nor wrote it.
            NotFound: no such change, or not visible to the principal.
        """
        self._publisher.lock()
        row = self._open_row(change_id, principal)
        if principal.id != row.author_id and not principal.has(*PLATFORM_ROLES):
            for item in read_items(row.items):
                self._authority.check_approver(principal, item, row.tenant)
        own = principal.id == row.author_id
        self.close(row.id, "withdrawn" if own else "", comment, principal.id)
        return self.get(change_id, previewed=False)

    def close(self, change_id: str, stage: str, comment: str, principal_id: str | None) -> None:
        """Ends a change that is still open without effect; who may do so is asked elsewhere.

        Args:
            change_id: which change.
            stage: how it ended, where that is more than rejected.
            comment: why, for people.
            principal_id: who ended it; None for the register itself.
        """
        row = self._row(change_id)
        row.state, row.stage, row.comment = "rejected", stage, comment
        row.decided_by, row.decided_at_us = principal_id, self._now_us
        self._session.flush()

    def list(self, state: str | None = None, tenant: str | None = None) -> Records:
        """Changes that were laid before reviewers, newest first."""
        query = select(ChangeRow).order_by(ChangeRow.id.desc())
        if state is not None:
            query = query.where(func.coalesce(func.nullif(ChangeRow.stage, ""), ChangeRow.state) == state)
        if tenant is not None:
            query = query.where(ChangeRow.tenant == tenant)
        return [change_record(row) for row in self._session.scalars(query)]

    def get(self, change_id: str, *, previewed: bool = True) -> ChangeRecord:
        """One change; with the preview while it is open, unless that is not wanted.

        Raises:
            NotFound: no such change.
        """
        row = self._row(change_id)
        shown = self.preview(change_id) if previewed and row.state == "proposed" else None
        return change_record(row, self._session.get(ApprovalRow, change_id), preview=shown)

    def check_open(self, change_id: str, principal: Principal) -> None:
        """Lets changes pass that are not decided, and makes everybody else who would decide wait.

        Raises:
            ChangeClosed: it was decided before.
            NotFound: no such change, or not visible to the principal.
        """
        self._publisher.lock()
        self._open_row(change_id, principal)

    def _row(self, change_id: str) -> ChangeRow:
        row = self._session.get(ChangeRow, change_id)
        if row is None:
            raise NotFound("There is no such change; list the changes.", change_id=change_id)
        return row

    def _open_row(self, change_id: str, principal: Principal) -> ChangeRow:
        row = self._row(change_id)
        if row.tenant != principal.tenant and not principal.has(*PLATFORM_ROLES):
            raise NotYours("There is no such change; list the changes.", change_id=change_id)
        if row.state != "proposed":
            state = row.stage or row.state
            raise ChangeClosed(f"The change was {state} before.", change_id=change_id, state=state)
        return row

    def _approvable(self, change_id: str, digest: str, principal: Principal) -> ChangeRow:
        row = self._open_row(change_id, principal)
        if row.stage:
            raise ChangeClosed(f"The change was {row.stage} before.", change_id=change_id, state=row.stage)
        self._approving.check(row, digest, principal)
        return row

    def _publish(self, row: ChangeRow, approver_id: str, approved_at_us: int) -> Publication:
        epoch = self._publisher.current_epoch() + 1
        for item in read_items(row.items):
            self._edits.check(item)
            self._edits.apply(item, row.tenant, epoch, principal_id=row.author_id)
        row.state, row.stage, row.epoch = "approved", "", epoch
        row.decided_by, row.decided_at_us = approver_id, approved_at_us
        self._session.flush()
        publication = self._publisher.publish(
            reason="change", subject=row.id, principal_id=approver_id, change_id=row.id, widens=True
        )
        DecisionLog(self._session, self._now_us).record_standing(publication.epoch)
        return publication


# Named here because inside the class ``list`` is the method.
Records = list[ChangeRecord]
