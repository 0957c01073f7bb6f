# SPDX-License-Identifier: Apache-2.0
"""Packed matrices and their products with rows, against torch and against themselves."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model_core.engine.native.library import Library, Pool
from model_core.engine.native.panels import KINDS, LANES, Packed, PanelKind, pack_matrix, unpack_matrix

_TOLERANCE = {"f32": 1e-6, "bf16": 1e-6, "i8": 1e-6}


@dataclass(frozen=True)
class Case:
    """A matrix, rows, and the product as torch computes it in fp64 from what the kernels multiply."""

    matrix: Packed
    x_RI: Tensor
    product_RO: Tensor


def make_case(kind: PanelKind, n_out: int, n_in: int, rows: int, seed: int) -> Case:
    """Random numbers of a kind."""
    generator = torch.Generator().manual_seed(seed)
    x_RI = torch.randn(rows, n_in, generator=generator)
    weight_OI = torch.randn(n_out, n_in, generator=generator)
    if kind == "i8":
        weight_OI = (weight_OI * 40).clamp(-127, 127).to(torch.int8)
        scales_O = 0.01 + torch.rand(n_out, generator=generator)
        product_RO = x_RI.double() @ weight_OI.double().T * scales_O.double()
        return Case(pack_matrix(weight_OI, scales_O=scales_O), x_RI, product_RO)
    rounded = torch.bfloat16 if kind == "bf16" else torch.float32
    product_RO = x_RI.to(rounded).double() @ weight_OI.to(rounded).double().T
    return Case(pack_matrix(weight_OI, kind=kind), x_RI, product_RO)


def close(found: Tensor, wanted: Tensor, kind: PanelKind) -> bool:
    """Whether a product is that of fp64 up to the rounding of fp32 sums."""
    scale = wanted.abs().max().item() + 1e-30
    return bool((found.double() - wanted).abs().max().item() <= 8 * _TOLERANCE[kind] * scale)


@contextmanager
def pool_of(library: Library, threads: int) -> Iterator[Pool]:
    """A pool that ends with the test."""
    pool = Pool(library, threads)
    try:
        yield pool
    finally:
        pool.close()


sizes = st.integers(1, 70)
kinds = st.sampled_from(KINDS)


@given(kind=kinds, n_out=sizes, n_in=sizes, seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_packing_loses_nothing(kind: PanelKind, n_out: int, n_in: int, seed: int) -> None:
    """What is unpacked is what was packed, and the padding is zero."""
    packed = make_case(kind, n_out, n_in, 1, seed).matrix
    again = pack_matrix(
        unpack_matrix(packed), scales_O=None if packed.scales is None else packed.scales[:n_out]
    )
    assert torch.equal(again.data, packed.data)
    assert packed.data.data_ptr() % 64 == 0
    assert packed.data.double().abs().sum() == unpack_matrix(packed).double().abs().sum()


def test_a_transposed_view_is_packed_like_its_copy() -> None:
    """Strides of what is packed do not matter."""
    weight_OI = torch.randn(37, 19).T
    assert torch.equal(pack_matrix(weight_OI).data, pack_matrix(weight_OI.contiguous()).data)


def test_scales_belong_to_integers_alone() -> None:
    """Integers without scales, and scales without integers, are refused."""
    with pytest.raises(ValueError, match="scales"):
        pack_matrix(torch.zeros(3, 3, dtype=torch.int8))
    with pytest.raises(ValueError, match="scales"):
        pack_matrix(torch.zeros(3, 3), scales_O=torch.ones(3))


@given(
    kind=kinds,
    n_out=st.integers(1, 150),
    n_in=st.integers(1, 90),
    rows=st.integers(1, 45),
    seed=st.integers(0, 99),
    threads=st.integers(1, 3),
)
@settings(max_examples=120, deadline=None)
def test_products_are_those_of_torch(
    library: Library, kind: PanelKind, n_out: int, n_in: int, rows: int, seed: int, threads: int
) -> None:
    """For every kind and size, written or added, with rows that lie apart; nothing beside them is written."""
    case = make_case(kind, n_out, n_in, rows, seed)
    y_RO = torch.full((rows, n_out + 5), 7.0)
    with pool_of(library, threads) as pool:
        pool.multiply(case.matrix, case.x_RI, y_RO[:, :n_out])
        assert close(y_RO[:, :n_out], case.product_RO, kind)
        pool.multiply(case.matrix, case.x_RI, y_RO[:, :n_out], add=True)
    assert close(y_RO[:, :n_out], 2 * case.product_RO, kind)
    assert (y_RO[:, n_out:] == 7.0).all()


@given(
    kind=kinds,
    n_out=st.integers(1, 200),
    n_in=st.integers(1, 130),
    rows=st.integers(1, 400),
    threads=st.integers(1, 4),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_no_bit_of_a_row_depends_on_its_company(
    library: Library, kind: PanelKind, n_out: int, n_in: int, rows: int, threads: int, data: st.DataObject
) -> None:
    """A row alone, some panels alone, and all rows over some threads give the same bits."""
    case = make_case(kind, n_out, n_in, rows, 5)
    together_RO, apart_RO = torch.empty(rows, n_out), torch.full((rows, n_out), float("nan"))
    with pool_of(library, threads) as pool:
        pool.multiply(case.matrix, case.x_RI, together_RO)
        row = data.draw(st.integers(0, rows - 1))
        alone_1O = torch.empty(1, n_out)
        pool.multiply(case.matrix, case.x_RI[row : row + 1], alone_1O)
    assert torch.equal(alone_1O[0], together_RO[row])
    panels = -(-n_out // LANES)
    cut, first = data.draw(st.integers(0, panels)), data.draw(st.integers(0, rows))
    view = ctypes.byref(case.matrix.view())
    for begin, end in ((0, cut), (cut, panels)):
        for low, high in ((0, first), (first, rows)):
            x_RI, y_RO = case.x_RI[low:high], apart_RO[low:high]
            where = (x_RI.data_ptr(), n_in, high - low, y_RO.data_ptr(), n_out, 0)
            library.calls.experts_multiply_panels(view, begin, end, *where)
    assert torch.equal(apart_RO, together_RO)


@given(kind=kinds, inner=st.integers(1, 200), n_in=st.integers(1, 90), rows=st.integers(1, 130))
@settings(max_examples=40, deadline=None)
def test_a_gated_product_is_silu_times_the_other(
    library: Library, kind: PanelKind, inner: int, n_in: int, rows: int
) -> None:
    """Gate, up and what joins them in one region equal the three in fp64, at any number of threads alike."""
    gate, up = make_case(kind, inner, n_in, rows, 1), make_case(kind, inner, n_in, 1, 2)
    wanted_RF = torch.empty(rows, inner)
    alone_RF, shared_RF = torch.empty(rows, inner), torch.empty(rows, inner)
    with pool_of(library, 1) as pool:
        pool.multiply(up.matrix, gate.x_RI, wanted_RF)
        pool.multiply_gated(gate.matrix, up.matrix, gate.x_RI, alone_RF)
    with pool_of(library, 3) as pool:
        pool.multiply_gated(gate.matrix, up.matrix, gate.x_RI, shared_RF)
    assert torch.equal(alone_RF, shared_RF)
    product = torch.nn.functional.silu(gate.product_RO) * wanted_RF.double()
    assert close(alone_RF, product, kind)


def test_a_poisoned_panel_shows_in_its_outputs_alone(library: Library) -> None:
    """NaN in one panel reaches the outputs of that panel and no other."""
    case = make_case("f32", 64, 32, 9, 3)
    case.matrix.data.view(32, 4 * LANES)[:, LANES : 2 * LANES] = float("nan")
    y_RO = torch.empty(9, 64)
    with pool_of(library, 2) as pool:
        pool.multiply(case.matrix, case.x_RI, y_RO)
    assert y_RO[:, 16:32].isnan().all()
    assert torch.cat((y_RO[:, :16], y_RO[:, 32:]), dim=1).isfinite().all()


def test_exponentials_are_within_two_units_in_the_last_place(library: Library) -> None:
    """Over the whole range where fp32 has an exponential; the ends and NaN are what IEEE says."""
    x = torch.cat((torch.linspace(-87.3, 88.7, 40_000), 1e-3 * torch.randn(5_000)))
    y = torch.empty_like(x)
    library.calls.experts_exp(x.data_ptr(), y.data_ptr(), x.numel())
    exact = x.double().exp()
    assert ((y.double() - exact).abs() / exact).max().item() < 2**-22
    ends = torch.tensor([float("-inf"), -200.0, 0.0, 89.0, float("inf"), float("nan")])
    found = torch.empty_like(ends)
    library.calls.experts_exp(ends.data_ptr(), found.data_ptr(), ends.numel())
    assert found[:5].tolist() == [0.0, 0.0, 1.0, float("inf"), float("inf")]
    assert found[5].isnan()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("spin_us", [0, 50])
def test_every_task_of_every_region_runs_once(library: Library, threads: int, spin_us: int) -> None:
    """Over thousands of regions of changing size, with threads that sleep and wake between them."""
    pool = Pool(library, threads, spin_us=spin_us)
    counts, wanted = torch.zeros(64, dtype=torch.int64), torch.zeros(64, dtype=torch.int64)
    for region in range(2_000):
        n = (region * 37) % 65
        library.calls.experts_pool_count(pool.handle, n, counts.data_ptr())
        wanted[:n] += 1
        if region % 200 == 0:
            assert torch.equal(counts, wanted)
    pool.close()
    assert torch.equal(counts, wanted)
