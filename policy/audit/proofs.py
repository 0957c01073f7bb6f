# SPDX-License-Identifier: Apache-2.0
"""Proves that a stored row, an audit record included, is under a signed root, without any other row.

A proof has two steps: the row's digest in the tree of its seal, and the seal's leaf in the tree over all
seals. Whoever has the row and a checkpoint verifies both by hashing alone. Knows no rights: who may ask is
decided above.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import Session

from policy.audit.rows import WITHHELD, row_digest, row_document
from policy.audit.sealing import Entry, RowSeal, leaf_hash
from policy.audit.tree import Levels, consistency_path, is_consistent, root_from_inclusion, root_of
from policy.audit.verifying import sealed_tables, stored_leaves, stored_seals
from policy.errors import NotFound

_FAR = 2**63 - 1


class SealHead(BaseModel):
    """A seal without its list."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    seq: int
    at_us: int
    rows: int
    root: str
    document_digest: str
    prev_hash: str

    def leaf(self) -> str:
        """The digest of its leaf."""
        fields = self.model_dump()
        return leaf_hash(RowSeal(**fields, document=b"", leaf_hash="").leaf_bytes())


class RowProof(BaseModel):
    """What shows that a row was sealed under a root.

    Attributes:
        table: of the row.
        key: its primary key as text.
        row: what of it is sealed.
        digest: of the row, 64 hex digits.
        index: its place in the seal.
        row_path: siblings within the seal, 64 hex digits each, from the bottom up.
        seal: which one.
        seal_path: siblings of the seal's leaf.
        size: seals under the root.
        root: 64 hex digits.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    table: str
    key: str
    row: dict[str, Any]
    digest: str
    index: int
    row_path: tuple[str, ...]
    seal: SealHead
    seal_path: tuple[str, ...]
    size: int
    root: str

    def holds(self) -> bool:
        """Whether the row leads to the root."""
        try:
            digest = row_digest(self.table, self.row)
            inner = root_from_inclusion(digest, self.index, self.seal.rows, _bytes(self.row_path))
            leaf = bytes.fromhex(self.seal.leaf().removeprefix("sha256:"))
            outer = root_from_inclusion(leaf, self.seal.seq - 1, self.size, _bytes(self.seal_path))
        except (ValueError, TypeError):
            return False
        return (
            digest.hex() == self.digest
            and inner is not None
            and self.seal.root == f"sha256:{inner.hex()}"
            and outer is not None
            and outer.hex() == self.root
        )


class Consistency(BaseModel):
    """What shows that an earlier tree is the beginning of a later one; digests are 64 hex digits."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    earlier: int
    earlier_root: str
    size: int
    root: str
    path: tuple[str, ...]

    def holds(self) -> bool:
        """Whether nothing of the earlier tree was changed."""
        try:
            roots = bytes.fromhex(self.earlier_root), bytes.fromhex(self.root)
            return is_consistent(self.earlier, self.size, *roots, _bytes(self.path))
        except ValueError:
            return False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where a row was sealed last."""

    seal: RowSeal
    entries: list[Entry]
    index: int


def prove_rows(session: Session, wanted: Iterable[tuple[str, str]]) -> list[RowProof]:
    """Proves rows as they are stored now, in the order asked for.

    Reads every seal once, however many rows are asked for.

    Args:
        session: a reading unit of work that sees every tenant's rows.
        wanted: table and key of each.

    Raises:
        NotFound: no such row is stored or sealed.
    """
    asked = list(wanted)
    places = _find(session, asked)
    levels = Levels(list(stored_leaves(session)))
    proofs = []
    for table, key in asked:
        place = places.get((table, key))
        row = _row(session, table, key)
        if place is None or row is None:
            raise NotFound(f"No sealed row {key!r} is in {table}; check its key.", table=table, key=key)
        within = Levels([entry.leaf() for entry in place.entries])
        proofs.append(
            RowProof(
                table=table,
                key=key,
                row=row,
                digest=place.entries[place.index].digest or "",
                index=place.index,
                row_path=_hex(within.path(place.index)),
                seal=SealHead.model_validate(place.seal, from_attributes=True),
                seal_path=_hex(levels.path(place.seal.seq - 1)),
                size=len(levels),
                root=levels.root.hex(),
            )
        )
    return proofs


def prove_consistency(session: Session, earlier: int, size: int | None = None) -> Consistency:
    """Proves that the first seals are still the first ones.

    Raises:
        NotFound: there were never so many seals.
    """
    leaves = list(stored_leaves(session, size))
    if not 1 <= earlier <= len(leaves) or (size is not None and size != len(leaves)):
        raise NotFound(
            f"There are {len(leaves)} seals; ask for a number from 1 up to that.", seals=len(leaves)
        )
    return Consistency(
        earlier=earlier,
        earlier_root=root_of(leaves[:earlier]).hex(),
        size=len(leaves),
        root=root_of(leaves).hex(),
        path=_hex(consistency_path(leaves, earlier)),
    )


def _find(session: Session, asked: Iterable[tuple[str, str]]) -> dict[tuple[str, str], _Place]:
    wanted = set(asked)
    needles = [json.dumps(key)[1:-1].encode() for _, key in wanted]
    found: dict[tuple[str, str], _Place] = {}
    for seal in stored_seals(session):
        # Most seals speak of none of the rows: looking for the keys' bytes is far cheaper than reading.
        if not any(needle in seal.document for needle in needles):
            continue
        entries = seal.entries()
        for index, entry in enumerate(entries):
            if (entry.table, entry.key) in wanted:
                found[entry.table, entry.key] = _Place(seal=seal, entries=entries, index=index)
    return found


def _row(session: Session, name: str, key: str) -> dict[str, Any] | None:
    table = next((one for one in sealed_tables() if one.name == name), None)
    if table is None or name in WITHHELD:
        return None
    columns = list(table.primary_key.columns)
    try:
        values = [key] if len(columns) == 1 else json.loads(key)
        typed = [column.type.python_type(value) for column, value in zip(columns, values, strict=True)]
    except (ValueError, TypeError, RecursionError):
        return None
    if any(not -_FAR <= value <= _FAR if isinstance(value, int) else "\x00" in value for value in typed):
        return None
    same = [column == value for column, value in zip(columns, typed, strict=True)]
    row = session.connection().execute(table.select().where(*same)).mappings().first()
    return None if row is None else row_document(table, dict(row))


def _hex(path: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(step.hex() for step in path)


def _bytes(path: Iterable[str]) -> list[bytes]:
    return [bytes.fromhex(step) for step in path]
