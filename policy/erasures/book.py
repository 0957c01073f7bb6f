# SPDX-License-Identifier: Apache-2.0
"""The room of erasure: asked for by one person, approved by another, done copy by copy, recorded and signed.

Approving publishes an epoch at once: an expert that is erased serves nowhere from then on, for ever. What
lies on disks goes afterwards, each copy by itself, so that whatever interrupts it can be taken up again: a
copy that is found gone is written down as gone. This room writes books and removes nothing itself.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from model_core.packing.canonical import canonical_bytes
from model_core.packing.ids import new_id
from model_core.packing.keys import SigningKey
from policy.consents.reading import ConsentReader
from policy.consents.receipts import ERASURE, SignedReceipt, sign_receipt
from policy.epochs.reading import columns_for
from policy.erasures.copies import copies_of
from policy.erasures.holds import Holds
from policy.erasures.notifications import Notifications
from policy.erasures.records import Copy, Erasure, Outcome, SubjectKind
from policy.errors import ErasureClosed, InvalidChange, NotAllowed, SelfApproval
from policy.guards.authority import unknown
from policy.publishing.decision_log import DecisionLog
from policy.publishing.publication import Publisher
from policy.tables import ErasureEventRow, ErasureRow, ExpertDatasetRow, ExpertRow
from tenants.accounts.database import lock_for_writing
from tenants.accounts.tables import DatasetRow
from tenants.roles import Principal, Role

SCHEMA_VERSION = "erasure/1"
_ORDERED = "Please erase your copies of it, and acknowledge that you did."


class Erasures:
    """The room of erasure, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us

    def request(self, kind: SubjectKind, subject_id: str, reason: str, principal: Principal) -> Erasure:
        """Asks for something to be erased. Nothing happens to it yet.

        Raises:
            NotFound: there is no such thing, or it is another tenant's.
            NotAllowed: the principal is neither its owner nor of compliance.
            InvalidChange: its erasure was asked for before.
        """
        tenant = self._owner(kind, subject_id)
        if principal.tenant != tenant and not principal.has(Role.COMPLIANCE):
            raise unknown(kind, subject_id)
        if not principal.has(Role.OWNER, Role.COMPLIANCE):
            raise NotAllowed("To ask for an erasure a key needs the role owner or compliance.")
        lock_for_writing(self._session, "erasures")
        open_one = select(ErasureRow.id).where(
            ErasureRow.subject_kind == kind,
            ErasureRow.subject_id == subject_id,
            ErasureRow.state != "rejected",
        )
        known = self._session.scalar(open_one.limit(1))
        if known is not None:
            raise InvalidChange("Its erasure was asked for before; read that one.", erasure_id=known)
        row = ErasureRow(
            id=new_id("ers"),
            tenant=tenant,
            subject_kind=kind,
            subject_id=subject_id,
            reason=reason,
            requested_by=principal.id,
            requested_at_us=self._now_us,
            state="requested",
            decided_by=None,
            decided_at_us=None,
            epoch=None,
            completed_at_us=None,
            record=None,
        )
        self._session.add(row)
        self._session.flush()
        return self.get(row.id)

    def preview(self, erasure_id: str) -> list[Copy]:
        """Every copy that is known now, before anybody decides."""
        return copies_of(self._session, self._row(erasure_id))

    def approve(self, erasure_id: str, principal: Principal) -> Erasure:
        """Takes it out of service for ever, and lists every copy that is to go.

        Raises:
            SelfApproval: whoever asked approves.
            NotAllowed: the principal is neither another owner of the tenant nor of compliance.
            LegalHold: somebody ordered that it is kept.
            ErasureClosed: it was decided before.
        """
        publisher = Publisher(self._session, self._now_us)
        publisher.lock()
        row = self._open(erasure_id, principal)
        if principal.id == row.requested_by:
            raise SelfApproval("You asked for this erasure; somebody else has to approve it.", id=row.id)
        self.check_not_held(self._erasure(row))
        copies = copies_of(self._session, row)
        if row.subject_kind == "expert":
            self._session.get_one(ExpertRow, row.subject_id).state = "erased"
        self._session.flush()
        published = publisher.publish(reason="erasure.approve", subject=row.id, principal_id=principal.id)
        DecisionLog(self._session, self._now_us).record_standing(published.epoch)
        row.state, row.decided_by, row.decided_at_us = "approved", principal.id, self._now_us
        row.epoch = published.epoch
        self._session.flush()
        for copy in copies:
            self.note(row.id, copy)
        return self.get(row.id)

    def reject(self, erasure_id: str, principal: Principal) -> Erasure:
        """Closes a request without effect; whoever asked may do so too.

        Raises:
            NotAllowed: the principal could not have approved it and did not ask for it.
            ErasureClosed: it was decided before.
        """
        Publisher(
            self._session, self._now_us
        ).lock()  # as approving does: whoever comes second finds it closed
        row = self._open(erasure_id, principal)
        row.state, row.decided_by, row.decided_at_us = "rejected", principal.id, self._now_us
        self._session.flush()
        return self.get(row.id)

    def check_not_held(self, erasure: Erasure) -> None:
        """Lets pass what nobody ordered to keep, lineage included.

        Raises:
            LegalHold: somebody did.
        """
        subjects = [(erasure.subject_kind, erasure.subject_id)]
        if erasure.subject_kind == "expert":
            query = select(ExpertDatasetRow.dataset_id).where(
                ExpertDatasetRow.expert_id == erasure.subject_id
            )
            subjects += [("dataset", dataset_id) for dataset_id in self._session.scalars(query)]
        Holds(self._session, self._now_us).check_none(erasure.tenant, *subjects)

    def approved(self) -> list[str]:
        """Erasures that are not completed, oldest first."""
        query = select(ErasureRow.id).where(ErasureRow.state == "approved").order_by(ErasureRow.id)
        return list(self._session.scalars(query))

    def note(self, erasure_id: str, copy: Copy, outcome: Outcome | None = None, **facts: Any) -> None:
        """Writes down what became of a copy; with no outcome what is known of it."""
        row = self._row(erasure_id)
        count = select(func.count()).where(ErasureEventRow.erasure_id == erasure_id)
        self._session.add(
            ErasureEventRow(
                erasure_id=erasure_id,
                n=(self._session.scalar(count) or 0) + 1,
                tenant=row.tenant,
                kind=copy.kind,
                place=copy.place,
                outcome=outcome or copy.outcome,
                facts=canonical_bytes({**copy.facts, **facts}).decode(),
                at_us=self._now_us,
            )
        )
        self._session.flush()

    def tell(self, erasure_id: str, copy: Copy) -> None:
        """Tells a recipient, once (GDPR, article 19)."""
        row = self._row(erasure_id)
        body = {
            "erasure": row.id,
            "subject": f"{row.subject_kind}/{row.subject_id}",
            "because": copy.facts.get("because", []),
            "sentence": _ORDERED,
        }
        told = Notifications(self._session, self._now_us).tell(copy.place, "erasure", row.id, body)
        self.note(erasure_id, copy, "named", notification=told)

    def complete(self, erasure_id: str, key: SigningKey) -> Erasure:
        """Signs what became of every copy, once nothing is left to do.

        Raises:
            ErasureClosed: something is left, or it was completed before.
        """
        row, found = self._row(erasure_id), self.get(erasure_id)
        if row.state != "approved" or not all(copy.done for copy in found.copies):
            raise ErasureClosed("Something is left to do, or all is done; read the erasure.", id=row.id)
        ended = found.model_copy(update={"completed_at_us": self._now_us})
        signed = sign_receipt(self._document(ended), key).model_dump_json()
        row.state, row.completed_at_us, row.record = "completed", self._now_us, signed
        self._session.flush()
        return self.get(erasure_id)

    def record(self, erasure_id: str) -> SignedReceipt:
        """The signed record of what was erased.

        Raises:
            ErasureClosed: it is not completed.
        """
        row = self._row(erasure_id)
        if row.record is None:
            raise ErasureClosed("The erasure is not completed; read what is left to do.", id=row.id)
        return SignedReceipt.model_validate_json(row.record)

    def get(self, erasure_id: str) -> Erasure:
        """One erasure with every copy.

        Raises:
            NotFound: there is no such erasure.
        """
        return self._erasure(self._row(erasure_id))

    def list(self, tenant: str | None = None) -> Found:
        """Erasures, newest first; of one tenant, or of all with None."""
        query = select(ErasureRow).order_by(ErasureRow.id.desc())
        if tenant is not None:
            query = query.where(ErasureRow.tenant == tenant)
        return [self._erasure(row) for row in self._session.scalars(query)]

    def _document(self, found: Erasure) -> dict[str, Any]:
        told = {one.id: one for one in Notifications(self._session, self._now_us).list(object_=found.id)}
        recipients = [
            {
                "tenant": copy.place,
                "because": copy.facts.get("because", []),
                "told_at_us": told[copy.facts["notification"]].at_us,
                "acknowledged_at_us": told[copy.facts["notification"]].acknowledged_at_us,
            }
            for copy in found.copies
            if copy.kind == "recipient"
        ]
        return {
            "kind": ERASURE,
            "receipt_id": found.id,
            "schema_version": SCHEMA_VERSION,
            **found.model_dump(mode="json", exclude={"id", "copies", "state"}),
            "copies": [
                copy.model_dump(mode="json")
                for copy in found.copies
                if copy.kind not in {"recipient", "residual"}
            ],
            "recipients": recipients,
            "residual_influence": [
                {"where": copy.place, **copy.facts} for copy in found.copies if copy.kind == "residual"
            ],
        }

    def _erasure(self, row: ErasureRow) -> Erasure:
        query = select(ErasureEventRow).where(ErasureEventRow.erasure_id == row.id)
        copies: dict[tuple[str, str], Copy] = {}
        for event in self._session.scalars(query.order_by(ErasureEventRow.n)):
            copies[event.kind, event.place] = Copy.model_validate(
                {
                    "kind": event.kind,
                    "place": event.place,
                    "outcome": event.outcome,
                    "facts": json.loads(event.facts),
                    "at_us": event.at_us,
                }
            )
        return Erasure.model_validate({**columns_for(Erasure, row), "copies": tuple(copies.values())})

    def _row(self, erasure_id: str) -> ErasureRow:
        row = self._session.get(ErasureRow, erasure_id)
        if row is None:
            raise unknown("erasure", erasure_id)
        return row

    def _open(self, erasure_id: str, principal: Principal) -> ErasureRow:
        row = self._row(erasure_id)
        if principal.tenant != row.tenant and not principal.has(Role.COMPLIANCE):
            raise unknown("erasure", erasure_id)
        if not principal.has(Role.OWNER, Role.COMPLIANCE):
            raise NotAllowed("Erasures are decided by another owner of the tenant or by compliance.")
        if row.state != "requested":
            raise ErasureClosed(f"The erasure was {row.state} before.", id=row.id, state=row.state)
        return row

    def _owner(self, kind: SubjectKind, subject_id: str) -> str:
        if kind == "personal_data":
            return ConsentReader(self._session, self._now_us).file(subject_id).tenant
        found: ExpertRow | DatasetRow | None
        if kind == "expert":
            found = self._session.get(ExpertRow, subject_id)
        else:
            found = self._session.get(DatasetRow, subject_id)
        if found is None:
            raise unknown(kind, subject_id)
        return found.tenant


# Named here because inside the class ``list`` is the method.
Found = list[Erasure]
