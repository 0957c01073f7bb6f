# SPDX-License-Identifier: Apache-2.0
"""The texts of the benchmark: from a folder of domains, or from what every installation carries.

A folder holds ``<domain>.jsonl.zst`` with one JSON object a line: ``id``, ``text``, and ``split`` (``train``
or ``validation``); ids of pieces of one work share what stands before ``#``. Held-out works are halved by
the digest of their id: settings are chosen on one half (*tune*), the figures come from the other
(*report*). Everything is chosen by digests of ids, so the same texts always give the same benchmark.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.composition.settings import Amounts
from model_core.packing.canonical import digest_bytes
from model_core.text.documents import Document, read_documents, split_of

PUBLIC = "public"
HALVES = {"tune": 0.5, "report": 0.5}
MIN_PASSAGE_CHARACTERS = 400
CALIBRATION_CHARACTERS = 2_400


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """What one plan reads.

    Attributes:
        digest: of everything below.
        base: public text that the tokenizer and the base are trained on.
        calibration: other public text, which travels with the base.
        owners: private domain to its training text.
        tune: domain (the public one among them) to passages on which settings may be chosen.
        report: domain to passages of other works, for figures only.
    """

    digest: str
    base: tuple[Document, ...]
    calibration: tuple[Document, ...]
    owners: Mapping[str, tuple[Document, ...]]
    tune: Mapping[str, tuple[Document, ...]]
    report: Mapping[str, tuple[Document, ...]]


def work_of(document_id: str) -> str:
    """The work that a document or passage belongs to."""
    return document_id.split("#", 1)[0]


def read_texts(folder: Path | None, owners: Sequence[str], amounts: Amounts) -> Texts:
    """Reads domains from a folder, or with None from this installation's own text.

    Raises:
        FileNotFoundError: the folder lacks a domain.
    """
    read = _installed(owners) if folder is None else _stored(folder, owners)
    public_train = _in_order(read[PUBLIC]["train"])
    calibration, base = _calibration(public_train, amounts)
    halves = {name: _halved(splits["validation"], amounts) for name, splits in read.items()}
    texts = Texts(
        digest="",
        base=_up_to(base, amounts.base_bytes),
        calibration=calibration,
        owners={name: _up_to(_in_order(read[name]["train"]), amounts.owner_bytes) for name in owners},
        tune={name: parts["tune"] for name, parts in halves.items()},
        report={name: parts["report"] for name, parts in halves.items()},
    )
    return Texts(
        digest=_digest(texts),
        base=texts.base,
        calibration=texts.calibration,
        owners=texts.owners,
        tune=texts.tune,
        report=texts.report,
    )


def _stored(folder: Path, owners: Sequence[str]) -> dict[str, dict[str, list[Document]]]:
    return {name: _domain_file(folder / f"{name}.jsonl.zst") for name in (*owners, PUBLIC)}


def _domain_file(path: Path) -> dict[str, list[Document]]:
    import zstandard

    splits: dict[str, list[Document]] = {"train": [], "validation": []}
    with path.open("rb") as packed, zstandard.ZstdDecompressor().stream_reader(packed) as stream:
        for line in io.TextIOWrapper(stream, encoding="utf-8"):
            item = json.loads(line)
            if item["split"] in splits:
                splits[item["split"]].append(Document(id=item["id"], text=item["text"]))
    return splits


def _installed(owners: Sequence[str]) -> dict[str, dict[str, list[Document]]]:
    from examples import corpus

    domains = corpus.build(Path("build/composition/corpus"))
    found = {}
    for name in (*owners, PUBLIC):
        files = domains[name].files
        train = "train" if name == PUBLIC else "dataset"
        found[name] = {
            "train": list(read_documents(files[train])),
            "validation": list(read_documents(files["heldout"])),
        }
    return found


def _key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _in_order(documents: Iterable[Document]) -> list[Document]:
    """An order that looks random and depends on ids alone."""
    return sorted(documents, key=lambda document: _key(document.id))


def _up_to(documents: Iterable[Document], size_bytes: int) -> tuple[Document, ...]:
    return tuple(_within(documents, size_bytes))


def _within(documents: Iterable[Document], size_bytes: int) -> Iterator[Document]:
    for document in documents:
        size_bytes -= document.size_bytes
        if size_bytes < 0:
            return
        yield document


def _calibration(public: Sequence[Document], amounts: Amounts) -> tuple[tuple[Document, ...], list[Document]]:
    """Beginnings of whole works that travel with the base, and the documents of all other works."""
    chosen: list[Document] = []
    works: set[str] = set()
    left = amounts.calibration_bytes
    for document in public:
        short = Document(id=document.id, text=document.text[:CALIBRATION_CHARACTERS])
        left -= short.size_bytes
        if left < 0:
            break
        chosen.append(short)
        works.add(work_of(document.id))
    return tuple(chosen), [document for document in public if work_of(document.id) not in works]


def _halved(documents: Iterable[Document], amounts: Amounts) -> dict[str, tuple[Document, ...]]:
    halves: dict[str, list[Document]] = {name: [] for name in HALVES}
    for document in _in_order(documents):
        halves[split_of(work_of(document.id), HALVES, salt="composition")].append(document)
    return {name: tuple(passages(half, amounts)) for name, half in halves.items()}


def passages(documents: Sequence[Document], amounts: Amounts) -> list[Document]:
    """Pieces of documents, spread over each, round by round so that many works are heard.

    A passage's id is its document's with its place behind ``#@``, so that it still names its work.
    """
    pieces = [_pieces(document, amounts) for document in documents]
    rounds = max((len(of_one) for of_one in pieces), default=0)
    taken = [of_one[turn] for turn in range(rounds) for of_one in pieces if turn < len(of_one)]
    return taken[: amounts.passages]


def _pieces(document: Document, amounts: Amounts) -> list[Document]:
    length = amounts.passage_characters
    count = min(amounts.passages_a_document, max(1, len(document.text) // length))
    step = max(0, len(document.text) - length) // max(1, count - 1)
    found = []
    for place in range(count):
        text = document.text[place * step : place * step + length]
        if len(text.strip()) >= MIN_PASSAGE_CHARACTERS:
            found.append(Document(id=f"{document.id}#@{place}", text=text))
    return found


def _digest(texts: Texts) -> str:
    parts = hashlib.sha256()
    groups = [texts.base, texts.calibration]
    groups += [texts.owners[name] for name in sorted(texts.owners)]
    groups += [half[name] for half in (texts.tune, texts.report) for name in sorted(half)]
    for group in groups:
        parts.update(b"group")
        for document in group:
            parts.update(digest_bytes(f"{document.id}\0{document.text}".encode()).encode())
    return "sha256:" + parts.hexdigest()
