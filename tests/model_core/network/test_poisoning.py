# SPDX-License-Identifier: Apache-2.0
"""Poison: NaN in all of an expert's floating weights, at once, and nowhere else."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model_core.network.poisoning import fill_with_nan

_N = 40_000


def mapped(path: Path, dtype: torch.dtype) -> Tensor:
    """A file of ones, mapped copy-on-write."""
    if not path.exists():
        path.write_bytes(torch.ones(_N, dtype=dtype).view(torch.uint8).numpy().tobytes())
    with path.open("rb") as stream:
        memory = mmap.mmap(stream.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return torch.frombuffer(memory, dtype=dtype)


@given(
    begin=st.integers(0, _N), size=st.integers(0, _N), dtype=st.sampled_from([torch.float32, torch.bfloat16])
)
@settings(max_examples=50, deadline=None)
def test_a_mapped_tensor_is_poisoned_and_its_neighbours_are_not(
    tmp_path_factory: pytest.TempPathFactory, begin: int, size: int, dtype: torch.dtype
) -> None:
    """Wherever it begins and ends; the file and other mappings of it keep their numbers."""
    path = tmp_path_factory.getbasetemp() / f"ones-{str(dtype)[6:]}"
    ours, theirs = mapped(path, dtype), mapped(path, dtype)
    end = min(_N, begin + size)
    fill_with_nan([ours[begin:end]])
    assert ours[begin:end].isnan().all()
    assert (torch.cat((ours[:begin], ours[end:])) == 1).all()
    assert (theirs == 1).all()
    assert (mapped(path, dtype) == 1).all()


def test_poison_can_be_written_over(tmp_path: Path) -> None:
    """Pages that were mapped anew are memory like any other, and not shared with one another."""
    ours = mapped(tmp_path / "ones", torch.float32)
    fill_with_nan([ours])
    ours[:20_000] = 3.0
    assert (ours[:20_000] == 3.0).all()
    assert ours[20_000:].isnan().all()


def test_plain_memory_strides_and_integers_are_written_over() -> None:
    """What is no mapped file is filled in place; integers get their lowest number."""
    plain, wide = torch.ones(5000), torch.ones(40, 40)
    whole = torch.ones(64, dtype=torch.int8)
    fill_with_nan([plain, wide[:, ::2], whole])
    assert plain.isnan().all()
    assert wide[:, ::2].isnan().all()
    assert (wide[:, 1::2] == 1).all()
    assert (whole == -128).all()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what is mapped")
def test_poison_takes_no_memory(tmp_path: Path) -> None:
    """Whole pages of a mapped file are exchanged, not copied."""
    ours = mapped(tmp_path / "ones", torch.float32)
    fill_with_nan([ours])
    first, copied = ours.data_ptr(), 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head:
            low, high = (int(part, 16) for part in head.split("-"))
            inside = low < first + ours.nbytes and first < high
        elif inside and head == "Anonymous:":
            copied += int(line.split()[1]) * 1024
    assert copied <= 2 * mmap.PAGESIZE
