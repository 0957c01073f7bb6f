# SPDX-License-Identifier: Apache-2.0
"""Seals what every unit of work wrote, in that unit of work.

A seal lists the digest of each row that was written, as it stands at the commit; laid over each other the
seals say what every table must hold. Each names the one before it, and its leaf covers number, time, rows
and list, so that a signed tree over the leaves fixes every row.

Writers on PostgreSQL do not wait for each other here: whoever finds the chain taken leaves a draft, which
the next seal takes in; only a unit that wrote into the audit waits. SQLite has one writer at a time, and
each of its units, or group of units under one commit, is one seal.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import delete, func, insert, select, text
from sqlalchemy.orm import Session

from model_core.packing.canonical import canonical_bytes, digest_bytes
from policy.audit.rows import UNSEALED, gone_digest, key_text, row_digest, row_document
from policy.audit.tree import root_of
from policy.tables.seals import SealDraftRow, SealRow
from tenants.accounts.database import Database, lock_for_writing
from tenants.accounts.written import Written

ORIGIN: Final = "sha256:" + "0" * 64
_LOCK: Final = "seals"
_LEVEL: Final = 1  # the digests do not shrink, and the words around them do at any level


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One row of a seal.

    Attributes:
        table: name.
        key: of the row, as text.
        digest: of the row, 64 hex digits; None for a row that is there no more.
    """

    table: str
    key: str
    digest: str | None

    def leaf(self) -> bytes:
        """What stands for the entry in the seal's tree, 32 bytes."""
        return gone_digest(self.table, self.key) if self.digest is None else bytes.fromhex(self.digest)


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSeal:
    """One seal as it is stored, its list inflated."""

    seq: int
    at_us: int
    rows: int
    root: str
    document: bytes
    document_digest: str
    prev_hash: str
    leaf_hash: str

    def entries(self) -> list[Entry]:
        """The list.

        Raises:
            ValueError: it is none.
        """
        return read_document(self.document)

    def leaf_bytes(self) -> bytes:
        """What the leaf's hash covers."""
        return canonical_bytes(
            {
                "seq": self.seq,
                "at_us": self.at_us,
                "rows": self.rows,
                "root": self.root,
                "document": self.document_digest,
                "prev_hash": self.prev_hash,
            }
        )


def leaf_hash(leaf: bytes) -> str:
    """The digest of a leaf's bytes, as the tree of RFC 6962 takes it."""
    return "sha256:" + hashlib.sha256(b"\x00" + leaf).hexdigest()


def make_seal(seq: int, at_us: int, prev_hash: str, entries: Sequence[Entry]) -> RowSeal:
    """The seal that follows another."""
    document = write_document(entries)
    draft = RowSeal(
        seq=seq,
        at_us=at_us,
        rows=len(entries),
        root="sha256:" + root_of(entry.leaf() for entry in entries).hex(),
        document=document,
        document_digest=digest_bytes(document),
        prev_hash=prev_hash,
        leaf_hash="",
    )
    fields = {name: getattr(draft, name) for name in RowSeal.__slots__}
    return RowSeal(**{**fields, "leaf_hash": leaf_hash(draft.leaf_bytes())})


def write_document(entries: Sequence[Entry]) -> bytes:
    """The list of a seal as JSON."""
    rows = [[entry.table, entry.key, entry.digest] for entry in entries]
    return json.dumps(rows, separators=(",", ":")).encode()


def read_document(document: bytes) -> list[Entry]:
    """Reads the list of a seal.

    Raises:
        ValueError: it is none.
    """
    try:
        return [Entry(table=table, key=key, digest=digest) for table, key, digest in json.loads(document)]
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError("not the list of a seal") from error


class Sealing:
    """What a database asks before every commit.

    Args:
        clock: microseconds since the Unix epoch.
    """

    def __init__(self, clock: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._clock = clock

    def __call__(self, session: Session, written: Written) -> None:
        """Seals what was written, if anything was."""
        if not written:
            return
        entries = list(entries_of(session, written))
        if not entries:
            return
        if session.get_bind().dialect.name == "postgresql" and not written.touches("audit"):
            free = session.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _lock_key()})
            if not free:
                row = {"document": zlib.compress(write_document(entries), _LEVEL)}
                session.connection().execute(insert(SealDraftRow.__table__), row)  # type: ignore[arg-type]
                return
        append_seal(session, entries, self._clock())


def seal_database(database: Database) -> None:
    """Has everything that a database commits from now on sealed."""
    database.seal_with(Sealing())


def entries_of(session: Session, written: Written) -> Iterator[Entry]:
    """The entries for the rows that were written, in the order of writing."""
    for table, key, values in written.rows(session):
        if table.name in UNSEALED:
            continue
        found = None if values is None else row_digest(table.name, row_document(table, values)).hex()
        yield Entry(table=table.name, key=key_text(key), digest=found)


def append_seal(session: Session, entries: Sequence[Entry], at_us: int) -> RowSeal | None:
    """Chains a seal over what waits and the given entries; none where there is nothing."""
    lock_for_writing(session, _LOCK)
    connection = session.connection()
    waiting: list[Entry] = []
    if connection.dialect.name == "postgresql":
        drafts = connection.execute(select(SealDraftRow.id, SealDraftRow.document).order_by(SealDraftRow.id))
        found = drafts.all()
        waiting = [entry for _, document in found for entry in read_document(zlib.decompress(document))]
        if found:
            done = [draft_id for draft_id, _ in found]
            connection.execute(delete(SealDraftRow).where(SealDraftRow.id.in_(done)))
    if not waiting and not entries:
        return None
    newest = select(SealRow.seq, SealRow.leaf_hash).order_by(SealRow.seq.desc()).limit(1)
    last = connection.execute(newest).first()
    seq, prev_hash = (1, ORIGIN) if last is None else (last.seq + 1, last.leaf_hash)
    seal = make_seal(seq, at_us, prev_hash, [*waiting, *entries])
    row: dict[str, Any] = {name: getattr(seal, name) for name in RowSeal.__slots__}
    row["document"] = zlib.compress(seal.document, _LEVEL)
    connection.execute(insert(SealRow.__table__), row)  # type: ignore[arg-type]
    return seal


def seal_of(row: Any) -> RowSeal:
    """A stored row as a seal; a list that cannot be inflated becomes one that no digest matches."""
    try:
        document = zlib.decompress(bytes(row.document))
    except zlib.error:
        document = b""
    fields = {name: getattr(row, name) for name in RowSeal.__slots__}
    return RowSeal(**{**fields, "document": document})


def count_seals(session: Session) -> int:
    """How many seals there are."""
    return session.scalar(select(func.max(SealRow.seq))) or 0


def _lock_key() -> int:
    return int.from_bytes(hashlib.sha256(_LOCK.encode()).digest()[:8], "big", signed=True)
