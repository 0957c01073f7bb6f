# SPDX-License-Identifier: Apache-2.0
"""Names of tensors in the Hugging Face layouts and ours, in both directions.

Everything is one to one except two things. Experts stand split on disk (``experts.3.up_proj.weight``) but
some tools save them as they are in memory, fused over experts and over gate and up; ``Place`` then cuts one
expert's matrix out. And the router's rows stand in one matrix there, one row per expert here. Knows nothing
of files and values.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from model_core.interop.architectures import MIXTRAL, Architecture
from model_core.interop.config import Layout
from model_core.packing.manifest import ModelShape

FFN_PARTS = ("gate", "up", "down")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where one of our tensors lies in a checkpoint.

    Attributes:
        name: of the tensor that holds it.
        index: which entry of the first dimension, where experts or rows are stacked; None takes it whole.
        rows: first and last (exclusive) row of what is left, where gate and up stand in one matrix.
    """

    name: str
    index: int | None = None
    rows: tuple[int, int] | None = None


def trunk_places(layout: Layout) -> dict[str, Place]:
    """Our name → place of everything that is neither an FFN nor a router."""
    shape, places = layout.shape, {}
    places["embed.weight"] = Place(name="model.embed_tokens.weight")
    places["norm.weight"] = Place(name="model.norm.weight")
    if not shape.tie_embeddings:
        places["lm_head.weight"] = Place(name="lm_head.weight")
    before, after = _norms(shape)
    for layer in range(shape.n_layers):
        ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
        for part in "qkvo":
            places[f"{ours}.attn.{part}.weight"] = Place(name=f"{theirs}.self_attn.{part}_proj.weight")
        if shape.qk_norm:
            for part in "qk":
                places[f"{ours}.attn.{part}_norm.weight"] = Place(
                    name=f"{theirs}.self_attn.{part}_norm.weight"
                )
        places[f"{ours}.attn_norm.weight"] = Place(name=f"{theirs}.{before}.weight")
        places[f"{ours}.ffn_norm.weight"] = Place(name=f"{theirs}.{after}.weight")
    return places


def ffn_places(layout: Layout, expert: int, *, fused: bool) -> dict[str, Place]:
    """Our name → place of one expert's networks; expert 0 is the public one (of a dense model: the only one).

    Args:
        layout: of the checkpoint.
        expert: its index there.
        fused: whether experts stand in stacked matrices, gate above up.
    """
    kind, shape, places = layout.architecture, layout.shape, {}
    for layer in range(shape.n_layers):
        at = f"model.layers.{layer}"
        for part in FFN_PARTS:
            if not kind.moe:
                place = Place(name=f"{at}.mlp.{part}_proj.weight")
            elif not fused:
                place = Place(name=f"{at}.{_expert_prefix(kind)}.{expert}.{_expert_part(kind, part)}.weight")
            elif part == "down":
                place = Place(name=f"{at}.mlp.experts.down_proj", index=expert)
            else:
                first = 0 if part == "gate" else shape.d_ffn
                rows = (first, first + shape.d_ffn)
                place = Place(name=f"{at}.mlp.experts.gate_up_proj", index=expert, rows=rows)
            places[f"layers.{layer}.ffn.{part}.weight"] = place
    return places


def router_name(kind: Architecture, layer: int) -> str:
    """The matrix of a layer's router rows, ``[E, D]``."""
    block = "block_sparse_moe" if kind is MIXTRAL else "mlp"
    return f"model.layers.{layer}.{block}.gate.weight"


def is_fused(names: Collection[str]) -> bool:
    """Whether a checkpoint holds its experts as they are in memory."""
    return "model.layers.0.mlp.experts.gate_up_proj" in names


def expected_names(layout: Layout, *, fused: bool) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this layout must hold, with its shape."""
    shape, kind = layout.shape, layout.architecture
    d_q, d_kv = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    sizes = {
        "embed.weight": (shape.vocab_size, shape.d_model),
        "lm_head.weight": (shape.vocab_size, shape.d_model),
        "attn.q.weight": (d_q, shape.d_model),
        "attn.k.weight": (d_kv, shape.d_model),
        "attn.v.weight": (d_kv, shape.d_model),
        "attn.o.weight": (shape.d_model, d_q),
        "attn.q_norm.weight": (d_q,),
        "attn.k_norm.weight": (d_kv,),
        "ffn.gate.weight": (shape.d_ffn, shape.d_model),
        "ffn.up.weight": (shape.d_ffn, shape.d_model),
        "ffn.down.weight": (shape.d_model, shape.d_ffn),
    }
    names: dict[str, tuple[int, ...]] = {}
    for ours, place in trunk_places(layout).items():
        names[place.name] = sizes.get(_without_layer(ours), (shape.d_model,))
    for expert in range(layout.n_experts):
        for ours, place in ffn_places(layout, expert, fused=fused).items():
            size = sizes[_without_layer(ours)]
            if place.index is not None:
                rows = size[0] if place.rows is None else 2 * size[0]
                size = (layout.n_experts, rows, size[1])
            names[place.name] = size
    if kind.moe:
        for layer in range(shape.n_layers):
            names[router_name(kind, layer)] = (layout.n_experts, shape.d_model)
    return names


def may_be_ignored(name: str, *, tied: bool) -> bool:
    """Whether a checkpoint may hold a tensor of this name without its being part of the model."""
    if name.endswith(".rotary_emb.inv_freq"):  # old savers kept this derived buffer
        return True
    return tied and name == "lm_head.weight"


def _without_layer(ours: str) -> str:
    return ours.split(".", 2)[2] if ours.startswith("layers.") else ours


def _norms(shape: ModelShape) -> tuple[str, str]:
    """Their names of the norms around attention and around the FFN."""
    if shape.norm_before:
        return "input_layernorm", "post_attention_layernorm"
    return "post_attention_layernorm", "post_feedforward_layernorm"


def _expert_prefix(kind: Architecture) -> str:
    return "block_sparse_moe.experts" if kind is MIXTRAL else "mlp.experts"


def _expert_part(kind: Architecture, part: str) -> str:
    return {"gate": "w1", "up": "w3", "down": "w2"}[part] if kind is MIXTRAL else f"{part}_proj"
