# SPDX-License-Identifier: Apache-2.0
"""Where epochs are stored: the head of each, and every fact once, with the epochs that it held for.

An epoch that changes one fact writes one fact. Any epoch is read back as the facts whose interval holds it,
checked against its published digest; epochs of releases that stored whole snapshots are read as those. It
does not know what the facts mean or why an epoch came.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import delete, insert, or_, select, update
from sqlalchemy.orm import Session

from model_core.errors import ProductError
from model_core.packing.canonical import canonical_bytes, parse_canonical
from policy.errors import MalformedSnapshot
from policy.facts import trie
from policy.facts.delta import Delta
from policy.facts.kinds import KINDS, Fact
from policy.facts.leaves import fact_bytes, leaf_bytes, leaf_name, tree_entries
from policy.facts.pauses import no_cycles_sought
from policy.facts.snapshot import Edits, Snapshot, malformed
from policy.tables import PublishedFactRow, SnapshotRow, UnpublishedRow

_LISTS = {kind: TypeAdapter(tuple[cls, ...]) for kind, (cls, _) in KINDS.items()}  # type: ignore[valid-type]


def notes(session: Session) -> list[tuple[str, str]]:
    """Table and key of every row that was written since the last publication."""
    rows = session.execute(select(UnpublishedRow.source, UnpublishedRow.identity).distinct())
    return [(source, identity) for source, identity in rows]


def take_notes(session: Session) -> list[tuple[str, str]]:
    """The same, taken out: whoever takes them publishes what they name."""
    taken = delete(UnpublishedRow).returning(UnpublishedRow.source, UnpublishedRow.identity)
    rows = session.execute(taken.execution_options(synchronize_session=False))
    return sorted({(source, identity) for source, identity in rows})


def write(session: Session, snapshot: Snapshot, edits: Edits | None) -> None:
    """Stores an epoch that was just published.

    Args:
        session: the unit of work; the publication's row is in it.
        snapshot: its facts.
        edits: how they differ from those that are stored as still so; None where nobody compared them.
    """
    head = zlib.compress(canonical_bytes(snapshot.head()), 6)
    session.add(SnapshotRow(epoch=snapshot.epoch, document=head))
    session.flush()
    if edits is None:
        edits = _compared(session, snapshot)
    row = PublishedFactRow
    still = row.until_epoch.is_(None)
    for kind, identity in edits:
        closing = update(row).where(row.kind == kind, row.identity == identity, still)
        session.execute(
            closing.values(until_epoch=snapshot.epoch).execution_options(synchronize_session=False)
        )
    new = [
        {
            "kind": kind,
            "identity": identity,
            "from_epoch": snapshot.epoch,
            "until_epoch": None,
            "document": fact_bytes(fact).decode(),
        }
        for (kind, identity), fact in edits.items()
        if fact is not None
    ]
    if new:
        session.execute(insert(row), new)


def read(session: Session, epoch: int, digest: str) -> Snapshot:
    """The snapshot of a published epoch.

    Args:
        session: a unit of work.
        epoch: which.
        digest: the published one.

    Raises:
        MalformedSnapshot: what is stored can not be read.
        SnapshotMismatch: what is stored is not what was published.
    """
    stored = session.get(SnapshotRow, epoch)
    data = _inflated(b"" if stored is None else stored.document, digest)
    head = _head_in(data)
    if head is None:
        return _whole(digest, data)
    row = PublishedFactRow
    held = select(row.kind, row.identity, row.document).where(
        row.from_epoch <= epoch, or_(row.until_epoch.is_(None), row.until_epoch > epoch)
    )
    with no_cycles_sought():
        return _assembled(head, session.execute(held).all()).checked(digest)


def delta(session: Session, before: tuple[int, str], snapshot: Snapshot) -> Delta | None:
    """What leads from one epoch to a later one; None where that is not stored fact by fact.

    Args:
        session: a unit of work.
        before: the earlier epoch and its digest.
        snapshot: the later one.
    """
    epoch, digest = before
    row = PublishedFactRow
    earlier = session.get(SnapshotRow, epoch)
    if earlier is None or _head_in(_inflated(earlier.document, digest)) is None:
        return None
    since = or_(
        (row.from_epoch > epoch) & (row.from_epoch <= snapshot.epoch),
        (row.until_epoch > epoch) & (row.until_epoch <= snapshot.epoch),
    )
    names = session.execute(select(row.kind, row.identity).where(since).distinct())
    edits = {(kind, identity): snapshot.fact(kind, identity) for kind, identity in names}
    return Delta.of(epoch, digest, snapshot, edits)


def digests(session: Session) -> Iterator[tuple[int, str]]:
    """Every stored epoch in order, with the digest of what is stored; an empty one where that is unreadable.

    One pass over all facts of all epochs: what an epoch has in common with the one before is not read again.
    """
    row = PublishedFactRow
    come, gone = (
        session.execute(select(at, row.kind, row.identity, row.document).where(at.is_not(None)).order_by(at))
        for at in (row.from_epoch, row.until_epoch)
    )
    entering, leaving = _by_epoch(come), _by_epoch(gone)
    tree: trie.Node | None = None
    for epoch, document in session.execute(select(SnapshotRow.epoch, SnapshotRow.document).order_by("epoch")):
        for kind, identity, _ in leaving(epoch):
            tree = trie.without(tree, trie.key_of(leaf_name(kind, identity)))
        entries = {
            trie.key_of(leaf_name(kind, identity)): trie.leaf_digest(leaf_bytes(kind, text.encode()))
            for kind, identity, text in entering(epoch)
        }
        if tree is None:
            tree = trie.grown(entries)
        else:
            for key, digest in entries.items():
                tree = trie.put(tree, key, digest)
        try:
            data = _inflated(document, "")
            head = _head_in(data)
            snapshot = Snapshot.from_json(data) if head is None else Snapshot.model_validate(head)
        except (ProductError, ValidationError):
            yield epoch, ""
            continue
        if head is not None:
            snapshot.__dict__["tree"] = tree
        yield epoch, snapshot.digest


def _by_epoch(rows: Iterable[Any]) -> Callable[[int], list[tuple[str, str, str]]]:
    """Gives out sorted rows epoch by epoch, asked for in order."""
    ordered = iter(rows)
    waiting = next(ordered, None)

    def of(epoch: int) -> list[tuple[str, str, str]]:
        nonlocal waiting
        found = []
        while waiting is not None and waiting[0] <= epoch:
            found.append((waiting[1], waiting[2], waiting[3]))
            waiting = next(ordered, None)
        return found

    return of


def _head_in(data: bytes) -> dict[str, Any] | None:
    """The head, where that is all that is stored of an epoch in one piece; None for a whole snapshot."""
    try:
        head = parse_canonical(data)
    except ProductError:
        return None
    return head if isinstance(head, dict) and "format" in head else None


def _compared(session: Session, snapshot: Snapshot) -> dict[tuple[str, str], Fact | None]:
    row = PublishedFactRow
    stored = session.execute(select(row.kind, row.identity, row.document).where(row.until_epoch.is_(None)))
    known = {(kind, identity): document for kind, identity, document in stored}
    facts = {
        (kind, identity(fact)): fact
        for kind, (_, identity) in KINDS.items()
        for fact in getattr(snapshot, kind)
    }
    edits: dict[tuple[str, str], Fact | None] = dict.fromkeys(known.keys() - facts.keys())
    changed = {key: fact for key, fact in facts.items() if known.get(key) != fact_bytes(fact).decode()}
    return edits | changed


def _assembled(head: dict[str, Any], rows: Sequence[Any]) -> Snapshot:
    """A snapshot out of stored documents; its tree is over the bytes that were published."""
    by_kind: dict[str, list[tuple[str, bytes]]] = {kind: [] for kind in KINDS}
    for kind, identity, document in rows:
        if kind in by_kind:
            by_kind[kind].append((identity, document.encode()))
    kinds: dict[str, tuple[Fact, ...]] = {}
    entries: dict[int, bytes] = {}
    try:
        for kind, documents in by_kind.items():
            documents.sort()
            listed = b"[" + b",".join([document for _, document in documents]) + b"]"
            kinds[kind] = _LISTS[kind].validate_json(listed, strict=True)
            entries.update(tree_entries(kind, documents))
        Snapshot.model_validate(head)
    except ValidationError as error:
        raise malformed(error) from error
    snapshot = Snapshot.of_facts(head, kinds)
    snapshot.__dict__["tree"] = trie.grown(entries)
    return snapshot


@lru_cache(maxsize=32)
def _whole(digest: str, data: bytes) -> Snapshot:
    # Reading is the costly part and snapshots never change; the digest is checked with the first reading.
    return Snapshot.from_json(data, expect_digest=digest)


def _inflated(document: bytes, digest: str) -> bytes:
    try:
        return zlib.decompress(document)
    except zlib.error as error:
        raise MalformedSnapshot(
            "The stored snapshot can not be unpacked; restore the database from a backup.", expected=digest
        ) from error
