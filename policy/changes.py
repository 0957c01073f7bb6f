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
license.put
tenant.resume      compliance or operator                      compliance or operator
deployment.put     a developer of the deployment's tenant      compliance
=================  ==========================================  =============================================

A change with several edits needs an author and an approver who qualify for every one of them. No setting
switches any of this off.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import TypeAdapter
from sqlalchemy import select
from sqlalchemy.orm import Session

from model_core.packing.canonical import canonical_bytes, digest_bytes
from model_core.packing.ids import check_name, new_id
from policy.authority import Authority
from policy.composition import Composition
from policy.decision import Decision
from policy.decision_log import DecisionLog
from policy.edits import Edits
from policy.errors import ChangeClosed, DigestChanged, InvalidChange, NotFound, NotYours, SelfApproval
from policy.items import ChangeItem, DeploymentPut
from policy.publication import Publisher
from policy.reasons import is_denial
from policy.records import ChangeRecord, DeploymentPreview, Preview, Publication
from policy.remembered import remembered
from policy.snapshot import Snapshot
from policy.tables import ChangeRow
from tenants.roles import PLATFORM_ROLES, Principal

MAX_ITEMS = 100

_ITEMS: TypeAdapter[tuple[ChangeItem, ...]] = TypeAdapter(tuple[ChangeItem, ...])


class Changes:
    """The review room, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us
        self._publisher = Publisher(session, now_us)
        self._authority = Authority(session)
        self._edits = Edits(session, now_us)

    def propose(self, principal: Principal, title: str, items: Sequence[ChangeItem]) -> ChangeRecord:
        """Drafts a change. Nothing takes effect.

        Raises:
            InvalidChange: no edits, too many, or edits that contradict the register.
            NotAllowed: the principal's role does not make such edits.
            NotFound: an edit names what does not exist, or what is another tenant's.
        """
        if not title.strip() or not 1 <= len(items) <= MAX_ITEMS:
            raise InvalidChange(f"A change needs a title and between 1 and {MAX_ITEMS} edits.")
        for item in items:
            if isinstance(item, DeploymentPut):
                check_name(item.name, "deployment")
            self._authority.check_author(principal, item)
            self._edits.check(item)
        document = canonical_bytes([item.model_dump(mode="json") for item in items])
        change_id = new_id("chg")
        row = ChangeRow(
            id=change_id,
            title=title.strip(),
            tenant=principal.tenant,
            author_id=principal.id,
            author_name=principal.name,
            items=document.decode(),
            digest=change_digest(change_id, title.strip(), principal.id, document),
            state="proposed",
            created_at_us=self._now_us,
            decided_by=None,
            decided_at_us=None,
            comment="",
            epoch=None,
        )
        self._session.add(row)
        self._session.flush()
        return _record(row, self.preview(change_id))

    def preview(self, change_id: str) -> Preview:
        """Says what the change would do to every deployment if it were published now.

        The change is carried out by the code that publication uses, looked at, and rolled back.
        """
        items = _items(self._row(change_id))
        before = self._publisher.standing().snapshot
        savepoint = self._session.begin_nested()
        try:
            epoch = self._publisher.current_epoch() + 1
            for item in items:
                self._edits.apply(item, self._row(change_id).tenant, epoch, principal_id=None)
            after = self._publisher.draft(widens=True)
        finally:
            savepoint.rollback()
        return _compare(before, after, self._now_us)

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
            NotAllowed: the principal may not approve such edits.
            NotFound: no such change, or not visible to the principal.
        """
        epoch = self._publisher.lock()
        row = self._open_row(change_id, principal)
        if principal.id == row.author_id:
            raise SelfApproval(
                "You proposed this change; somebody else has to approve it.", change_id=change_id
            )
        items = _items(row)
        for item in items:
            self._authority.check_approver(principal, item, row.tenant)
        # Computed anew: a row that somebody edited in the database no longer has the digest it shows.
        actual = change_digest(row.id, row.title, row.author_id, row.items.encode())
        if digest != row.digest or digest != actual:
            raise DigestChanged(
                "The digest is not that of the change; read the change again before approving it.",
                change_id=change_id,
                digest=actual,
            )
        for item in items:
            self._edits.check(item)
            self._edits.apply(item, row.tenant, epoch, principal_id=row.author_id)
        self._decide(row, "approved", principal, "", epoch)
        publication = self._publisher.publish(
            reason="change",
            subject=row.id,
            principal_id=principal.id,
            change_id=row.id,
            widens=True,
        )
        DecisionLog(self._session, self._now_us).record_standing(publication.epoch)
        return publication

    def reject(self, change_id: str, principal: Principal, comment: str) -> ChangeRecord:
        """Closes a change without effect. Its author may do so too: that withdraws it.

        Raises:
            ChangeClosed: it was decided before.
            NotAllowed: the principal could neither approve it nor wrote it.
            NotFound: no such change, or not visible to the principal.
        """
        self._publisher.lock()
        row = self._open_row(change_id, principal)
        if principal.id != row.author_id and not principal.has(*PLATFORM_ROLES):
            for item in _items(row):
                self._authority.check_approver(principal, item, row.tenant)
        self._decide(row, "rejected", principal, comment, None)
        return _record(row)

    def list(self, state: str | None = None, tenant: str | None = None) -> Records:
        """Changes, newest first."""
        query = select(ChangeRow).order_by(ChangeRow.id.desc())
        if state is not None:
            query = query.where(ChangeRow.state == state)
        if tenant is not None:
            query = query.where(ChangeRow.tenant == tenant)
        return [_record(row) for row in self._session.scalars(query)]

    def get(self, change_id: str, *, previewed: bool = True) -> ChangeRecord:
        """One change; with the preview while it is open, unless that is not wanted.

        Raises:
            NotFound: no such change.
        """
        row = self._row(change_id)
        return _record(row, self.preview(change_id) if previewed and row.state == "proposed" else None)

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
            raise ChangeClosed(f"The change was {row.state} before.", change_id=change_id, state=row.state)
        return row

    def _decide(
        self, row: ChangeRow, state: str, principal: Principal, comment: str, epoch: int | None
    ) -> None:
        row.state, row.comment, row.epoch = state, comment, epoch
        row.decided_by, row.decided_at_us = principal.id, self._now_us
        self._session.flush()


# Named here because inside the class ``list`` is the method.
Records = list[ChangeRecord]


def change_digest(change_id: str, title: str, author_id: str, items: bytes) -> str:
    """What an approval signs: the change with its id, so that no approval fits a second one."""
    document = {"id": change_id, "title": title, "author": author_id, "items": json.loads(items)}
    return digest_bytes(canonical_bytes(document))


def _items(row: ChangeRow) -> tuple[ChangeItem, ...]:
    return _ITEMS.validate_json(row.items)


def _record(row: ChangeRow, preview: Preview | None = None) -> ChangeRecord:
    fields = {name: getattr(row, name) for name in ChangeRecord.model_fields if name in row.__table__.columns}
    return ChangeRecord.model_validate({**fields, "items": _items(row), "preview": preview})


def _compare(before: Snapshot, after: Snapshot, at_us: int) -> Preview:
    names = sorted(set(before.deployments_by_name) | set(after.deployments_by_name))
    moment = max(at_us, after.published_at_us)
    # One snapshot after the other: the memory turns from one to the next, and not back and forth.
    olds = {name: _composed(before, name, moment) for name in names}
    news = {name: _composed(after, name, moment) for name in names}
    rows = []
    for name in names:
        old, new = olds[name], news[name]
        had, has = _expert_ids(old), _expert_ids(new)
        rows.append(
            DeploymentPreview(
                deployment=name,
                before=had,
                after=has,
                gained=tuple(sorted(set(has) - set(had))),
                lost=tuple(sorted(set(had) - set(has))),
                reasons=_denials(new),
            )
        )
    return Preview(epoch_base=before.epoch, deployments=tuple(rows))


def _composed(snapshot: Snapshot, name: str, at_us: int) -> Composition | None:
    if name not in snapshot.deployments_by_name:
        return None
    return remembered().compose(snapshot, name, at_us)


def _expert_ids(composition: Composition | None) -> tuple[str, ...]:
    return () if composition is None else tuple(member.expert_id for member in composition.members)


def _denials(composition: Composition | None) -> dict[str, str]:
    if composition is None:
        return {}
    denied = [decision for decision in composition.decisions if decision.verdict == "deny"]
    return {decision.expert_id: _first(decision) for decision in denied}


def _first(decision: Decision) -> str:
    """The sentence of the first reason that denies."""
    return next((one.sentence for one in decision.reasons if is_denial(one)), "")
