# SPDX-License-Identifier: Apache-2.0
"""Writes an OLMoE-layout world as a GGUF file for llama.cpp, tensor for tensor, without a vocabulary.

Key and tensor names are those of the GGUF specification and of llama.cpp's ``olmoe`` architecture. Norms and
router rows are fp32 there in every file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.serving.worlds import World

_ATTENTION = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}


def write_gguf(world: World, path: Path) -> None:
    """Writes a world.

    Args:
        world: of the family ``olmoe``, fp32 or bf16.
        path: new file.

    Raises:
        ValueError: another family or format.
    """
    import gguf

    sizes = world.sizes
    if sizes.family != "olmoe" or world.number_format == "int8":
        raise ValueError("Only OLMoE layouts in fp32 or bf16 are written for llama.cpp.")
    writer = gguf.GGUFWriter(path, "olmoe")
    writer.add_block_count(sizes.layers)
    writer.add_context_length(sizes.positions)
    writer.add_embedding_length(sizes.width)
    writer.add_feed_forward_length(sizes.inner)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.heads)
    writer.add_layer_norm_rms_eps(sizes.shape.norm_eps)
    writer.add_rope_freq_base(sizes.shape.rope_theta)
    writer.add_expert_count(sizes.experts)
    writer.add_expert_used_count(sizes.top_k)
    writer.add_vocab_size(sizes.vocabulary)
    writer.add_tokenizer_model("none")
    for name, tensor in tensors(world).items():
        _add(writer, name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(world: World) -> dict[str, Tensor]:
    """All tensors under their names there."""
    decoder = world.decoder
    assert decoder.lm_head is not None  # noqa: S101  (the benchmark's shapes have a head of their own)
    found = {
        "token_embd": decoder.embed.weight,
        "output_norm": decoder.norm.weight,
        "output": decoder.lm_head.weight,
    }
    for index in range(world.sizes.layers):
        layer = decoder.layer(index)
        members: list[Any] = [layer, *(expert.layer(index) for expert in world.experts.values())]
        parts: dict[str, Any] = {theirs: getattr(layer.attn, ours) for ours, theirs in _ATTENTION.items()}
        parts |= {"attn_q_norm": layer.attn.q_norm, "attn_k_norm": layer.attn.k_norm}
        parts |= {"attn_norm": layer.attn_norm, "ffn_norm": layer.ffn_norm}
        found |= {f"blk.{index}.{name}": module.weight for name, module in parts.items()}
        found[f"blk.{index}.ffn_gate_inp"] = torch.stack([member.router.row for member in members])
        for part in ("gate", "up", "down"):
            stack = torch.stack([getattr(member.ffn, part).weight for member in members])
            found[f"blk.{index}.ffn_{part}_exps"] = stack
    return {f"{name}.weight": tensor.detach() for name, tensor in found.items()}


def _add(writer: Any, name: str, tensor: Tensor) -> None:
    import gguf

    if tensor.dtype == torch.bfloat16 and tensor.dim() > 1:
        raw = tensor.contiguous().view(torch.uint16).numpy()
        writer.add_tensor(name, raw.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, tensor.float().contiguous().numpy())
