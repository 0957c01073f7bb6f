# SPDX-License-Identifier: Apache-2.0
"""Holds stored rows against the seals: which was edited, is missing, or was put in.

The seals are laid over each other, so that for every row the last seal says what it must be; then every
table is read once. Bad rows are named in the order of the chain: the first is the one that the earliest seal
speaks of; a row that no seal speaks of comes last. Takes seals and rows from anywhere, a database or a file,
and reads each once. It does not know what the rows mean.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from model_core.packing.canonical import digest_bytes
from policy.audit.rows import UNSEALED, key_text, row_digest, row_document
from policy.audit.sealing import ORIGIN, Entry, RowSeal, leaf_hash, read_document, seal_of
from policy.audit.tree import Root, root_of
from policy.tables.seals import SealDraftRow, SealRow
from tenants.accounts.schema import Base

_NEVER: Final = 1 << 62  # after every seal

SENTENCES: Final[Mapping[str, str]] = {
    "row_edited": "the row was changed after it was sealed",
    "row_missing": "the row was sealed and is not there",
    "row_inserted": "the row is there and no seal speaks of it",
    "seal_missing_or_inserted": "a seal is missing here, or one was put in",
    "seal_link": "the seal does not name the one before it",
    "seal_content": "the seal was changed after it was written",
    "seals_truncated": "seals that a checkpoint counts are missing at the end",
    "seals_rewritten": "the seals are not those that a checkpoint signed",
}


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Bad:
    """A record that does not hold.

    Attributes:
        seal: number of the seal that speaks of it last.
        table: name.
        key: primary key as text.
        reason: a word of ``SENTENCES``.
    """

    seal: int
    table: str
    key: str
    reason: str


def sentence_of(bad: Bad) -> str:
    """What is wrong with a record, for people."""
    where = f"; seal {bad.seal} speaks of it" if bad.seal < _NEVER and bad.table != "seals" else ""
    return f"{bad.table} {bad.key}: {SENTENCES.get(bad.reason, bad.reason)}{where}."


@dataclass(kw_only=True, slots=True)
class Expected:
    """What the seals read so far say.

    Attributes:
        root: over their leaves.
        head: leaf of the last one.
        rows: entries read.
        bad: the first seal that does not hold.
        heads: leaves by number of seals, for the numbers asked for.
    """

    root: Root = field(default_factory=Root)
    head: str = ORIGIN
    rows: int = 0
    bad: Bad | None = None
    heads: dict[int, bytes] = field(default_factory=dict)
    _last: dict[tuple[str, str], tuple[bytes | None, int]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """How many seals hold, from the first on."""
        return self.root.size

    def read(self, seals: Iterable[RowSeal], asked: Iterable[int] = ()) -> None:
        """Takes seals in stored order, up to the first that does not hold.

        Args:
            seals: all of them.
            asked: numbers of seals at which the root is wanted.
        """
        wanted = set(asked)
        for seal in seals:
            reason = self._wrong(seal)
            if reason:
                self.bad = Bad(seal=seal.seq, table="seals", key=str(seal.seq), reason=reason)
                return
            self.take(seal.entries(), seal.seq)
            self.root.add(bytes.fromhex(seal.leaf_hash.removeprefix("sha256:")))
            self.head = seal.leaf_hash
            if self.length in wanted:
                self.heads[self.length] = self.root.digest()

    def take(self, entries: Iterable[Entry], seq: int) -> None:
        """Lays entries over what is known."""
        for entry in entries:
            digest = None if entry.digest is None else bytes.fromhex(entry.digest)
            self._last[entry.table, entry.key] = (digest, seq)
            self.rows += 1

    def hold(self, table: str, rows: Iterable[tuple[str, bytes]]) -> Iterator[Bad]:
        """Names the rows of a table that are not what they should be; missing ones are found by ``left``.

        Args:
            table: name.
            rows: key and digest of each.
        """
        for key, digest in rows:
            expected, seq = self._last.pop((table, key), (None, _NEVER))
            if expected == digest:
                continue
            reason = "row_inserted" if expected is None else "row_edited"
            yield Bad(seal=seq, table=table, key=key, reason=reason)

    def left(self) -> Iterator[Bad]:
        """Names the rows that no table showed."""
        for (table, key), (digest, seq) in self._last.items():
            if digest is not None:
                yield Bad(seal=seq, table=table, key=key, reason="row_missing")

    def _wrong(self, seal: RowSeal) -> str:
        if seal.seq != self.length + 1:
            return "seal_missing_or_inserted"
        if seal.prev_hash != self.head:
            return "seal_link"
        if (
            leaf_hash(seal.leaf_bytes()) != seal.leaf_hash
            or digest_bytes(seal.document) != seal.document_digest
        ):
            return "seal_content"
        entries = seal.entries()
        root = "sha256:" + root_of(entry.leaf() for entry in entries).hex()
        return "" if (len(entries), root) == (seal.rows, seal.root) else "seal_content"


@dataclass(frozen=True, kw_only=True, slots=True)
class RowsReport:
    """What holding the tables against the seals found.

    Attributes:
        bad: what does not hold, in the order of the chain; at most ``limit``.
        count: how many records do not hold in all.
        rows: rows read.
        seals: seals that hold, from the first on.
        waiting: rows that wait for the next seal.
        head: leaf of the last seal.
        root: of the tree over the seals, 64 hex digits.
        heads: roots at the numbers asked for, 64 hex digits.
    """

    bad: tuple[Bad, ...]
    count: int
    rows: int
    seals: int
    waiting: int
    head: str
    root: str
    heads: Mapping[int, str]


def verify_rows(session: Session, *, asked: Iterable[int] = (), limit: int = 20) -> RowsReport:
    """Holds every table of a database against its seals.

    Args:
        session: a reading unit of work.
        asked: numbers of seals at which the root is wanted.
        limit: most bad records to name.
    """
    expected = Expected()
    expected.read(stored_seals(session), asked)
    waiting = expected.rows
    drafts = session.connection().execute(select(SealDraftRow.document).order_by(SealDraftRow.id))
    for (document,) in drafts:
        expected.take(_draft(document), expected.length + 1)
    waiting = expected.rows - waiting
    count = _Counter(limit)
    if expected.bad is not None:
        # What a broken chain says of rows proves nothing; the seal itself is the first bad record.
        count.add(expected.bad)
    else:
        for table in sealed_tables():
            count.extend(expected.hold(table.name, count.counting(stored_rows(session, table))))
        count.extend(expected.left())
    return RowsReport(
        bad=tuple(sorted(count.found)),
        count=count.bad,
        rows=count.rows,
        seals=expected.length,
        waiting=waiting,
        head=expected.head,
        root=expected.root.digest().hex(),
        heads={at: root.hex() for at, root in expected.heads.items()},
    )


def stored_root(session: Session) -> tuple[int, str]:
    """How many seals there are and the root of the tree over them, 64 hex digits."""
    root = Root()
    for leaf in stored_leaves(session):
        root.add(leaf)
    return root.size, root.digest().hex()


def stored_leaves(session: Session, until: int | None = None) -> Iterator[bytes]:
    """Hashes of the seals' leaves in order, 32 bytes each; all of them, or the first ``until``."""
    query = select(SealRow.leaf_hash).order_by(SealRow.seq)
    if until is not None:
        query = query.where(SealRow.seq <= until)
    for (leaf,) in session.connection().execute(query.execution_options(yield_per=10_000)):
        yield bytes.fromhex(leaf.removeprefix("sha256:"))


def sealed_tables() -> list[Any]:
    """Every table whose rows are sealed, in an order in which foreign keys point back."""
    return [table for table in Base.metadata.sorted_tables if table.name not in UNSEALED]


def stored_seals(session: Session, after: int = 0) -> Iterator[RowSeal]:
    """Seals in order, read in pieces."""
    table: Any = SealRow.__table__
    query = select(table).where(table.c.seq > after).order_by(table.c.seq)
    for row in session.connection().execute(query.execution_options(yield_per=1000)):
        yield seal_of(row)


def stored_rows(session: Session, table: Any) -> Iterator[tuple[str, bytes]]:
    """Key and digest of every row, read in pieces."""
    keys = [column.name for column in table.primary_key]
    for row in session.connection().execute(select(table).execution_options(yield_per=2000)).mappings():
        key = key_text(tuple(row[name] for name in keys))
        yield key, row_digest(table.name, row_document(table, dict(row)))


class _Counter:
    """Counts bad records and keeps the first ones in the order of the chain."""

    def __init__(self, limit: int) -> None:
        self.found: list[Bad] = []
        self.bad = self.rows = 0
        self._limit = limit

    def add(self, bad: Bad) -> None:
        self.bad += 1
        self.found.append(bad)
        if len(self.found) > 4 * self._limit + 64:
            self.found = sorted(self.found)[: self._limit]

    def extend(self, several: Iterable[Bad]) -> None:
        for bad in several:
            self.add(bad)
        self.found = sorted(self.found)[: self._limit]

    def counting(self, rows: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
        for row in rows:
            self.rows += 1
            yield row


def _draft(document: bytes) -> list[Entry]:
    try:
        return read_document(zlib.decompress(bytes(document)))
    except (zlib.error, ValueError):
        return []
