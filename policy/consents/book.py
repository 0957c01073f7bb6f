# SPDX-License-Identifier: Apache-2.0
"""The consent book: records with their notices and events, beside the words that decisions rest on.

A record is opened with the first event (asked for, or given at once) and only ever gets more of them. The
words of a record follow each other: a renewal ends the one before or begins where it ends. Words of before
there were records get one with the next thing that happens to them. Knows nothing of who may do what.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, exists, func, or_, select
from sqlalchemy.orm import aliased

from model_core.packing.canonical import canonical_bytes
from model_core.packing.ids import new_id
from policy.consents.reading import ConsentReader, to_notice
from policy.consents.status import VALID, Event, is_valid, may_follow, status_after
from policy.errors import ConsentEventRefused
from policy.guards.authority import unknown
from policy.records.paper import ConsentPaper, Notice, NoticeRecord
from policy.tables import ConsentEventRow, ConsentRow
from policy.tables.consents import ConsentFileEventRow, ConsentFileRow, NoticeRow
from tenants.accounts.database import lock_for_writing


class ConsentBook(ConsentReader):
    """The book, within one unit of work."""

    def keep_notice(self, tenant: str, notice: Notice) -> NoticeRecord:
        """Keeps a notice once; the same words again are the same notice."""
        row = self._session.get(NoticeRow, (tenant, notice.digest))
        if row is None:
            document = canonical_bytes(notice.model_dump(mode="json")).decode()
            row = NoticeRow(tenant=tenant, digest=notice.digest, document=document, at_us=self._now_us)
            self._session.add(row)
            self._session.flush()
        return to_notice(row)

    def request(self, tenant: str, paper: ConsentPaper, principal_id: str) -> str:
        """Opens a record with the question alone; answers its id.

        Args:
            tenant: the owner who is asked.
            paper: what is asked for, and the notice that was shown.
            principal_id: who asks.
        """
        record_id = new_id("crd")
        self._open(record_id, tenant, paper)
        self._append(record_id, tenant, "requested", principal_id, paper=paper)
        return record_id

    def refuse(self, record_id: str, principal_id: str, evidence_ref: str | None = None) -> None:
        """Closes a question with no.

        Raises:
            ConsentEventRefused: the record is not waiting for an answer.
        """
        row = self._row(record_id)
        self._append(record_id, row.tenant, "refused", principal_id, evidence_ref=evidence_ref)

    def note_given(
        self,
        word: ConsentRow,
        paper: ConsentPaper | None,
        principal_id: str,
        epoch: int,
        record_id: str | None = None,
    ) -> None:
        """Writes down that a word was given, as the answer to a question or unasked.

        Raises:
            ConsentEventRefused: the record that it answers waits for none.
            NotFound: no such record of this owner.
        """
        if record_id is None:
            # The first word names the record: whoever holds a consent's id finds its record.
            record_id = word.id
            self._open(record_id, word.tenant, paper)
        elif self._row(record_id).tenant != word.tenant:
            raise unknown("consent record", record_id)
        self._append(record_id, word.tenant, "given", principal_id, paper=paper, word=word, epoch=epoch)

    def note_renewed(
        self, old: ConsentRow, new: ConsentRow, paper: ConsentPaper | None, principal_id: str, epoch: int
    ) -> None:
        """Writes down that another word goes on where one ends."""
        record_id = self._record_of(old)
        self._append(record_id, old.tenant, "renewed", principal_id, paper=paper, word=new, epoch=epoch)

    def end(self, word: ConsentRow, event: Event, principal_id: str, epoch: int) -> None:
        """Takes back a word, with every other word of its record, and writes down how it ended.

        A record that ended otherwise before (its time ran out) keeps that: the words are gone all the same.
        """
        for one in (word, *self._standing_with(word)):
            self.end_word(one, principal_id, epoch)
        if word.effect == "permit":
            record_id = self._record_of(word)
            if may_follow(self._status(record_id), event):
                self._append(record_id, word.tenant, event, principal_id, word=word, epoch=epoch)

    def ended_in(self, word: ConsentRow) -> int | None:
        """The epoch in which the last word of a record ended; None while one of them stands."""
        if word.state == "given" or self._standing_with(word):
            return None
        of_record = select(ConsentFileEventRow.consent_id).where(
            ConsentFileEventRow.record_id == (self._known_record(word.id) or "")
        )
        # A word that was renewed ended before its record did.
        query = select(func.max(ConsentEventRow.epoch)).where(
            ConsentEventRow.event == "withdrawn",
            or_(ConsentEventRow.consent_id == word.id, ConsentEventRow.consent_id.in_(of_record)),
        )
        return self._session.scalar(query)

    def end_word(self, word: ConsentRow, principal_id: str | None, epoch: int) -> None:
        """Takes one word out of the register; a preview, which is rolled back, leaves no event."""
        if word.state == "withdrawn":
            return
        word.state = "withdrawn"
        if principal_id is not None:
            self._session.add(
                ConsentEventRow(
                    consent_id=word.id,
                    n=1,
                    event="withdrawn",
                    at_us=self._now_us,
                    epoch=epoch,
                    principal_id=principal_id,
                )
            )
        self._session.flush()

    def _standing_with(self, word: ConsentRow) -> list[ConsentRow]:
        """The other words of a word's record that are not withdrawn: a renewal that begins later."""
        query = (
            select(ConsentRow)
            .join(ConsentFileEventRow, ConsentFileEventRow.consent_id == ConsentRow.id)
            .where(
                ConsentFileEventRow.record_id == (self._known_record(word.id) or ""),
                ConsentFileEventRow.event.in_(VALID),
                ConsentRow.state == "given",
                ConsentRow.id != word.id,
            )
        )
        return list(self._session.scalars(query.order_by(ConsentRow.id)))

    def note_expired(self, limit: int = 500) -> list[str]:
        """Writes down which consents ran out of time; answers the ids of the words.

        Nothing waits for this: a word ends by itself. It completes the record.
        """
        self._write_alone()
        query = select(ConsentRow).where(
            ConsentRow.state == "given",
            ConsentRow.effect == "permit",
            ConsentRow.valid_until_us <= self._now_us,
            ~_has_event("expired"),
            ~_has_event("invalidated"),
            ~_went_on(),
        )
        noted = []
        for word in self._session.scalars(query.order_by(ConsentRow.valid_until_us).limit(limit)):
            record_id = self._record_of(word)
            if is_valid(self._status(record_id)):
                self._append(record_id, word.tenant, "expired", None, word=word)
                noted.append(word.id)
        return noted

    # -- inside ------------------------------------------------------------------------------------------

    def _write_alone(self) -> None:
        """Waits for whoever else writes into records: where one stands is read after that."""
        lock_for_writing(self._session, "consent_records")

    def _record_of(self, word: ConsentRow) -> str:
        """The record of a word; one from before there were records gets one now, with what is known."""
        self._write_alone()
        known = self._known_record(word.id)
        if known is not None:
            return known
        self._open(word.id, word.tenant, None)
        query = select(ConsentEventRow).where(
            ConsentEventRow.consent_id == word.id, ConsentEventRow.event == "given"
        )
        given = self._session.scalars(query).one_or_none()
        self._session.add(
            ConsentFileEventRow(
                record_id=word.id,
                n=1,
                tenant=word.tenant,
                event="given",
                at_us=word.at_us if given is None else given.at_us,
                principal_id=None if given is None else given.principal_id,
                channel="api",
                consent_id=word.id,
                epoch=None if given is None else given.epoch,
            )
        )
        self._session.flush()
        return word.id

    def _open(self, record_id: str, tenant: str, paper: ConsentPaper | None) -> None:
        if paper is not None and paper.notice_digest is not None:
            self.notice(tenant, paper.notice_digest)
        document = None if paper is None else paper.model_dump(mode="json")
        self._session.add(
            ConsentFileRow(
                record_id=record_id,
                tenant=tenant,
                notice_digest=None if paper is None else paper.notice_digest,
                document=canonical_bytes(document).decode(),
                at_us=self._now_us,
            )
        )
        self._session.flush()

    def _append(
        self,
        record_id: str,
        tenant: str,
        event: Event,
        principal_id: str | None,
        *,
        paper: ConsentPaper | None = None,
        evidence_ref: str | None = None,
        word: ConsentRow | None = None,
        epoch: int | None = None,
    ) -> None:
        self._write_alone()
        events = self._events(record_id)
        status = status_after(one.event for one in events)
        if not may_follow(status, event):
            raise ConsentEventRefused(
                f"The consent record is {status} and cannot be {event} now; read it to see what it allows.",
                record_id=record_id,
                status=status,
                event=event,
            )
        if paper is not None and paper.notice_digest is not None:
            self.notice(tenant, paper.notice_digest)
        self._session.add(
            ConsentFileEventRow(
                record_id=record_id,
                n=len(events) + 1,
                tenant=tenant,
                event=event,
                at_us=self._now_us,
                principal_id=principal_id,
                channel="api" if paper is None else paper.channel,
                notice_digest=None if paper is None else paper.notice_digest,
                evidence_ref=evidence_ref if paper is None else paper.evidence_ref,
                consent_id=None if word is None else word.id,
                epoch=epoch,
            )
        )
        self._session.flush()


def _has_event(event: str) -> ColumnElement[bool]:
    return exists().where(ConsentFileEventRow.consent_id == ConsentRow.id, ConsentFileEventRow.event == event)


def _went_on() -> ColumnElement[bool]:
    """Whether a word's record has a later one: it was renewed, and its own end is not the record's."""
    own, later = aliased(ConsentFileEventRow), aliased(ConsentFileEventRow)
    return exists().where(
        own.consent_id == ConsentRow.id,
        later.record_id == own.record_id,
        later.n > own.n,
        later.event.in_(VALID),
    )
