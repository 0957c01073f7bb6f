# SPDX-License-Identifier: Apache-2.0
"""Experts of every kind: what they compute, and the laws of the mixture where kinds stand side by side."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_builders import (
    BASE,
    bank_of,
    copy_of,
    digest,
    drain,
    in_bfloat16,
    prompt,
    random_decoder,
    random_expert,
    random_world,
    request,
    tiny_shape,
)

from model_core.engine.engine import Engine
from model_core.errors import BundleWrongShape
from model_core.network.bank import ExpertBank, forward_logits
from model_core.network.decoder import Decoder, upcycle
from model_core.network.expert import Expert
from model_core.network.ffn import SwiGLU
from model_core.network.kinds import Int8Matrix
from model_core.packing.forms import EXPERT_KINDS, ExpertKind, FfnForm
from model_core.training.conversions import to_full
from model_core.training.kinds import convert, start_expert

_EXACT_KINDS = tuple(kind for kind in EXPERT_KINDS if kind != "int8")


def _neutral(decoder: Decoder, kind: ExpertKind) -> Expert:
    """An expert of a kind that computes what the public network does."""
    width = decoder.shape.d_ffn
    form = {
        "low_rank": FfnForm(kind="low_rank", d_ffn=width, rank=3),
        "split": FfnForm(kind="split", d_ffn=width, pieces=4),
    }.get(kind, FfnForm(kind=kind, d_ffn=width))
    if kind == "int8":
        return convert(decoder, upcycle(decoder), form)[0]
    return start_expert(decoder, form, [torch.tensor(prompt(1, 8))])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), data=st.data())
def test_neutral_copies_of_every_kind_leave_the_base_as_it_was(seed: int, data: st.DataObject) -> None:
    """Law 2: full, narrow with all neurons, fresh low-rank and split copies, at k = n or renormalised."""
    decoder = random_decoder(tiny_shape(), seed)
    kinds = data.draw(st.lists(st.sampled_from(_EXACT_KINDS), min_size=1, max_size=5), label="kinds")
    renormalise = data.draw(st.booleans(), label="renormalise")
    top_k = data.draw(st.integers(1, len(kinds) + 1)) if renormalise else len(kinds) + 1
    experts = [_neutral(decoder, kind) for kind in kinds]
    ids = torch.tensor([prompt(seed, 11)])
    with torch.no_grad():
        for expert, layer in itertools.product(experts, range(decoder.shape.n_layers)):
            expert.layer(layer).router.row.normal_(generator=torch.Generator().manual_seed(seed + layer))
        dense = decoder(ids)
        mixed = decoder(ids, experts, top_k=top_k, renormalise=renormalise)
    assert (dense - mixed).abs().max() <= 1e-5 * max(1.0, float(dense.abs().max()))


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), n_rows=st.integers(1, 20), d_ffn=st.integers(1, 40))
def test_int8_moves_no_weight_by_more_than_half_a_step(seed: int, n_rows: int, d_ffn: int) -> None:
    """Every weight lies within half a step of its channel, and outputs within what that allows."""
    generator = torch.Generator().manual_seed(seed)
    shape = tiny_shape(d_model=8, d_ffn=d_ffn, n_heads=2, n_kv_heads=1, n_layers=1)
    decoder = random_decoder(shape, seed)
    expert = upcycle(decoder)
    whole = expert.layer(0).ffn
    assert isinstance(whole, SwiGLU)
    with torch.no_grad():
        whole.up.weight[0] = 0.0  # a channel without any weight
    small = convert(decoder, expert, FfnForm(kind="int8", d_ffn=d_ffn))[0].layer(0).ffn
    for name in ("gate", "up", "down"):
        matrix, weight = getattr(small, name), getattr(whole, name).weight
        assert isinstance(matrix, Int8Matrix)
        half = matrix.scale[:, None] / 2
        assert ((matrix.widened(torch.float32) - weight).abs() <= half * (1 + 1e-5)).all()
        x = torch.randn(n_rows, weight.shape[1], generator=generator)
        error = (matrix(x) - x @ weight.T).abs()
        assert (error <= x.abs().sum(-1, keepdim=True) * half.T * (1 + 1e-4) + 1e-6).all()


def test_integers_are_widened_in_blocks_without_changing_the_sums() -> None:
    """A matrix larger than a block gives what the widened matrix gives, with a scale per output channel."""
    generator = torch.Generator().manual_seed(1)
    matrix = Int8Matrix(1024, 700)
    matrix.weight.random_(-127, 128, generator=generator)
    matrix.scale.uniform_(0.1, 2.0, generator=generator)
    x = torch.randn(3, 1024, generator=generator)
    assert torch.allclose(matrix(x), x @ matrix.widened(torch.float32).T, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("kind", EXPERT_KINDS)
def test_the_dense_form_computes_what_the_expert_does(kind: ExpertKind) -> None:
    """Each kind's ``dense_ffn`` as a plain SwiGLU gives the same rows, whatever the public network is."""
    decoder = random_decoder(tiny_shape(), 2)
    expert = random_expert(decoder, 2, kind=kind, noise=0.3)
    x = torch.randn(7, 24, generator=torch.Generator().manual_seed(2))
    for index in range(2):
        part, public = expert.layer(index), decoder.layer(index).ffn
        gate_FD, up_FD, down_DF = part.dense_ffn(public)
        with torch.no_grad():
            dense = (torch.nn.functional.silu(x @ gate_FD.T) * (x @ up_FD.T)) @ down_DF.T
            ours = part.row_function(public)(x)
        assert torch.allclose(ours, dense, atol=2e-5)
        assert (ours - public(x)).abs().max() > 1e-2
    assert to_full(decoder, expert).kind == "full"
    assert expert.kind == kind


def test_a_low_rank_expert_holds_its_factors_alone() -> None:
    """No tensor of the size of a public matrix: bytes are those of factors, rows and biases."""
    decoder = random_decoder(tiny_shape(), 3)
    expert = _neutral(decoder, "low_rank")
    numbers = 2 * (3 * 3 * (24 + 40) + 24 + 1)
    assert expert.size_bytes == 4 * numbers
    bank = bank_of(decoder, {digest(1): expert})
    held = {tensor.data_ptr() for tensor in bank.expert(digest(1)).state_dict().values()}
    assert not held & {tensor.data_ptr() for tensor in decoder.state_dict().values()}
    reachable = [one for one in bank.expert(digest(1)).modules() if isinstance(one, SwiGLU)]
    assert reachable == []
    assert convert(decoder, upcycle(decoder), FfnForm(kind="int8", d_ffn=40))[0].size_bytes < (
        0.3 * upcycle(decoder).size_bytes
    )


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), length=st.integers(1, 20), data=st.data())
def test_slices_order_and_removal_are_exact_for_mixed_kinds(
    seed: int, length: int, data: st.DataObject
) -> None:
    """Laws 3, 4 and 7 on whole sequences: bit for bit for every k, with the removed ones full of NaN."""
    kinds = data.draw(st.permutations(EXPERT_KINDS), label="kinds")
    decoder, experts = random_world(seed, len(kinds), kinds=kinds)
    gone = data.draw(st.sets(st.sampled_from(sorted(experts)), min_size=1, max_size=4), label="gone")
    left = {name: expert for name, expert in experts.items() if name not in gone}
    sick, fresh = bank_of(decoder, experts), ExpertBank(BASE, decoder)
    for name in data.draw(st.permutations(sorted(left)), label="loading"):
        fresh.add(name, copy_of(left[name]))
    for name in gone:
        sick.poison(name)
    ids = prompt(seed, length)
    for top_k in range(1, len(kinds) + 2):
        masked = forward_logits(sick, ids, left, top_k)
        assert torch.isfinite(masked).all()
        assert torch.equal(masked, forward_logits(fresh, ids, sorted(left, reverse=True), top_k))
    owner = sorted(left)[0]
    with torch.inference_mode():
        alone = decoder(torch.tensor([ids]), [experts[owner]], top_k=2)[0]
    assert torch.equal(forward_logits(sick, ids, [owner], 2), alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gone_kind", EXPERT_KINDS)
def test_the_engine_forgets_an_expert_of_any_kind(gone_kind: ExpertKind, dtype: torch.dtype) -> None:
    """Law 4 in prefill, decode and mixed batches, in fp32 and bfloat16; order of naming is immaterial."""
    decoder, experts = random_world(41, 5, kinds=EXPERT_KINDS)
    if dtype == torch.bfloat16:
        for module in (decoder, *experts.values()):
            in_bfloat16(module)
    gone = next(name for name, expert in experts.items() if expert.kind == gone_kind)
    left = {name: expert for name, expert in experts.items() if name != gone}
    sick, fresh = bank_of(decoder, experts), bank_of(decoder, left)
    sick.poison(gone)
    answers = []
    for bank, names in ((sick, sorted(left)), (fresh, sorted(left, reverse=True))):
        engine = Engine(bank, max_sequences=4, max_context=48, prefill_tokens=8)
        asked = [
            request(bank, f"r{k}", prompt(k, 3 + 5 * k), names if k < 4 else (names[0], names[-1]), k)
            for k in range(1, 5)
        ]
        answers.append(drain(engine, asked))
    assert answers[0] == answers[1]
    assert all(math.isfinite(event.logprob) for said in answers[0].values() for event in said)


def test_a_bank_refuses_forms_that_do_not_fit_its_base() -> None:
    """A low-rank expert of another public width, a wider narrow one, and another dtype are refused."""
    decoder, wider = random_decoder(tiny_shape(), 5), random_decoder(tiny_shape(d_ffn=44), 5)
    bank = ExpertBank(BASE, decoder)
    for kind in ("low_rank", "narrow"):
        with pytest.raises(BundleWrongShape):
            bank.add(digest(1), _neutral(wider, kind))
    rounded = _neutral(decoder, "low_rank")
    in_bfloat16(rounded)
    with pytest.raises(BundleWrongShape):
        bank.add(digest(1), rounded)
    for kind in EXPERT_KINDS:
        bank.add(digest(1), _neutral(decoder, kind))
    bank.add(digest(2), upcycle(wider))  # a full one brings matrices of its own width


def test_impossible_forms_are_not_built() -> None:
    """A rank or pieces where the kind has none, missing, too many, or not dividing the width."""
    for wrong in (
        {"kind": "low_rank"},
        {"kind": "full", "rank": 2},
        {"kind": "low_rank", "rank": 9},
        {"kind": "split"},
        {"kind": "split", "pieces": 5},
        {"kind": "int8", "pieces": 2},
    ):
        with pytest.raises(ValueError, match=r"rank|pieces"):
            Expert(n_layers=1, d_model=8, d_ffn=12, **wrong)  # type: ignore[arg-type]
