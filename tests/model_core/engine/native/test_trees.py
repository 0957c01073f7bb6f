# SPDX-License-Identifier: Apache-2.0
"""Packed weights moved into large pages: the same numbers, and memory that ends with their last view."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model_core.engine.native import trees
from model_core.engine.native.trees import Layout, describe, in_large_pages
from model_core.engine.native.weights import PackedExpert, pack_expert, poison
from tests.model_core.tensor_builders import random_decoder, random_expert, tiny_shape

LARGE = 2 << 20


def expert_of(d_ffn: int) -> PackedExpert:
    """A packed expert: 3 MiB for an inner width of 2,048."""
    decoder = random_decoder(tiny_shape(d_model=64, d_ffn=d_ffn), 3)
    return pack_expert(random_expert(decoder, 5))


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors of packed weights, in order."""
    layout = Layout()
    describe(value, layout)
    return [tensor for _, tensor in layout.tensors]


def mappings() -> Iterator[tuple[int, int, set[str]]]:
    """Begin, end and flags of every mapping of this process."""
    place = (0, 0)
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if words[0] == "VmFlags:":
            yield *place, set(words[1:])
        elif "-" in words[0] and not words[0].endswith(":"):
            low, high = words[0].split("-")
            place = (int(low, 16), int(high, 16))


def test_weights_are_the_same_in_one_piece_that_can_be_written() -> None:
    """Equal bits, the first at the start of a large page; poison reaches the copy and not the original."""
    packed = expert_of(2048)
    moved = in_large_pages(packed)
    pairs = list(zip(tensors_of(packed), tensors_of(moved), strict=True))
    assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs)
    assert pairs[0][1].data_ptr() % LARGE == 0
    assert len({other.untyped_storage().data_ptr() for _, other in pairs}) == 1
    poison(moved)
    assert not any(bool(one.isnan().any()) for one, _ in pairs)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell what is mapped")
def test_only_whole_large_pages_are_asked_for_and_all_end_with_the_last_view() -> None:
    """No part of a large page stands empty; an expert that leaves takes its memory along."""
    moved = in_large_pages(expert_of(2048))
    last = tensors_of(moved)[-1]
    begin = tensors_of(moved)[0].data_ptr()
    size = last.data_ptr() + last.nbytes - begin
    advised = [(low, high) for low, high, flags in mappings() if "hg" in flags and low <= begin < high]
    assert advised in ([], [(begin, begin + size // LARGE * LARGE)])  # none: a kernel without large pages
    del moved
    assert any(low <= begin < high for low, high, _ in mappings())
    del last
    assert not any(low <= begin < high and "hg" in flags for low, high, flags in mappings())


def test_small_weights_and_those_without_room_for_a_copy_stay_where_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A small expert does not take a large page, and a full machine serves from small ones."""
    small, large = expert_of(16), expert_of(2048)
    assert in_large_pages(small) is small

    def no_room(*_arguments: object, **_named: object) -> mmap.mmap:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(trees.mmap, "mmap", no_room)
    assert in_large_pages(large) is large
