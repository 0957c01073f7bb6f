# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.errors import DatasetRefused
from model_core.text.documents import (
    Document,
    drop_near_duplicates,
    read_documents,
    split_documents,
    split_of,
    write_documents,
)

_SHARES = {"train": 0.8, "calibration": 0.1, "heldout": 0.1}


def test_documents_survive_a_file(tmp_path: Path) -> None:
    """What is written is read back, awkward characters included."""
    documents = (Document(id="a", text="line\nline\u2028x"), Document(id="b", text='quote " \\ é 日'))
    write_documents(tmp_path / "x" / "d.jsonl", documents)
    assert read_documents(tmp_path / "x" / "d.jsonl") == documents


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n\n",
        b"not json\n",
        b"[1]\n",
        b'{"id": "a"}\n',
        b'{"id": 1, "text": "x"}\n',
        b'{"id": "a", "text": "  "}\n',
        b'{"id": "", "text": "x"}\n',
        b'{"id": "a", "text": "\xff"}\n',
        b'{"id": "a", "text": "\\ud800"}\n',
        b'{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n',
        b"[" * 100_000,
    ],
)
def test_what_is_no_data_set_is_refused(tmp_path: Path, body: bytes) -> None:
    """Every kind of bad file gives the typed refusal and nothing else."""
    path = tmp_path / "d.jsonl"
    path.write_bytes(body)
    with pytest.raises(DatasetRefused) as refusal:
        read_documents(path)
    assert refusal.value.code == "dataset_refused"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A path without a file is a refusal, not an OSError."""
    with pytest.raises(DatasetRefused):
        read_documents(tmp_path / "none.jsonl")


@settings(max_examples=40, deadline=None)
@given(
    ids=st.sets(st.text(min_size=1, max_size=12), min_size=1, max_size=60),
    more=st.sets(st.text(min_size=1), max_size=20),
)
def test_splits_never_leak(ids: set[str], more: set[str]) -> None:
    """Splits are disjoint and complete, and adding documents moves none that was there."""
    before = split_documents([Document(id=name, text="x") for name in sorted(ids)], _SHARES)
    after = split_documents([Document(id=name, text="x") for name in sorted(ids | more)], _SHARES)
    names = [document.id for part in before.values() for document in part]
    assert sorted(names) == sorted(ids)
    for split, part in before.items():
        assert {item.id for item in part} <= {item.id for item in after[split]}


def test_splits_have_their_shares() -> None:
    """Over many ids the shares come out as asked, and another salt splits anew."""
    names = [f"document {index}" for index in range(4000)]
    placed = [split_of(name, _SHARES) for name in names]
    assert abs(placed.count("train") / 4000 - 0.8) < 0.03
    assert placed != [split_of(name, _SHARES, salt="other") for name in names]


def test_near_duplicates_go_and_different_texts_stay() -> None:
    """A copy with a few changed words is dropped, the first stays; unrelated and merely alike texts stay."""
    words = [f"word{index}" for index in range(400)]
    changed = list(words)
    changed[50], changed[300] = "other", "thing"
    other = [f"thing{index}" for index in range(400)]
    half = words[:150] + other[150:]
    documents = [
        Document(id="first", text=" ".join(words)),
        Document(id="copy", text=" ".join(changed)),
        Document(id="part", text=" ".join(words[100:260])),
        Document(id="other", text=" ".join(other)),
    ]
    kept, dropped = drop_near_duplicates(documents)
    assert [document.id for document in kept] == ["first", "other"]
    assert dropped == 2
    kept, _ = drop_near_duplicates([documents[0], Document(id="half", text=" ".join(half))])
    assert len(kept) == 2


def test_document_lines_are_json(tmp_path: Path) -> None:
    """A data set is plain JSON lines that any program reads."""
    write_documents(tmp_path / "d.jsonl", [Document(id="a", text="b\nc")])
    assert json.loads((tmp_path / "d.jsonl").read_text()) == {"id": "a", "text": "b\nc"}
