# SPDX-License-Identifier: Apache-2.0
"""Documents: reading them, splitting them by identity, and finding the ones that say nearly the same.

A data set is a JSON-lines file of ``{"id", "text"}``. A document is never cut across splits, and which
split it falls in depends on its id alone, so that adding documents moves none. This module knows text
and bytes; it does not know tokens, tenants or licenses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_core.errors import DatasetRefused

MAX_DOCUMENT_BYTES = 8_000_000
SHINGLE_WORDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One document: its id (unique in its data set) and its text."""

    id: str
    text: str

    @property
    def size_bytes(self) -> int:
        """Length of the text in bytes of UTF-8."""
        return len(self.text.encode())


def read_documents(path: Path) -> tuple[Document, ...]:
    """Reads a JSON-lines data set and refuses anything that is not one.

    Args:
        path: the file; one JSON object a line with the strings ``id`` and ``text``; other fields are ignored.

    Returns:
        The documents in file order.

    Raises:
        DatasetRefused: the file is missing, empty, not UTF-8, or a line is not a document.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DatasetRefused(
            "The data set cannot be read. Check that it was uploaded completely.", reason=type(error).__name__
        ) from error
    documents: list[Document] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        document = _document(line, number)
        if document.id in seen:
            raise DatasetRefused(
                f"Line {number} repeats the id of an earlier document. Give every document its own id.",
                line=number,
            )
        seen.add(document.id)
        documents.append(document)
    if not documents:
        raise DatasetRefused('The data set holds no document. Write one {"id", "text"} object a line.')
    return tuple(documents)


def _document(line: bytes, number: int) -> Document:
    if len(line) > MAX_DOCUMENT_BYTES:
        raise DatasetRefused(
            f"Line {number} is longer than {MAX_DOCUMENT_BYTES} bytes. Cut the document into parts.",
            line=number,
        )
    try:
        value = json.loads(line)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DatasetRefused(
            f"Line {number} is not JSON in UTF-8. Write one object a line.", line=number
        ) from error
    if not isinstance(value, dict):
        raise DatasetRefused(f'Line {number} is not an object with "id" and "text".', line=number)
    name, text = value.get("id"), value.get("text")
    if not (isinstance(name, str) and isinstance(text, str) and name and text.strip()):
        raise DatasetRefused(
            f'Line {number} needs "id" and "text" as strings that are not empty.', line=number
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DatasetRefused(
            f"Line {number} holds half a surrogate pair, which is no text.", line=number
        ) from error
    return Document(id=name, text=text)


def write_documents(path: Path, documents: Iterable[Document]) -> int:
    """Writes a data set as JSON lines and returns its size in bytes."""
    lines = [
        json.dumps({"id": document.id, "text": document.text}, ensure_ascii=False).encode()
        for document in documents
    ]
    body = b"".join(line + b"\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return len(body)


def split_of(document_id: str, shares: Mapping[str, float], *, salt: str = "") -> str:
    """Names the split of a document from its id alone.

    Args:
        document_id: the id.
        shares: split name to share; the shares must sum to 1; the order of the mapping is part of the answer.
        salt: makes independent splits of the same ids possible.

    Returns:
        One key of ``shares``.
    """
    digest = hashlib.sha256(f"{salt}\0{document_id}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    reached = 0.0
    name = ""
    for name, share in shares.items():
        reached += share
        if point < reached:
            return name
    return name


def split_documents(
    documents: Iterable[Document], shares: Mapping[str, float], *, salt: str = ""
) -> dict[str, tuple[Document, ...]]:
    """Splits documents by their ids; every split of ``shares`` is present, maybe empty."""
    parts: dict[str, list[Document]] = {name: [] for name in shares}
    for document in documents:
        parts[split_of(document.id, shares, salt=salt)].append(document)
    return {name: tuple(part) for name, part in parts.items()}


def shingle_sketch(text: str, *, every: int = 4) -> np.ndarray:
    """A document's sketch: the hashes of its word 5-grams that fall on one residue.

    Taking the same residue in every document keeps the Jaccard similarity and the containment of
    sketches unbiased, so sketches of different lengths can be compared.

    Args:
        text: the document.
        every: keeps one in so many shingles on average; short documents keep all.

    Returns:
        Sorted distinct uint64 hashes.
    """
    words = text.lower().split()
    if not words:
        return np.zeros(0, np.uint64)
    known: dict[str, int] = {}
    for word in words:
        if word not in known:
            known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    codes = np.fromiter((known[word] for word in words), np.uint64, len(words))
    width = min(SHINGLE_WORDS, len(words))
    mixed = np.zeros(len(words) - width + 1, np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(width):
            mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + len(mixed)]
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(32)
    distinct = np.unique(mixed)
    kept: np.ndarray = distinct[distinct % np.uint64(every) == 0]
    return kept


def drop_near_duplicates(
    documents: Sequence[Document], *, jaccard: float = 0.5, containment: float = 0.7
) -> tuple[tuple[Document, ...], int]:
    """Keeps the first of every group of documents that say nearly the same.

    Two documents are near-duplicates when the Jaccard similarity of their shingle sketches reaches
    ``jaccard``, or when so large a share of the smaller one is found in the larger one. Documents are
    taken in the given order: put first what must stay.

    Returns:
        The documents kept, in order, and how many were dropped.
    """
    sketches = [shingle_sketch(document.text) for document in documents]
    owners: dict[int, list[int]] = {}
    kept: list[int] = []
    for index, sketch in enumerate(sketches):
        shared: dict[int, int] = {}
        keys = sketch.tolist()
        for key in keys:
            for other in owners.get(key, ()):
                shared[other] = shared.get(other, 0) + 1
        size = len(keys)
        if any(
            count >= jaccard * (size + len(sketches[other]) - count)
            or count >= containment * min(size, len(sketches[other]))
            for other, count in shared.items()
            if count >= 3
        ):
            continue
        kept.append(index)
        for key in keys:
            holders = owners.setdefault(key, [])
            if len(holders) < 50:  # a phrase that fifty documents share is boilerplate, not a copy
                holders.append(index)
    return tuple(documents[index] for index in kept), len(documents) - len(kept)
