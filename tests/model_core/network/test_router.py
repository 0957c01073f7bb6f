# SPDX-License-Identifier: Apache-2.0
"""Prefix means, gates, softmax and the choice of experts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.network.router import (
    EVIDENCE_CAP,
    RouterRows,
    fold_gate,
    group_rows,
    keep_top,
    log_shares,
    prefix_mean,
    reserve,
    router_logits,
    running_sum,
    softmax,
)


@settings(max_examples=40, deadline=None)
@given(
    n_sequences=st.integers(1, 3),
    length=st.integers(1, 40),
    width=st.integers(1, 33),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_prefix_sums_are_the_same_bits_whole_in_chunks_and_token_by_token(
    n_sequences: int, length: int, width: int, seed: int, data: st.DataObject
) -> None:
    """Strictly left to right in fp64: however the positions are cut, every sum is that of a plain loop."""
    generator = torch.Generator().manual_seed(seed)
    x_BSD = torch.randn(n_sequences, length, width, generator=generator) * 1e3
    loop, parts = torch.zeros(n_sequences, width, dtype=torch.float64), []
    for position in range(length):
        loop = loop + x_BSD[:, position].double()
        parts.append(loop)
    expected = torch.stack(parts, dim=1)
    assert torch.equal(running_sum(x_BSD), expected)
    carry, start, chunks = None, 0, []
    while start < length:
        end = start + data.draw(st.integers(1, length - start), label="chunk")
        chunks.append(running_sum(x_BSD[:, start:end], carry))
        carry, start = chunks[-1][:, -1], end
    assert torch.equal(torch.cat(chunks, dim=1), expected)
    counts = torch.arange(1, length + 1, dtype=torch.float64)[:, None]
    assert torch.equal(prefix_mean(x_BSD), expected / counts)


def test_a_folded_gate_is_the_gate_on_standardised_features() -> None:
    """The form weight . ((m - mean) / scale) + bias, also where the mean dwarfs the spread."""
    generator = torch.Generator().manual_seed(0)
    weight, mean = torch.randn(16, generator=generator), 1e4 * torch.randn(16, generator=generator)
    scale, bias = torch.rand(16, generator=generator) + 0.01, torch.tensor(0.3)
    features = mean.double() + scale.double() * torch.randn(20, 16, generator=generator).double()
    row, offset = fold_gate(weight, bias, mean, scale)
    plain = (weight.double() * ((features - mean.double()) / scale.double())).sum(-1) + bias.double()
    assert torch.allclose((features * row).sum(-1) + offset, plain, atol=1e-6)


def test_no_gate_adds_exactly_nothing_and_a_gate_only_lowers() -> None:
    """The public expert's logit keeps its bits beside gated ones; every gated logit goes down."""
    rows = RouterRows(
        rows_ED=torch.randn(3, 8),
        biases_E=torch.zeros(3),
        gate_rows_ED=torch.cat((torch.zeros(1, 8), torch.randn(2, 8))).double(),
        gate_biases_E=torch.tensor([torch.inf, 0.5, -40.0], dtype=torch.float64),
    )
    x, mean = torch.randn(10, 8), torch.randn(10, 8).double()
    gated, plain = router_logits(x, mean, rows), router_logits(x, None, rows)
    assert torch.equal(gated[:, 0], plain[:, 0])
    assert (gated[:, 1:] <= plain[:, 1:]).all()
    assert (gated[:, 2] < plain[:, 2] - 20).all()


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_gates_share_one_belief(data: st.DataObject) -> None:
    """Shares are the softmax of bent evidence with 0 for public text; alone, a gate's sigmoid."""
    width = data.draw(st.integers(1, 20), label="experts")
    seed = data.draw(st.integers(0, 2**31), label="seed")
    gates = 8 * torch.randn(5, width, generator=torch.Generator().manual_seed(seed)).double()
    beside_public = torch.cat((torch.full((5, 1), torch.inf).double(), gates), dim=1)
    shares = log_shares(beside_public)
    bent = torch.where(gates > 0, gates / (1 + (gates / EVIDENCE_CAP) ** 2).sqrt(), gates)
    evidence = torch.cat((torch.zeros(5, 1).double(), bent), dim=1)
    assert torch.equal(shares[:, 0], torch.zeros(5).double())
    assert torch.allclose(shares[:, 1:], evidence.log_softmax(-1)[:, 1:], atol=1e-12)
    alone = log_shares(beside_public[:, :2])[:, 1]
    assert torch.allclose(alone, F.logsigmoid(evidence[:, 1]), atol=1e-12)


def test_a_gate_that_claims_every_text_takes_no_more_than_the_cap() -> None:
    """However large its bias, it lowers the others' logits by at most the cap, and shuts none for good."""
    honest = torch.tensor([[torch.inf, 3.0, -1.0]]).double()
    greedy = torch.cat((honest, torch.tensor([[1e300]]).double()), dim=1)
    lowered = log_shares(honest) - log_shares(greedy)[:, :3]
    assert (lowered <= EVIDENCE_CAP + 1e-9).all()
    assert lowered[0, 0] == 0


def test_a_bias_tells_where_the_gate_doubts_and_hardly_where_it_is_sure() -> None:
    """Beside public text alone it shifts the gate; whole without a gate; never above 0, and 0 for no bias."""
    gates = torch.linspace(-30, 30, 61).double()[:, None].repeat(1, 3)
    gates[:, 0] = torch.inf
    taken = reserve(gates, torch.tensor([-2.0, -2.0, 0.0]))
    assert torch.allclose(taken[:, 0], torch.tensor(-2.0).double())
    shifted = F.logsigmoid(gates[:, 1] - 2) - F.logsigmoid(gates[:, 1])
    assert torch.allclose(taken[:, 1], shifted)
    assert float(taken[0, 1]) == pytest.approx(-2, abs=1e-6)
    assert float(taken[-1, 1]) == pytest.approx(0, abs=1e-6)
    assert torch.equal(taken[:, 2], torch.zeros(61).double())
    assert (taken <= 0).all()


def test_an_expert_without_a_gate_neither_claims_nor_yields() -> None:
    """Shares of the gated are as if it were not there, and its own logit stays."""
    gated = torch.tensor([[torch.inf, 2.0, 0.5], [torch.inf, -3.0, 9.0]]).double()
    with_plain = torch.cat((gated, torch.full((2, 1), torch.inf).double()), dim=1)
    assert torch.allclose(log_shares(with_plain)[:, :3], log_shares(gated), rtol=0, atol=1e-15)
    assert torch.equal(log_shares(with_plain)[:, 3], torch.zeros(2).double())


def test_softmax_of_huge_logits_is_finite() -> None:
    """The maximum is taken out first."""
    weights = softmax(torch.tensor([[1e30, 1e30, -1e30], [-3e4, -3e4, -3e4]]))
    assert torch.allclose(weights, torch.tensor([[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]]))


def test_ties_go_to_the_earlier_column() -> None:
    """Equal weights everywhere: the first k columns are kept, for any number of columns."""
    for n in (2, 5, 16, 17, 64):
        for top_k in range(1, n):
            weights, kept = keep_top(torch.full((3, n), 1.0 / n), top_k)
            assert kept is not None
            assert kept[:, :top_k].all()
            assert not kept[:, top_k:].any()
            assert not weights[:, top_k:].any()


def test_weights_are_renormalised_only_on_request() -> None:
    """Top-k keeps the softmax's weights; renormalised ones sum to 1."""
    full = softmax(torch.randn(50, 6))
    plain, kept = keep_top(full, 2)
    assert kept is not None
    assert torch.equal(plain[kept], full[kept])
    assert (plain.sum(-1) < 1).all()
    scaled, _ = keep_top(full, 2, renormalise=True)
    assert torch.allclose(scaled.sum(-1), torch.ones(50))


@pytest.mark.parametrize("top_k", [-1, 0, 7, 100])
def test_k_is_clamped_to_the_allowed(top_k: int) -> None:
    """Neither fewer than one nor more than there are."""
    weights, kept = keep_top(softmax(torch.randn(4, 6)), top_k)
    assert (weights > 0).sum(-1).tolist() == [max(1, min(top_k, 6))] * 4
    assert (kept is None) == (top_k >= 6)


def test_every_row_is_in_exactly_one_group() -> None:
    """Rows of equal (n, k) share a group; different sets of one size are gathered per row."""
    allowed = [((0,), 3), ((0, 2), 1), ((0, 3), 1), ((0, 2), 2), ((0,), 1)]
    groups = group_rows(allowed, torch.device("cpu"))
    indices = [group.token_rows for group in groups if group.token_rows is not None]
    assert sorted(torch.cat(indices).tolist()) == [0, 1, 2, 3, 4]
    assert [group.top_k for group in groups] == [1, 1, 2]
    assert [tuple(group.columns.shape) for group in groups] == [(1,), (2, 2), (2,)]
