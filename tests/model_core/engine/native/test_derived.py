# SPDX-License-Identifier: Apache-2.0
"""Packed weights in files: made once, mapped by all, never trusted further than they are whole."""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model_core.engine.native import derived
from model_core.engine.native.derived import DerivedFolder, verify
from model_core.engine.native.footprint import give_back_freed, release_file_pages
from model_core.engine.native.library import Library
from model_core.engine.native.weights import pack_base, pack_expert, poison
from model_core.network.checkpoint import load_expert, save_expert
from model_core.network.expert import Expert
from model_core.pacing import pause_between_pieces
from model_core.packing.forms import EXPERT_KINDS, ExpertKind
from tests.model_core.tensor_builders import digest, in_bfloat16, random_decoder, random_expert, tiny_shape

DIGEST = digest(1)


def expert_of(seed: int, kind: ExpertKind = "full") -> Expert:
    """A random expert beside a random base."""
    return random_expert(random_decoder(tiny_shape(), 3), seed, kind=kind)


def leaves(value: Any) -> Iterator[Any]:
    """Everything in packed weights that is no dataclass and no tuple, in order."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name))
    elif isinstance(value, tuple):
        for one in value:
            yield from leaves(one)
    else:
        yield value


def same(one: object, other: object) -> bool:
    """Whether two packed weights are equal, tensors bit for bit."""
    pairs = list(zip(leaves(one), leaves(other), strict=True))
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("compiled", [False, True])
def test_packing_pauses_before_every_matrix(
    monkeypatch: pytest.MonkeyPatch, library: Library, compiled: bool
) -> None:
    """With kernels and without: a matrix may take as long as many pieces."""
    pauses: list[float] = []
    monkeypatch.setattr("model_core.pacing.time.sleep", pauses.append)
    expert = expert_of(3)
    copy_context().run(
        lambda: (pause_between_pieces(0.25), pack_expert(expert, library if compiled else None))
    )
    assert pauses == [0.25] * 3 * len(expert.layers)


@pytest.mark.parametrize("kind", EXPERT_KINDS)
def test_an_expert_of_any_kind_comes_back_as_it_was_packed(tmp_path: Path, kind: ExpertKind) -> None:
    """From the file that was just made, and from the one that another call found."""
    expert, folder = expert_of(5, kind), DerivedFolder(tmp_path)
    made, found = folder.expert(DIGEST, expert), folder.expert(DIGEST, expert)
    assert same(made.weights, pack_expert(expert))
    assert same(found.weights, made.weights)
    assert (found.path, found.made_s, found.reason) == (made.path, 0.0, None)
    assert made.made_s > 0.0


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_a_base_comes_back_as_it_was_packed(tmp_path: Path, tied: bool, half: bool) -> None:
    """In fp32 and bf16; where head and embedding are one they are stored once."""
    decoder = random_decoder(tiny_shape(tie_embeddings=tied), 3)
    if half:
        in_bfloat16(decoder)
    found = DerivedFolder(tmp_path).base(DIGEST, decoder)
    assert same(found.weights, pack_base(decoder))
    assert (found.weights.embedding_VD is None) == tied


def test_dtypes_have_files_of_their_own(tmp_path: Path) -> None:
    """One digest in two dtypes does not push one out for the other."""
    decoder, half = random_decoder(tiny_shape(), 3), random_decoder(tiny_shape(), 3)
    in_bfloat16(half)
    folder = DerivedFolder(tmp_path)
    assert folder.base(DIGEST, decoder).path != folder.base(DIGEST, half).path


def test_files_of_another_layout_are_left_alone_and_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two releases on one machine: each makes its file once, and finds it again beside the other one."""
    expert, folder = expert_of(5), DerivedFolder(tmp_path)
    now = folder.expert(DIGEST, expert)
    monkeypatch.setattr(derived, "LAYOUT_VERSION", derived.LAYOUT_VERSION - 1)
    before = folder.expert(DIGEST, expert)
    assert before.made_s > 0
    assert now.path is not None
    assert before.path is not None
    folder.keep_only([DIGEST])
    assert folder.expert(DIGEST, expert).made_s == 0.0
    monkeypatch.undo()
    again = folder.expert(DIGEST, expert)
    assert (again.path, again.made_s) == (now.path, 0.0)
    # An older file under the newer one's name says in its header what it is.
    before.path.replace(now.path)
    assert folder.expert(DIGEST, expert).made_s > 0
    assert verify(now.path)


def test_what_one_mapping_writes_no_other_sees(tmp_path: Path) -> None:
    """Poison stays in the process, and even in the mapping, that wrote it; the file is whole."""
    expert, folder = expert_of(5), DerivedFolder(tmp_path)
    first, second = folder.expert(DIGEST, expert), folder.expert(DIGEST, expert)
    poison(first.weights)
    assert first.weights.layers[0].network.gate.data.isnan().all()  # type: ignore[union-attr]
    assert same(second.weights, pack_expert(expert))
    assert first.path is not None
    assert verify(first.path)


def test_a_mapping_outlives_its_file(tmp_path: Path) -> None:
    """A bundle that is not kept leaves the disk at once, and memory with the last of its tensors."""
    expert, folder = expert_of(5), DerivedFolder(tmp_path)
    found = folder.expert(DIGEST, expert)
    folder.expert(digest(2), expert)
    folder.keep_only([digest(2)])
    assert found.path is not None
    assert not found.path.exists()
    assert same(found.weights, pack_expert(expert))
    assert len(list(tmp_path.glob("*.weights"))) == 1


def damage_cut(path: Path) -> None:
    """Loses the last bytes."""
    os.truncate(path, path.stat().st_size - 64)


def damage_header(path: Path) -> None:
    """Turns one bit of the header."""
    flip(path, 60)


def damage_prefix(path: Path) -> None:
    """Claims a header longer than the file."""
    with path.open("r+b") as stream:
        stream.seek(8)
        stream.write(struct.pack("<Q", 1 << 40))


def damage_empty(path: Path) -> None:
    """Holds nothing."""
    os.truncate(path, 0)


def flip(path: Path, place: int) -> None:
    """Turns one bit."""
    path.chmod(0o600)
    with path.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("damage", [damage_cut, damage_header, damage_prefix, damage_empty])
def test_a_file_that_is_not_whole_is_made_anew(tmp_path: Path, damage: Any) -> None:
    """Cut, changed in the header, absurd or empty: nothing of it is used."""
    expert, folder = expert_of(5), DerivedFolder(tmp_path)
    path = folder.expert(DIGEST, expert).path
    assert path is not None
    path.chmod(0o600)
    damage(path)
    again = folder.expert(DIGEST, expert)
    assert again.made_s > 0.0
    assert same(again.weights, pack_expert(expert))


def test_data_are_checked_after_the_machine_was_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-written data under a whole header, as a power cut leaves them, are made anew; whole ones stay."""
    expert, folder = expert_of(5), DerivedFolder(tmp_path)
    path = folder.expert(DIGEST, expert).path
    assert path is not None
    monkeypatch.setattr(derived, "_boot", lambda: "another start")
    assert folder.expert(DIGEST, expert).made_s == 0.0
    flip(path, path.stat().st_size - 100)
    assert not verify(path)
    assert folder.expert(DIGEST, expert).made_s > 0.0
    assert verify(path)


def test_other_weights_under_the_same_digest_are_noticed(tmp_path: Path) -> None:
    """A digest that was used twice by mistake does not serve the first one's weights."""
    folder, other = DerivedFolder(tmp_path), expert_of(6)
    folder.expert(DIGEST, expert_of(5))
    assert same(folder.expert(DIGEST, other).weights, pack_expert(other))


def test_a_file_that_others_could_have_written_is_made_anew(tmp_path: Path) -> None:
    """Neither a link nor a file that every user may write is mapped."""
    expert, folder = expert_of(5), DerivedFolder(tmp_path)
    path = folder.expert(DIGEST, expert).path
    assert path is not None
    path.chmod(0o666)
    assert folder.expert(DIGEST, expert).made_s > 0.0
    path.chmod(0o600)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert folder.expert(DIGEST, expert).made_s > 0.0
    assert not path.is_symlink()


def test_where_no_file_can_be_kept_weights_are_packed_in_memory(tmp_path: Path) -> None:
    """Serving goes on, and says why it takes more memory."""
    (tmp_path / "file").write_text("no folder")
    expert = expert_of(5)
    found = DerivedFolder(tmp_path / "file").expert(DIGEST, expert)
    assert found.path is None
    assert found.reason is not None
    assert "memory" in found.reason
    assert same(found.weights, pack_expert(expert))


def test_several_callers_at_once_make_one_file(tmp_path: Path) -> None:
    """Replicas that start together: one makes it, the others wait and map the same."""
    expert = expert_of(5)
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(DerivedFolder(tmp_path).expert, DIGEST, expert) for _ in range(4)]
        found = [call.result() for call in calls]
    assert len({one.path for one in found}) == 1
    assert sum(one.made_s > 0.0 for one in found) == 1
    assert all(same(one.weights, pack_expert(expert)) for one in found)
    assert not list(tmp_path.glob("*.partial"))


def private_bytes(path: Path) -> int:
    """Bytes of a file's mappings that are this process's own."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Anonymous:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell what is mapped")
def test_reading_copies_no_page_and_poison_copies_them(tmp_path: Path) -> None:
    """Mapped weights cost nobody memory of his own until he writes."""
    found = DerivedFolder(tmp_path).expert(DIGEST, expert_of(5))
    assert found.path is not None
    assert sum(leaf.double().sum() for leaf in leaves(found.weights) if isinstance(leaf, Tensor)).isfinite()
    assert private_bytes(found.path) == 0
    poison(found.weights)
    assert private_bytes(found.path) > 0


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell what is mapped")
def test_released_pages_are_read_again_and_written_ones_stay(tmp_path: Path) -> None:
    """Letting go of a file's pages changes no value: not of clean tensors, written ones, or plain memory."""
    save_expert(expert_of(5), tmp_path / "expert.safetensors")
    expert, plain = load_expert(tmp_path / "expert.safetensors", tiny_shape()), torch.ones(5000)
    before = {name: tensor.clone() for name, tensor in expert.state_dict().items()}
    assert release_file_pages([*expert.state_dict().values(), plain]) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in expert.state_dict().items())
    expert.layer(0).router.row.data.fill_(4.0)
    assert release_file_pages(expert.state_dict().values()) == 0
    assert (expert.layer(0).router.row == 4.0).all()
    give_back_freed()
    assert plain.sum() == 5000
