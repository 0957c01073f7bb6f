# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_builders import VOCABULARY, random_decoder, random_expert, tiny_shape
from torch import Tensor

from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.training.fused import attention, weights
from model_core.training.fused.loss import linear_cross_entropy
from model_core.training.objective import PairObjective


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 rows, so that tiny models have several."""
    monkeypatch.setattr(weights, "_BLOCK_ELEMENTS", 1)


_FAMILIES = st.sampled_from(["olmo2", "llama", "olmoe"])


def _ids(seed: int, batch: int, positions: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (batch, positions), generator=torch.Generator().manual_seed(seed))


def _step(objective: PairObjective, ids_BS: Tensor) -> tuple[float, float, dict[str, Tensor]]:
    loss, plain = objective(ids_BS, ids_BS.flip(-1))
    loss.backward()
    found = {name: parameter.grad for name, parameter in objective.trainable() if parameter.grad is not None}
    objective.zero_grad()
    return float(loss.detach()), float(plain), found


def _written_out(decoder: Decoder, expert: Expert, ids_BS: Tensor) -> tuple[float, dict[str, Tensor]]:
    """The objective by the generic network and torch's own cross-entropy, every logit held."""
    squares = []
    logits_BSV = decoder(
        ids_BS,
        (expert,),
        top_k=2,
        observe=lambda _i, _h, routing: squares.append(routing.logits[0].logsumexp(-1).square().mean()),
    )
    loss = F.cross_entropy(logits_BSV.flatten(0, 1), ids_BS.flip(-1).flatten())
    loss = loss + 1e-2 * logits_BSV.logsumexp(-1).square().mean() + 1e-2 * torch.stack(squares).mean()
    loss.backward()
    found = {
        f"expert.{name}": parameter.grad
        for name, parameter in expert.named_parameters()
        if parameter.grad is not None
    }
    expert.zero_grad()
    return float(loss.detach()), found


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    family=_FAMILIES,
    kv_heads=st.sampled_from([1, 2, 4]),
    kind=st.sampled_from(["full", "narrow", "low_rank"]),
    gated=st.booleans(),
    tied=st.booleans(),
    positions=st.integers(1, 70),
)
def test_the_kernels_compute_what_the_network_computes(
    seed: int, family: str, kv_heads: int, kind: str, gated: bool, tied: bool, positions: int
) -> None:
    """Loss and every gradient equal those of the generic network, for each family and kind of expert."""
    shape = tiny_shape(family=family, n_kv_heads=kv_heads, tie_embeddings=tied)
    decoder = random_decoder(shape, seed)
    expert = random_expert(decoder, seed, gated=gated, kind=kind)  # type: ignore[arg-type]
    objective = PairObjective(decoder, expert, logit_z_loss=1e-2, router_z_loss=1e-2)
    assert objective.fused is not None
    ids_BS = _ids(seed, 2, positions)
    wanted_loss, wanted = _written_out(decoder, expert, ids_BS)
    loss, _, found = _step(objective, ids_BS)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert found.keys() == wanted.keys()
    whole = torch.cat([gradient.flatten() for gradient in wanted.values()]).norm()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * whole, name
    assert all(parameter.grad is None for parameter in decoder.parameters())


@pytest.mark.parametrize("family", ["olmo2", "llama"])
@pytest.mark.parametrize("fused", [True, False])
def test_recomputed_layers_give_the_same_bits(family: str, fused: bool) -> None:
    """Activation checkpointing changes memory alone: loss and gradients keep every bit."""
    decoder = random_decoder(tiny_shape(family=family), 4)
    expert = random_expert(decoder, 4)
    steps = []
    for recompute in (False, True):
        objective = PairObjective(decoder, expert, logit_z_loss=1e-5, router_z_loss=1e-3, recompute=recompute)
        if not fused:
            objective.use_modules()
        steps.append(_step(objective, _ids(4, 2, 33)))
    (loss, plain, kept), (loss_again, plain_again, made_again) = steps
    assert (loss, plain) == (loss_again, plain_again)
    assert kept
    assert kept.keys() == made_again.keys()
    assert all(torch.equal(kept[name], made_again[name]) for name in kept)


def test_bf16_strays_no_further_than_the_network_under_autocast() -> None:
    """In bf16 the kernels' gradients are as near to fp32 as those of the generic network under autocast."""
    decoder = random_decoder(tiny_shape(d_model=32, d_ffn=64), 5)
    expert = random_expert(decoder, 5, gated=False)
    ids_BS = _ids(5, 4, 64)
    objective = PairObjective(decoder, expert, logit_z_loss=1e-5, router_z_loss=1e-3)
    _, _, exact = _step(objective, ids_BS)

    def distance() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = objective(ids_BS, ids_BS.flip(-1))
        loss.backward()
        gradients = [(parameter.grad, exact[name]) for name, parameter in objective.trainable()]
        apart = sum(
            float((found - wanted).square().sum()) for found, wanted in gradients if found is not None
        )
        objective.zero_grad()
        return apart**0.5

    ours = distance()
    objective.use_modules()
    assert ours <= 1.3 * distance()


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 150),
    vocabulary=st.integers(2, 50),
    z_weight=st.floats(0, 0.1),
    seed=st.integers(0, 99),
)
def test_the_head_in_blocks_equals_the_head_at_once(
    rows: int, vocabulary: int, z_weight: float, seed: int
) -> None:
    """Cross-entropy, z-loss and both gradients are those of logits held whole."""
    generator = torch.Generator().manual_seed(seed)
    hidden_TD = torch.randn(rows, 8, generator=generator, requires_grad=True)
    head_VD = torch.randn(vocabulary, 8, generator=generator, requires_grad=True)
    targets_T = torch.randint(0, vocabulary, (rows,), generator=generator)
    logits_TV = hidden_TD @ head_VD.t()
    plain = F.cross_entropy(logits_TV, targets_T)
    whole = plain + z_weight * logits_TV.logsumexp(-1).square().mean()
    wanted = torch.autograd.grad(3 * whole, (hidden_TD, head_VD))
    loss, found_plain = linear_cross_entropy(hidden_TD, head_VD, targets_T, z_weight=z_weight)
    found = torch.autograd.grad(3 * loss, (hidden_TD, head_VD))
    torch.testing.assert_close(loss, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found_plain, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3), positions=st.integers(1, 90), heads=st.integers(1, 4), seed=st.integers(0, 99)
)
def test_attention_in_blocks_equals_torchs_own(batch: int, positions: int, heads: int, seed: int) -> None:
    """Output and gradients are those of torch's fused causal attention, whatever the block's size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_BLOCK_ELEMENTS", 32 * heads * positions)
        generator = torch.Generator().manual_seed(seed)
        parts = [
            torch.randn(batch, positions, heads, 8, generator=generator, requires_grad=True) for _ in range(3)
        ]
        weight = torch.randn(batch, positions, heads, 8, generator=generator)
        turned = [part.transpose(1, 2) for part in parts]
        wanted = F.scaled_dot_product_attention(*turned, is_causal=True).transpose(1, 2)
        found = attention.causal_attention(*parts)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            torch.autograd.grad((found * weight).sum(), parts),
            torch.autograd.grad((wanted * weight).sum(), parts),
            rtol=1e-4,
            atol=1e-4,
        )


def test_rows_are_cut_into_blocks_that_cover_them_once() -> None:
    """No row is missed or done twice, for any number of rows and any width."""
    for rows, width in ((1, 1), (64, 4096), (65, 4096), (1000, 768), (5, 10**7)):
        blocks = weights.row_blocks(rows, width, torch.device("cpu"))
        assert [row for block in blocks for row in range(rows)[block]] == list(range(rows))


def test_frozen_weights_are_rounded_once_and_never_touched() -> None:
    """The rounded copy is made once, and a weight that is already of the format is not copied."""
    decoder = random_decoder(tiny_shape(), 6)
    head = decoder.embed.weight
    before = head.detach().clone()
    frozen = weights.FrozenWeights()
    rounded = frozen.of(head, torch.bfloat16)
    assert frozen.of(head, torch.bfloat16) is rounded
    assert frozen.of(head, torch.float32).data_ptr() == head.data_ptr()
    assert torch.equal(head, before)
