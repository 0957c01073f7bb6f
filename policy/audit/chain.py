# SPDX-License-Identifier: Apache-2.0
"""The audit chain: every act is a record that names the digest of the one before it.

A record's leaf is SHA-256 of 0x00 and its canonical JSON, in which the previous leaf stands; editing,
deleting, inserting or reordering breaks the chain at a record that verification names. Cutting off the tail
or rewriting everything can only be seen against a **checkpoint**, a signed (length, head) kept elsewhere.
Verification needs the records alone and works offline; ``Audit.verify`` also holds every stored row against
the seals (``policy.audit``). It does not know what the acts mean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from model_core.errors import ProductError
from model_core.packing.canonical import canonical_bytes
from model_core.packing.keys import SigningKey, verify_signature
from policy.audit.notes import Note, write_note
from policy.audit.recomputing import recompute
from policy.audit.reporting import UNPROVEN, with_rows
from policy.audit.verifying import stored_root, verify_rows
from policy.records.audit import AuditRecord, AuditReport, Checkpoint
from policy.tables import AuditRow
from tenants.accounts.database import lock_for_writing
from tenants.accounts.scope import whole_register

ORIGIN: Final = "sha256:" + "0" * 64

_SENTENCES: Final = {
    "missing_or_inserted": "a record is missing before it, or it was put in",
    "link": "it does not name the record before it",
    "content": "it was changed after it was chained",
    "checkpoint_signature": "its signature is not by a key that is trusted here",
    "truncated": "records that it counts are missing at the end",
    "rewritten": "the records are not those that it signed",
}


class Audit:
    """The audit room, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us

    def append(self, actor: str, action: str, object_: str, facts: dict[str, Any]) -> AuditRecord:
        """Chains one act.

        Args:
            actor: id of the principal, or ``platform``.
            action: dotted word, as ``consent.withdraw``.
            object_: id of what was acted on.
            facts: JSON-able details; digests and ids, no personal data, prompts or secrets.
        """
        lock_for_writing(self._session, "audit")  # the next link is known only once this one is committed
        last = self._last()
        seq = 1 if last is None else last.seq + 1
        prev_hash = ORIGIN if last is None else last.leaf_hash
        row = AuditRow(
            seq=seq,
            at_us=self._now_us,
            actor=actor,
            action=action,
            object=object_,
            facts=canonical_bytes(facts).decode(),
            prev_hash=prev_hash,
            leaf_hash="",
        )
        row.leaf_hash = leaf_hash(_record(row))
        self._session.add(row)
        self._session.flush()
        return _record(row)

    def records(self, after: int = 0, limit: int = 100) -> list[AuditRecord]:
        """Records with a higher sequence number, oldest first."""
        query = select(AuditRow).where(AuditRow.seq > after).order_by(AuditRow.seq).limit(limit)
        return [_record(row) for row in self._session.scalars(query)]

    def last_of(self, object_: str, action: str) -> AuditRecord | None:
        """The newest record of one action on one object, or None."""
        query = select(AuditRow).where(AuditRow.object == object_, AuditRow.action == action)
        row = self._session.scalars(query.order_by(AuditRow.seq.desc()).limit(1)).one_or_none()
        return None if row is None else _record(row)

    def verify(
        self,
        checkpoints: Sequence[Checkpoint] = (),
        trusted: Collection[str] | None = None,
        *,
        rows: bool = True,
    ) -> AuditReport:
        """Checks the stored chain, every stored row, and what follows from the acts.

        Args:
            checkpoints: earlier ones, as of ``verify_chain``.
            trusted: public keys whose checkpoints count, as of ``verify_chain``.
            rows: whether to read every row of every table, and not the chain alone.
        """
        with whole_register(self._session):
            return self._verify(checkpoints, trusted, rows=rows)

    def _verify(
        self, checkpoints: Sequence[Checkpoint], trusted: Collection[str] | None, *, rows: bool
    ) -> AuditReport:
        report = verify_chain(read_records(self._session), checkpoints, trusted)
        if not report.ok or not rows:
            return report
        roots = {point.seals: point.seals_root for point in checkpoints}
        return with_rows(report, verify_rows(self._session, asked=roots), roots, recompute(self._session))

    def checkpoint(self, key: SigningKey) -> Checkpoint:
        """States length and head of the chain under a key that the database never sees.

        The result belongs outside the database and its backups.
        """
        with whole_register(self._session):
            last = self._last()
            length, head = (0, ORIGIN) if last is None else (last.seq, last.leaf_hash)
            seals, seals_root = stored_root(self._session)
        message = checkpoint_bytes(length, head, self._now_us, seals, seals_root)
        return Checkpoint(
            length=length,
            head=head,
            at_us=self._now_us,
            key_id=key.key_id,
            public_key=key.public_key,
            signature=key.sign(message),
            seals=seals,
            seals_root=seals_root,
            note=write_note(
                Note(seals=seals, root=seals_root, length=length, head=head, at_us=self._now_us), key
            ),
        )

    def _last(self) -> AuditRow | None:
        return self._session.scalars(select(AuditRow).order_by(AuditRow.seq.desc()).limit(1)).one_or_none()


def read_records(session: Session) -> Iterator[AuditRecord]:
    """Every stored record in order, read in pieces."""
    query = select(AuditRow).order_by(AuditRow.seq)
    for row in session.scalars(query.execution_options(populate_existing=True, yield_per=1000)):
        yield _record(row)


def record_of(row: Mapping[str, Any]) -> AuditRecord:
    """A record from its columns by name, of which those that say nothing may be missing."""
    words = {name: str(row.get(name, "")) for name in ("actor", "action", "object", "prev_hash", "leaf_hash")}
    numbers = {name: int(row.get(name, 0)) for name in ("seq", "at_us")}
    return AuditRecord.model_validate({**words, **numbers, "facts": _facts(str(row.get("facts", "")))})


def leaf_hash(record: AuditRecord) -> str:
    """The digest that the next record names."""
    document = record.model_dump(mode="json", exclude={"leaf_hash"})
    return "sha256:" + hashlib.sha256(b"\x00" + canonical_bytes(document)).hexdigest()


def checkpoint_bytes(length: int, head: str, at_us: int, seals: int = 0, seals_root: str = "") -> bytes:
    """What a checkpoint's signature covers; one without seals is of a release that had none."""
    document = {"kind": "audit-checkpoint", "length": length, "head": head, "at_us": at_us}
    return canonical_bytes({**document, "seals": seals, "seals_root": seals_root} if seals else document)


def verify_chain(
    records: Iterable[AuditRecord],
    checkpoints: Sequence[Checkpoint] = (),
    trusted: Collection[str] | None = None,
) -> AuditReport:
    """Checks records from the first one on, and checkpoints against them.

    Args:
        records: all of them, in stored order.
        checkpoints: earlier exported ones; each must agree with the chain.
        trusted: public keys whose checkpoints count; with None the key that a checkpoint names is taken at
            its word, which proves nothing against whoever could make one.
    """
    heads = {0: ORIGIN}
    expected, prev = 1, ORIGIN
    for record in records:
        wrong = _wrong(record, expected, prev)
        if wrong:
            return AuditReport(
                ok=False,
                length=expected - 1,
                first_bad=record.seq,
                reason=wrong,
                tail="not proven",
                head=prev,
                bad=(f"audit {record.seq}",),
                sentence=f"audit {record.seq}: {_SENTENCES[wrong]}.",
            )
        prev = heads[record.seq] = record.leaf_hash
        expected += 1
    length = expected - 1
    for point in sorted(checkpoints, key=lambda point: point.length):
        message = checkpoint_bytes(point.length, point.head, point.at_us, point.seals, point.seals_root)
        signed = verify_signature(point.public_key, message, point.signature)
        if not signed or (trusted is not None and point.public_key not in trusted):
            reason, first_bad = "checkpoint_signature", None
        elif point.length > length:
            reason, first_bad = "truncated", length + 1
        elif heads[point.length] != point.head:
            reason, first_bad = "rewritten", point.length
        else:
            continue
        return AuditReport(
            ok=False,
            length=length,
            first_bad=first_bad,
            reason=reason,
            tail="not proven",
            head=prev,
            bad=() if first_bad is None else (f"audit {first_bad}",),
            sentence=f"The checkpoint over {point.length} records: {_SENTENCES[reason]}.",
        )
    return AuditReport(
        ok=True,
        length=length,
        first_bad=None,
        reason="",
        tail="proven" if checkpoints else "not proven",
        head=prev,
        sentence="Every record holds." if checkpoints else f"Every record holds; {UNPROVEN}",
    )


def _wrong(record: AuditRecord, expected_seq: int, prev: str) -> str:
    if record.seq != expected_seq:
        return "missing_or_inserted"
    if record.prev_hash != prev:
        return "link"
    try:
        holds = leaf_hash(record) == record.leaf_hash
    except ProductError:  # facts that were never written by us may have no canonical form
        holds = False
    return "" if holds else "content"


def _record(row: AuditRow) -> AuditRecord:
    return AuditRecord(
        seq=row.seq,
        at_us=row.at_us,
        actor=row.actor,
        action=row.action,
        object=row.object,
        facts=_facts(row.facts),
        prev_hash=row.prev_hash,
        leaf_hash=row.leaf_hash,
    )


def _facts(stored: str) -> dict[str, Any]:
    """Reads stored facts; text that tampering made unreadable becomes facts that no leaf matches."""
    try:
        facts = json.loads(stored)
    except ValueError:
        return {"unreadable": stored}
    return facts if isinstance(facts, dict) else {"unreadable": stored}
