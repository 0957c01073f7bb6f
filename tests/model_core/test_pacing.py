# SPDX-License-Identifier: Apache-2.0
"""Long work pauses after each piece where its thread asked for that, and comes to the same."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model_core.engine.native.derived import DerivedFolder, open_tensors, verify
from model_core.pacing import PIECE_BYTES, breathe, pause_between_pieces, pieces_of, read_pieces
from model_core.packing.files import copy_plain_file, digest_stream

PAUSE_S = 0.25
SIZES = [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 7]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """All pauses that were made, and none is waited for."""
    made: list[float] = []
    monkeypatch.setattr(time, "sleep", made.append)
    return made


def paced(work: Callable[[], object]) -> None:
    """Does something on a thread of its own that pauses."""
    failed: list[Exception] = []

    def run() -> None:
        pause_between_pieces(PAUSE_S)
        try:
            work()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def content(size: int) -> bytes:
    """Bytes that differ from piece to piece."""
    return bytes(
        torch.arange(size, dtype=torch.int64).mul(2654435761).remainder(251).to(torch.uint8).tolist()
    )


@pytest.mark.parametrize("size", SIZES)
def test_pieces_are_the_bytes_in_their_order(size: int) -> None:
    """Out of memory and out of a stream; none is empty or too long."""
    data = content(size)
    blocks = [memoryview(data[begin : begin + 700_001]) for begin in range(0, size, 700_001)]
    for pieces in (list(map(bytes, pieces_of(blocks))), list(read_pieces(io.BytesIO(data)))):
        assert b"".join(pieces) == data
        assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)


def test_a_thread_that_asked_for_it_pauses_after_every_piece(pauses: list[float]) -> None:
    """As long as it said, however the bytes lie in blocks."""
    data = memoryview(content(3 * PIECE_BYTES + 7))
    paced(lambda: list(pieces_of([data])))
    assert pauses == [PAUSE_S] * 3
    paced(lambda: list(pieces_of(data[begin : begin + 1000] for begin in range(0, len(data), 1000))))
    assert pauses == [PAUSE_S] * 6


def test_no_other_thread_pauses(pauses: list[float]) -> None:
    """Neither the one that started it nor one that it started."""
    paced(lambda: None)
    list(pieces_of([memoryview(content(2 * PIECE_BYTES))]))
    breathe()
    assert pauses == []


def test_pauses_end_where_a_thread_ends_them(pauses: list[float]) -> None:
    """A pause of no time is none."""

    def work() -> None:
        breathe()
        pause_between_pieces(0)
        breathe()

    paced(work)
    assert pauses == [PAUSE_S]


def test_digests_and_copies_do_not_depend_on_pauses(tmp_path: Path, pauses: list[float]) -> None:
    """And are made with one after every piece."""
    data = content(2 * PIECE_BYTES + 1)
    source = tmp_path / "source"
    source.write_bytes(data)
    seen: list[str] = []

    def work() -> None:
        with source.open("rb") as stream:
            seen.append(digest_stream(stream))
        copy_plain_file(source, tmp_path / "copy")

    paced(work)
    assert seen == ["sha256:" + hashlib.sha256(data).hexdigest()]
    assert (tmp_path / "copy").read_bytes() == data
    assert pauses == [PAUSE_S] * 6


def test_derived_files_are_written_and_read_through_with_pauses(tmp_path: Path, pauses: list[float]) -> None:
    """They hold the same as without: hashed, written and verified piece by piece."""
    tensor = torch.arange(PIECE_BYTES // 4 * 3, dtype=torch.float32)
    source = {"one": tensor}
    files = []

    def work(folder: Path) -> None:
        folder.mkdir(mode=0o700)
        file = DerivedFolder(folder).tensors("test", "sha256:" + "0" * 64, source, lambda: (("one", tensor),))
        assert file is not None
        assert verify(file.path)
        files.append(file)

    work(tmp_path / "plain")
    assert pauses == []
    paced(lambda: work(tmp_path / "paced"))
    assert len(pauses) >= 3 * 3
    plain, other = (open_tensors(file) for file in files)
    assert plain is not None
    assert other is not None
    assert torch.equal(plain["one"], other["one"])
    assert files[0].path.read_bytes() == files[1].path.read_bytes()
