# SPDX-License-Identifier: Apache-2.0
"""The decoder against the reference implementations of OLMo-2 and FlexOlmo in transformers."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tensor_builders import prompt, random_decoder, random_expert, tiny_shape

from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.packing.manifest import ModelShape

transformers = pytest.importorskip("transformers")


def random_shape(seed: int) -> ModelShape:
    """A tiny shape with odd sizes, grouped keys, tied embeddings and thetas of all kinds."""
    pick = random.Random(seed)
    n_heads = pick.choice([1, 2, 3, 4, 6])
    return tiny_shape(
        n_layers=pick.randint(1, 3),
        n_heads=n_heads,
        n_kv_heads=pick.choice([n for n in range(1, n_heads + 1) if n_heads % n == 0]),
        d_model=n_heads * pick.choice([2, 4, 6, 10]),
        d_ffn=pick.choice([7, 16, 33]),
        rope_theta=pick.choice([100.0, 10_000.0, 500_000.0]),
        norm_eps=pick.choice([1e-6, 1e-5]),
        tie_embeddings=pick.random() < 0.4,
    )


def settings_of(shape: ModelShape, **more: Any) -> dict[str, Any]:
    """Arguments of a transformers config of this shape."""
    return {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_ffn,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "tie_word_embeddings": shape.tie_embeddings,
        "pad_token_id": None,
        "eos_token_id": None,
    } | more


def reference_tensors(decoder: Decoder, experts: list[Expert], *, moe: bool) -> dict[str, torch.Tensor]:
    """Our weights under transformers' in-memory names."""
    there = {"model.embed_tokens.weight": decoder.embed.weight, "model.norm.weight": decoder.norm.weight}
    if decoder.lm_head is not None:
        there["lm_head.weight"] = decoder.lm_head.weight
    for index in range(decoder.shape.n_layers):
        layer, at = decoder.layer(index), f"model.layers.{index}"
        for part in "qkvo":
            there[f"{at}.self_attn.{part}_proj.weight"] = getattr(layer.attn, part).weight
        for part in ("q_norm", "k_norm"):
            there[f"{at}.self_attn.{part}.weight"] = getattr(layer.attn, part).weight
        there[f"{at}.post_attention_layernorm.weight"] = layer.attn_norm.weight
        there[f"{at}.post_feedforward_layernorm.weight"] = layer.ffn_norm.weight
        if not moe:
            for part in ("gate", "up", "down"):
                there[f"{at}.mlp.{part}_proj.weight"] = getattr(layer.ffn, part).weight
            continue
        ffns = [layer.ffn, *(expert.layer(index).ffn for expert in experts)]
        rows = [layer.router.row, *(expert.layer(index).router.row for expert in experts)]
        there[f"{at}.mlp.gate.weight"] = torch.stack(rows)
        there[f"{at}.mlp.experts.gate_up_proj"] = torch.stack(
            [torch.cat((ffn.gate.weight, ffn.up.weight)) for ffn in ffns]
        )
        there[f"{at}.mlp.experts.down_proj"] = torch.stack([ffn.down.weight for ffn in ffns])
    return {name: tensor.detach().clone() for name, tensor in there.items()}


def load(model: torch.nn.Module, tensors: dict[str, torch.Tensor], *, tied: bool) -> torch.nn.Module:
    """Fills a reference model, all names accounted for."""
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if tied else set())
    return model.eval()


@pytest.mark.parametrize("seed", range(20))
def test_dense_logits_equal_olmo2(seed: int) -> None:
    """Without experts the decoder is OLMo-2: logits within 1e-4 on random shapes."""
    shape = random_shape(seed)
    decoder = random_decoder(shape, seed)
    config = transformers.Olmo2Config(**settings_of(shape))
    reference = load(
        transformers.Olmo2ForCausalLM(config),
        reference_tensors(decoder, [], moe=False),
        tied=shape.tie_embeddings,
    )
    ids = torch.tensor([prompt(seed, 17), prompt(seed + 1, 17)])
    with torch.no_grad():
        assert torch.allclose(decoder(ids), reference(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_mixture_logits_equal_flexolmo(seed: int) -> None:
    """With ungated, unbiased experts it is FlexOlmo: any number of experts, any k, renormalised or not."""
    pick, shape = random.Random(seed), random_shape(100 + seed)
    decoder = random_decoder(shape, seed)
    experts = [random_expert(decoder, 10 * seed + i, gated=False) for i in range(pick.randint(1, 5))]
    for expert in experts:
        for index in range(shape.n_layers):
            torch.nn.init.zeros_(expert.layer(index).router.get_buffer("bias"))
    top_k, renormalise = pick.randint(1, 1 + len(experts)), pick.random() < 0.5
    config = transformers.FlexOlmoConfig(
        **settings_of(
            shape,
            num_experts=1 + len(experts),
            num_experts_per_tok=top_k,
            norm_topk_prob=renormalise,
        )
    )
    blank = transformers.FlexOlmoForCausalLM(config)
    blank.set_experts_implementation("eager")  # the grouped kernel wants strides that odd sizes do not have
    reference = load(
        blank,
        reference_tensors(decoder, experts, moe=True),
        tied=shape.tie_embeddings,
    )
    ids = torch.tensor([prompt(seed, 17), prompt(seed + 1, 17)])
    with torch.no_grad():
        ours = decoder(ids, experts, top_k=top_k, renormalise=renormalise)
        assert torch.allclose(ours, reference(ids).logits, atol=1e-4, rtol=1e-4)
