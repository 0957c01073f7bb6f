# SPDX-License-Identifier: Apache-2.0
"""Weights with short exponents: nothing is lost, no bit of a product changes, and fewer bytes are read."""

from __future__ import annotations

import ctypes
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from short_peer import lengthen, shorten_plainly
from step_builders import Pages, finish, runner_of, same_bits
from tensor_builders import bank_of, digest, prompt, random_decoder, random_expert, tiny_shape
from torch import Tensor

from model_core.engine.native import weights
from model_core.engine.native.derived import DerivedFolder
from model_core.engine.native.library import Library, Pool
from model_core.engine.native.panels import LANES, Packed, pack_matrix, panel_kind
from model_core.engine.native.short import shorten

DTYPES = (torch.bfloat16, torch.float32)
# All of its matrices fill whole bands.
WIDE = tiny_shape(d_model=64, d_ffn=128, n_heads=4, n_kv_heads=4, vocab_size=64, tie_embeddings=False)
dtypes = st.sampled_from(DTYPES)
bands, pairs, seeds = st.integers(1, 4), st.integers(17, 70), st.integers(0, 99)


def matrix_of(dtype: torch.dtype, n_bands: int, n_pairs: int, seed: int) -> Tensor:
    """Random weights, some of them of magnitudes that are far from all others."""
    generator = torch.Generator().manual_seed(seed)
    weight_OI = 0.02 * torch.randn(64 * n_bands, 2 * n_pairs, generator=generator)
    rare_OI = torch.rand(weight_OI.shape, generator=generator)
    weight_OI = torch.where(rare_OI < 0.002, weight_OI * 1e-30, weight_OI)
    weight_OI = torch.where(rare_OI > 0.999, weight_OI * 1e20, weight_OI)
    return torch.where((rare_OI > 0.5) & (rare_OI < 0.501), 0.0, weight_OI).to(dtype)


matrices = st.builds(matrix_of, dtypes, bands, pairs, seeds)


def shortened(library: Library, weight_OI: Tensor) -> Packed:
    """The matrix with short exponents, where this processor can look them up."""
    if not library.short_pays(panel_kind(weight_OI.dtype)):
        pytest.skip("this processor multiplies whole weights alone")
    packed = shorten(weight_OI, library)
    assert packed is not None
    return packed


def bits(tensor: Tensor) -> Tensor:
    """What tells numbers apart that compare as equal, or as NaN."""
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


@given(weight_OI=matrices)
@settings(max_examples=40, deadline=None)
def test_shortening_loses_no_bit(library: Library, weight_OI: Tensor) -> None:
    """Also of zeros, of infinities, of NaN and of numbers too small to be normal."""
    weight_OI[0, :5] = torch.tensor([-0.0, float("inf"), -float("inf"), float("nan"), 1e-40])
    assert torch.equal(bits(lengthen(shortened(library, weight_OI))), bits(weight_OI))


@given(weight_OI=matrices)
@settings(max_examples=25, deadline=None)
def test_compiled_packing_is_that_of_a_plain_program(library: Library, weight_OI: Tensor) -> None:
    """Byte by byte, the exponents that stand apart and their places included."""
    found, wanted = shortened(library, weight_OI), shorten_plainly(weight_OI)
    assert found.short is not None
    assert wanted.short is not None
    assert torch.equal(bits(found.data), bits(wanted.data))
    for name in ("exponents", "others", "others_at"):
        assert torch.equal(getattr(found.short, name), getattr(wanted.short, name))


def test_a_view_of_other_strides_is_packed_like_its_copy(library: Library) -> None:
    """Neither its rows nor the weights of a row lie side by side."""
    weight_OI = 0.02 * torch.randn(1100, 1024).T.to(torch.bfloat16)
    assert torch.equal(lengthen(shortened(library, weight_OI)), weight_OI)


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 0.755), (torch.float32, 0.855)])
def test_random_weights_take_three_quarters_and_five_sixths(
    library: Library, dtype: torch.dtype, share: float
) -> None:
    """Everything counted that a product reads."""
    weight_OI = (0.02 * torch.randn(512, 1408)).to(dtype)
    packed = shortened(library, weight_OI)
    assert packed.short is not None
    parts = (packed.data, packed.short.exponents, packed.short.others, packed.short.others_at)
    assert sum(part.nbytes for part in parts) < share * weight_OI.nbytes


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_cannot_be_shorter_stays_whole(library: Library, dtype: torch.dtype) -> None:
    """Outputs beside whole bands, odd inputs, and weights of all magnitudes."""
    assert shorten(torch.randn(80, 64).to(dtype), library) is None
    assert shorten(torch.randn(64, 63).to(dtype), library) is None
    exponents_OI = torch.randint(-120, 120, (128, 64))
    assert shorten(torch.ldexp(torch.ones(128, 64), exponents_OI).to(dtype), library) is None


@given(
    weight_OI=matrices,
    rows=st.integers(1, 60),
    threads=st.integers(1, 3),
    add=st.booleans(),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_products_have_the_bits_of_whole_weights(
    library: Library, weight_OI: Tensor, rows: int, threads: int, add: bool, data: st.DataObject
) -> None:
    """For any rows and threads, over all panels and over some, written or added."""
    n_out, n_in = weight_OI.shape
    short, whole = shortened(library, weight_OI), pack_matrix(weight_OI)
    x_RI, begin_RO = torch.randn(rows, n_in), torch.randn(rows, n_out)
    wanted_RO, found_RO, parts_RO = begin_RO.clone(), begin_RO.clone(), begin_RO.clone()
    pool = Pool(library, threads)
    pool.multiply(whole, x_RI, wanted_RO, add=add)
    pool.multiply(short, x_RI, found_RO, add=add)
    pool.close()
    assert torch.equal(bits(found_RO), bits(wanted_RO))
    n_panels = n_out // LANES
    cuts = sorted(data.draw(st.lists(st.integers(0, n_panels), max_size=2)))
    for first, last in zip([0, *cuts], [*cuts, n_panels], strict=True):
        where = (x_RI.data_ptr(), n_in, rows, parts_RO.data_ptr(), n_out, int(add))
        library.calls.experts_multiply_panels(ctypes.byref(short.view()), first, last, *where)
    assert torch.equal(bits(parts_RO), bits(wanted_RO))


@given(dtype=dtypes, n_bands=bands, n_pairs=pairs, rows=st.integers(1, 40), mixed=st.booleans())
@settings(max_examples=20, deadline=None)
def test_gated_products_have_the_bits_of_whole_weights(
    library: Library, dtype: torch.dtype, n_bands: int, n_pairs: int, rows: int, mixed: bool
) -> None:
    """Also where one of the two matrices could not be shortened."""
    gate_OI, up_OI = (matrix_of(dtype, n_bands, n_pairs, seed) for seed in (1, 2))
    short, up = shortened(library, gate_OI), pack_matrix(up_OI)
    short_up = up if mixed else shortened(library, up_OI)
    x_RI = torch.randn(rows, 2 * n_pairs)
    wanted_RO, found_RO = torch.empty(rows, 64 * n_bands), torch.empty(rows, 64 * n_bands)
    pool = Pool(library, 2)
    pool.multiply_gated(pack_matrix(gate_OI), up, x_RI, wanted_RO)
    pool.multiply_gated(short, short_up, x_RI, found_RO)
    pool.close()
    assert torch.equal(bits(found_RO), bits(wanted_RO))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mapped", [False, True])
def test_poison_leaves_no_number(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, mapped: bool
) -> None:
    """Every output of a poisoned expert is NaN, in memory and mapped from a file."""
    if not library.short_pays(panel_kind(dtype)):
        pytest.skip("this processor multiplies whole weights alone")
    monkeypatch.setattr(weights, "LEAST_SHORT_BYTES", 0)
    expert = random_expert(random_decoder(WIDE, 3).to(dtype), 5).to(dtype)
    if mapped:
        packed = DerivedFolder(tmp_path, library).expert(digest(7), expert).weights
    else:
        packed = weights.pack_expert(expert, library)
    weights.poison(packed)
    pool = Pool(library, 2)
    for layer in packed.layers:
        for matrix in weights.matrices(layer.network):
            assert matrix.short is not None
            for rows in (1, 5, 9, 40):
                y_RO = torch.zeros(rows, matrix.n_out)
                pool.multiply(matrix, torch.randn(rows, matrix.n_in), y_RO)
                assert y_RO.isnan().all()
    pool.close()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_steps_have_the_bits_of_whole_weights(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tied: bool
) -> None:
    """Prompts and single rows, in memory and mapped, also where the head serves as embedding."""
    shape = WIDE.model_copy(update={"tie_embeddings": tied})
    decoder = random_decoder(shape, 3).to(dtype)
    experts = {digest(seed): random_expert(decoder, seed).to(dtype) for seed in (1, 2)}
    walks = []
    for least, folder in ((1 << 40, None), (0, None), (0, tmp_path / "derived")):
        monkeypatch.setattr(weights, "LEAST_SHORT_BYTES", least)
        bank = bank_of(decoder, experts)
        runner = runner_of(bank, library, folder=folder)
        shorts = {
            matrix.short is not None for matrix in weights.matrices(runner._base.layers[0].public.network)
        }
        assert shorts == {least == 0 and library.short_pays(panel_kind(dtype))}
        walks.append(
            finish(
                runner, Pages(runner, random.Random(1)).walk(bank, runner, prompt(2, 30), sorted(experts), 2)
            )
        )
    assert all(same_bits(walk, walks[0]) for walk in walks)
