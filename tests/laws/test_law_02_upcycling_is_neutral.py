# SPDX-License-Identifier: Apache-2.0
"""Law 2: a mixture of copies of the public network equals the dense base."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_builders import prompt, random_decoder, tiny_shape
from tensor_worlds import shapes

from model_core.network.decoder import upcycle
from model_core.packing.forms import FfnForm
from model_core.packing.manifest import ModelShape
from model_core.training.conversions import to_split
from model_core.training.kinds import start_expert


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_copies=st.integers(1, 6),
    length=st.integers(1, 24),
    head_dim=st.sampled_from([4, 6]),
    groups=st.sampled_from([1, 2]),
    tied=st.booleans(),
    renormalise=st.booleans(),
    data=st.data(),
)
def test_copies_of_the_public_expert_leave_the_function_as_it_was(
    seed: int,
    n_copies: int,
    length: int,
    head_dim: int,
    groups: int,
    tied: bool,
    renormalise: bool,
    data: st.DataObject,
) -> None:
    """Whatever the router's rows: k = n, or any k with renormalised weights, gives the dense logits."""
    top_k = data.draw(st.integers(1, n_copies + 1), label="k") if renormalise else n_copies + 1
    shape = tiny_shape(d_model=4 * head_dim, n_kv_heads=4 // groups, tie_embeddings=tied, n_layers=3)
    decoder = random_decoder(shape, seed)
    experts = [upcycle(decoder) for _ in range(n_copies)]
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([prompt(seed, length)])
    with torch.no_grad():
        for expert in experts:
            for layer in range(shape.n_layers):
                expert.layer(layer).router.row.normal_(generator=generator)
        dense = decoder(ids)
        mixed = decoder(ids, experts, top_k=top_k, renormalise=renormalise)
    assert (dense - mixed).abs().max() <= 1e-5 * max(1.0, float(dense.abs().max()))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), n_copies=st.integers(1, 4), data=st.data())
def test_without_renormalising_the_norm_behind_the_mixture_undoes_the_lost_weight(
    seed: int, n_copies: int, data: st.DataObject
) -> None:
    """Fewer than all without renormalising: equal where its mean square is at least 10,000 eps."""
    top_k = data.draw(st.integers(1, n_copies), label="k")
    shape = tiny_shape(norm_eps=1e-12)
    decoder = random_decoder(shape, seed, std=0.3)
    experts = [upcycle(decoder) for _ in range(n_copies)]
    ids = torch.tensor([prompt(seed, 12)])
    squares: list[float] = []
    with torch.no_grad():
        for layer in range(shape.n_layers):
            decoder.layer(layer).ffn.register_forward_hook(
                lambda _module, _args, out: squares.append(float(out.square().mean(-1).min()))
            )
        dense = decoder(ids)
        mixed = decoder(ids, experts, top_k=top_k)
    assert min(squares) >= 1e4 * shape.norm_eps
    assert (dense - mixed).abs().max() <= 1e-5 * max(1.0, float(dense.abs().max()))


def test_a_copy_in_training_starts_at_the_loss_of_the_base() -> None:
    """Beside the public expert with k = 2 a fresh expert changes nothing: training starts from the base."""
    decoder = random_decoder(tiny_shape(), seed=5)
    ids = torch.tensor([prompt(5, 20), prompt(6, 20)])
    with torch.no_grad():
        assert torch.allclose(decoder(ids), decoder(ids, [upcycle(decoder)], top_k=2), atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 1000), data=st.data())
def test_copies_of_any_exact_kind_leave_any_family_as_it_was(
    shape: ModelShape, seed: int, data: st.DataObject
) -> None:
    """Full, split and fresh low-rank copies side by side, k = n or any k renormalised: the dense logits."""
    decoder = random_decoder(shape, seed)
    makers = {
        "full": lambda: upcycle(decoder),
        "split": lambda: to_split(upcycle(decoder), shape.d_ffn),
        "low_rank": lambda: start_expert(decoder, FfnForm(kind="low_rank", d_ffn=shape.d_ffn, rank=2)),
    }
    chosen = data.draw(st.lists(st.sampled_from(sorted(makers)), min_size=1, max_size=6), label="kinds")
    experts = [makers[kind]() for kind in chosen]
    top_k = len(experts) + 1
    if shape.renormalise:
        top_k = data.draw(st.integers(1, top_k), label="k")
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([prompt(seed, 14)])
    with torch.no_grad():
        for expert in experts:
            for layer in range(shape.n_layers):
                expert.layer(layer).router.row.normal_(generator=generator)
        dense = decoder(ids)
        mixed = decoder(ids, experts, top_k=top_k)
    assert (dense - mixed).abs().max() <= 2e-5 * max(1.0, float(dense.abs().max()))
