# SPDX-License-Identifier: Apache-2.0
"""Reads the consent book: records, notices, questions that wait, and what ends soon. Writes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from policy.consents.records import ConsentFile, Expiring, FileEvent
from policy.consents.status import VALID, Status, is_valid, status_after
from policy.epochs.reading import to_fact
from policy.facts.snapshot import ConsentFact
from policy.guards.authority import unknown
from policy.records.paper import ConsentPaper, NoticeRecord
from policy.tables import ConsentEventRow, ConsentRow
from policy.tables.consents import ConsentFileEventRow, ConsentFileRow, NoticeRow

_ORDER = (ConsentFileEventRow.record_id, ConsentFileEventRow.n)


class ConsentReader:
    """What can be read of the book, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us

    def notice(self, tenant: str, digest: str) -> NoticeRecord:
        """One notice of a tenant.

        Raises:
            NotFound: the tenant keeps no such notice.
        """
        row = self._session.get(NoticeRow, (tenant, digest))
        if row is None:
            raise unknown("notice", digest)
        return to_notice(row)

    def notices(self, tenant: str | None = None) -> list[NoticeRecord]:
        """Notices, oldest first; of one tenant, or of all with None."""
        query = select(NoticeRow).order_by(NoticeRow.at_us, NoticeRow.tenant, NoticeRow.digest)
        if tenant is not None:
            query = query.where(NoticeRow.tenant == tenant)
        return [to_notice(row) for row in self._session.scalars(query)]

    def file(self, any_id: str) -> ConsentFile:
        """The record of a consent, by its own id or by that of one of its words.

        Raises:
            NotFound: there is no such consent.
        """
        row = self._session.get(ConsentFileRow, self._known_record(any_id) or any_id)
        if row is None:
            return self._of_word(any_id)
        events = self._events(row.record_id)
        words = self._words([one.consent_id for one in events if one.consent_id])
        notices = [one.notice_digest for one in events if one.notice_digest]
        ends_us = words[-1].valid_until_us if words else None
        status = self._shown(status_after(one.event for one in events), ends_us)
        return ConsentFile(
            record_id=row.record_id,
            tenant=row.tenant,
            paper=_paper(row.document),
            notice=self.notice(row.tenant, notices[-1]) if notices else None,
            events=tuple(to_fact(FileEvent, one) for one in events),
            words=tuple(to_fact(ConsentFact, word) for word in words),
            status=status,
            valid=is_valid(status),
            ends_us=ends_us,
            at_us=row.at_us,
        )

    def standings(self, words: Sequence[ConsentRow]) -> dict[str, tuple[str, Status]]:
        """The record of each word and where it stands, by the word's id."""
        of = ConsentFileEventRow.consent_id.in_([word.id for word in words])
        known = select(ConsentFileEventRow.consent_id, ConsentFileEventRow.record_id).where(of).distinct()
        records = {str(word): record for word, record in self._session.execute(known)}
        events: dict[str, list[str]] = {record: [] for record in records.values()}
        query = select(ConsentFileEventRow.record_id, ConsentFileEventRow.event)
        query = query.where(ConsentFileEventRow.record_id.in_(events))
        for record, event in self._session.execute(query.order_by(*_ORDER)):
            events[record].append(event)
        found: dict[str, tuple[str, Status]] = {}
        for word in words:
            record = records.get(word.id, word.id)
            status = status_after(events[record] if record in events else _bare_events(word))
            found[word.id] = (record, self._shown(status, word.valid_until_us))
        return found

    def requests(self, tenant: str | None = None) -> list[ConsentFile]:
        """Records that wait for an answer, oldest first."""
        query = select(ConsentFileRow.record_id).order_by(ConsentFileRow.at_us, ConsentFileRow.record_id)
        query = query.where(
            ~exists().where(
                ConsentFileEventRow.record_id == ConsentFileRow.record_id,
                ConsentFileEventRow.event.not_in(("requested", "refused")),
            )
        )
        if tenant is not None:
            query = query.where(ConsentFileRow.tenant == tenant)
        files = [self.file(record_id) for record_id in self._session.scalars(query)]
        return [one for one in files if one.status == "requested"]

    def expiring(self, within_us: int, tenant: str | None = None) -> list[Expiring]:
        """Permissions whose last word ends within a time, the next to end first."""
        query = select(ConsentRow).where(
            ConsentRow.state == "given",
            ConsentRow.effect == "permit",
            ConsentRow.valid_until_us > self._now_us,
            ConsentRow.valid_until_us <= self._now_us + within_us,
        )
        if tenant is not None:
            query = query.where(ConsentRow.tenant == tenant)
        found = []
        for word in self._session.scalars(query.order_by(ConsentRow.valid_until_us, ConsentRow.id)):
            record_id = self._known_record(word.id) or word.id
            last = self._last_word(record_id)
            if last is None or last.consent_id == word.id:
                left_us = (word.valid_until_us or 0) - self._now_us
                fact = to_fact(ConsentFact, word).model_dump()
                found.append(Expiring(**fact, record_id=record_id, left_us=left_us))
        return found

    # -- inside ------------------------------------------------------------------------------------------

    def _of_word(self, consent_id: str) -> ConsentFile:
        """The record of a word that was given before there were records, made up from its history."""
        word = self._session.get(ConsentRow, consent_id)
        if word is None or word.effect != "permit":
            raise unknown("consent", consent_id)
        query = select(ConsentEventRow).where(ConsentEventRow.consent_id == consent_id)
        events = tuple(
            FileEvent(
                n=number,
                event=row.event,
                at_us=row.at_us,
                principal_id=row.principal_id,
                channel="api",
                consent_id=consent_id,
                epoch=row.epoch,
            )
            for number, row in enumerate(self._session.scalars(query.order_by(ConsentEventRow.n)), 1)
        )
        status = self._shown(status_after(one.event for one in events), word.valid_until_us)
        return ConsentFile(
            record_id=consent_id,
            tenant=word.tenant,
            paper=None,
            notice=None,
            events=events,
            words=(to_fact(ConsentFact, word),),
            status=status,
            valid=is_valid(status),
            ends_us=word.valid_until_us,
            at_us=word.at_us,
        )

    def _events(self, record_id: str) -> Sequence[ConsentFileEventRow]:
        query = select(ConsentFileEventRow).where(ConsentFileEventRow.record_id == record_id)
        return self._session.scalars(query.order_by(ConsentFileEventRow.n)).all()

    def _status(self, record_id: str) -> Status:
        return status_after(one.event for one in self._events(record_id))

    def _shown(self, status: Status, ends_us: int | None) -> Status:
        over = ends_us is not None and ends_us <= self._now_us
        return "expired" if over and is_valid(status) else status

    def _last_word(self, record_id: str) -> ConsentFileEventRow | None:
        query = select(ConsentFileEventRow).where(
            ConsentFileEventRow.record_id == record_id,
            ConsentFileEventRow.event.in_(VALID),
        )
        return self._session.scalars(query.order_by(ConsentFileEventRow.n.desc()).limit(1)).one_or_none()

    def _known_record(self, consent_id: str) -> str | None:
        query = select(ConsentFileEventRow.record_id).where(ConsentFileEventRow.consent_id == consent_id)
        return self._session.scalar(query.limit(1))

    def _row(self, record_id: str) -> ConsentFileRow:
        row = self._session.get(ConsentFileRow, record_id)
        if row is None:
            raise unknown("consent record", record_id)
        return row

    def _words(self, ids: Sequence[str]) -> list[ConsentRow]:
        words = self._session.scalars(select(ConsentRow).where(ConsentRow.id.in_(ids)))
        return sorted(words, key=lambda word: (word.valid_from_us, word.id))


def to_notice(row: NoticeRow) -> NoticeRecord:
    """A notice as it is handed out."""
    return NoticeRecord(**json.loads(row.document), id=row.digest, tenant=row.tenant, at_us=row.at_us)


def _paper(document: str) -> ConsentPaper | None:
    fields = json.loads(document)
    if fields is None:
        return None
    return ConsentPaper.model_validate({k: v for k, v in fields.items() if k in ConsentPaper.model_fields})


def _bare_events(word: ConsentRow) -> tuple[str, ...]:
    """What the word itself says of its life, where no record was kept."""
    return ("given",) if word.state == "given" else ("given", "withdrawn")
