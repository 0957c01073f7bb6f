# SPDX-License-Identifier: Apache-2.0
"""The audit as a folder of plain files, which anybody verifies without the database.

``seals.jsonl`` is the chain of seals, ``tables/<name>.jsonl`` every sealed row in its one form, the audit
chain's records among them, ``checkpoints.txt`` signed notes, ``manifest.json`` the counts and the public key.
Files are read line by line; only the digests of rows are kept in memory. The folder holds the whole register,
hashes of keys included, but nobody's name from the vault: its files are for their owner alone.

Nothing in the folder vouches for itself: whoever could forge the folder could forge the key in it. What
counts is a checkpoint, or a public key, that the verifier has from before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from model_core.packing.canonical import canonical_bytes
from policy.audit.chain import record_of, verify_chain
from policy.audit.notes import Note, read_notes
from policy.audit.reporting import UNPROVEN, with_rows
from policy.audit.rows import WITHHELD, key_text, row_digest, row_document
from policy.audit.sealing import RowSeal
from policy.audit.verifying import Bad, Expected, RowsReport, sealed_tables, stored_seals
from policy.errors import BrokenProof
from policy.records.audit import AuditRecord, AuditReport

VERSION: Final = 1
_MANIFEST: Final = "manifest.json"
_MODE: Final = 0o600


def write_bundle(session: Session, folder: Path, note: str, public_key: str) -> dict[str, Any]:
    """Writes everything as it stands in one unit of work.

    Args:
        session: a reading unit of work that sees every tenant's rows.
        folder: a new folder.
        note: a signed checkpoint of the same moment.
        public_key: of the key that signed it.

    Returns:
        The manifest.
    """
    (folder / "tables").mkdir(parents=True, mode=0o700)
    counts = {table.name: _write_lines(folder, f"tables/{table.name}.jsonl", _rows(session, table))
              for table in sealed_tables()}  # fmt: skip
    manifest = {
        "kind": "audit-bundle",
        "version": VERSION,
        "tables": counts,
        "audit": counts["audit"],
        "seals": _write_lines(folder, "seals.jsonl", map(_seal_document, stored_seals(session))),
        "public_key": public_key,
    }
    _write(folder / "checkpoints.txt", note.encode())
    _write(folder / _MANIFEST, canonical_bytes(manifest))
    return manifest


def verify_bundle(
    folder: Path, anchors: Iterable[str] = (), trusted: Collection[str] | None = None
) -> AuditReport:
    """Verifies a folder without the database.

    Args:
        folder: as ``write_bundle`` left it.
        anchors: texts of checkpoint files that were kept elsewhere.
        trusted: public keys whose checkpoints count; with None the key that the folder names, which proves
            nothing against whoever forged the folder.

    Raises:
        BrokenProof: the folder is no bundle, or an anchor cannot be read or is signed by nobody trusted.
    """
    manifest = _manifest(folder)
    keys = {str(manifest["public_key"])} if trusted is None else trusted
    kept = [note for anchor in anchors for note in read_notes(anchor, keys)]
    chain: list[str] = []
    report = verify_chain(_heads(_records(folder), chain))
    if not report.ok:
        return report
    report = _hold_notes(report, chain, kept)
    if not report.ok:
        return report
    expected = Expected()
    expected.read(_seals(folder), {note.seals for note in kept})
    held = _hold(folder, manifest, expected)
    found = with_rows(report, held, {note.seals: note.root for note in kept}, ())
    return found.model_copy(update={"sentence": _sentence(found, kept)})


def _sentence(report: AuditReport, kept: Collection[Note]) -> str:
    if not report.ok:
        return report.sentence
    return "Every record holds." if kept else f"Every record holds; {UNPROVEN}"


def _hold_notes(report: AuditReport, chain: list[str], kept: Iterable[Note]) -> AuditReport:
    """Holds the audit chain against checkpoints from before."""
    for note in sorted(kept, key=lambda note: note.length):
        if note.length > len(chain):
            reason, spoken, at = "truncated", "records that it counts are missing at the end", len(chain) + 1
        elif note.length and chain[note.length - 1] != note.head:
            reason, spoken, at = "rewritten", "the records are not those that it signed", note.length
        else:
            report = report.model_copy(update={"tail": "proven"})
            continue
        return report.model_copy(
            update={
                "ok": False,
                "first_bad": at,
                "reason": reason,
                "tail": "not proven",
                "bad": (f"audit {at}",),
                "sentence": f"The checkpoint over {note.length} records: {spoken}.",
            }
        )
    return report


def _hold(folder: Path, manifest: Mapping[str, Any], expected: Expected) -> RowsReport:
    bad: list[Bad] = [] if expected.bad is None else [expected.bad]
    rows = 0

    def counted(name: str) -> Iterator[tuple[str, bytes]]:
        nonlocal rows
        for line in _lines(folder / "tables" / f"{name}.jsonl"):
            rows += 1
            kept_back = name in WITHHELD
            yield (
                str(line["key"]),
                bytes.fromhex(line["digest"]) if kept_back else row_digest(name, line["row"]),
            )

    if not bad:
        for name in sorted(manifest["tables"]):
            if not name.replace("_", "").isalnum():
                raise BrokenProof("The manifest names a table that cannot be one; take the bundle anew.")
            bad.extend(expected.hold(name, counted(name)))
        bad.extend(expected.left())
    return RowsReport(
        bad=tuple(sorted(bad)[:20]),
        count=len(bad),
        rows=rows,
        seals=expected.length,
        waiting=0,
        head=expected.head,
        root=expected.root.digest().hex(),
        heads={at: root.hex() for at, root in expected.heads.items()},
    )


def _heads(records: Iterable[AuditRecord], chain: list[str]) -> Iterator[AuditRecord]:
    for record in records:
        chain.append(record.leaf_hash)
        yield record


def _records(folder: Path) -> Iterator[AuditRecord]:
    for line in _lines(folder / "tables" / "audit.jsonl"):
        yield record_of(line["row"])


def _seals(folder: Path) -> Iterator[RowSeal]:
    for line in _lines(folder / "seals.jsonl"):
        try:
            yield RowSeal(**{**line, "document": str(line["document"]).encode()})
        except (TypeError, KeyError) as error:
            raise BrokenProof("A line of seals.jsonl is no seal; take the bundle anew.") from error


def _seal_document(seal: RowSeal) -> dict[str, Any]:
    fields = {name: getattr(seal, name) for name in RowSeal.__slots__}
    return {**fields, "document": seal.document.decode()}


def _rows(session: Session, table: Any) -> Iterator[dict[str, Any]]:
    names = [column.name for column in table.primary_key]
    query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=2000)
    for row in session.connection().execute(query).mappings():
        key = key_text(tuple(row[name] for name in names))
        document = row_document(table, dict(row))
        if table.name in WITHHELD:
            yield {"key": key, "digest": row_digest(table.name, document).hex()}
        else:
            yield {"key": key, "row": document}


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise BrokenProof(
            f"{folder.name} holds no audit bundle; export one with: marketplace audit export"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("kind") != "audit-bundle":
        raise BrokenProof(f"{folder.name} holds something else than an audit bundle.")
    return manifest


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise BrokenProof(
            f"{path.name} of the bundle is missing or cannot be read.", file=path.name
        ) from error


def _write_lines(folder: Path, name: str, documents: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        for count, document in enumerate(documents, 1):  # noqa: B007 - the number of lines
            file.write(json.dumps(document, separators=(",", ":")) + "\n")
    return count


def _write(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
