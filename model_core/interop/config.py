# SPDX-License-Identifier: Apache-2.0
"""A model's ``config.json``, read into a typed layout and written from one.

What this decoder does not compute exactly is refused by the name of its field, never guessed: a wrong guess
loads, runs and is subtly wrong. A field that is absent has the default of its architecture
(architectures.py). Knows nothing of tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from model_core.errors import ConfigUnsupported, ModelFolderRefused
from model_core.interop.architectures import (
    ARCHITECTURES,
    FLEX_OLMO,
    LLAMA,
    MIXTRAL,
    OLMO2,
    OLMOE,
    Architecture,
)
from model_core.interop.folders import read_side_file
from model_core.packing.manifest import ModelShape

CONFIG_FILE = "config.json"
_MAX_CONFIG_BYTES = 1 << 20

# Present with another value than one of these, a field changes the function that the model computes.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "pretraining_tp": (1, None),
    "sliding_window": (None,),
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
    "compression_config": (None,),
    "partial_rotary_factor": (None, 1.0),
    "is_encoder_decoder": (False, None),
    "cross_attention_hidden_size": (None,),
    "layer_types": (None,),
    "logits_soft_cap": (None,),
    "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,),
    "residual_multiplier": (None, 1.0),
    "embedding_multiplier": (None, 1.0),
    "logits_scaling": (None, 1.0),
    "auto_map": (None,),
}
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What a config says, in our terms.

    Attributes:
        architecture: whose layout it is.
        shape: family and sizes; ``renormalise`` as the config says, or True for dense Llama models, where
            anything else would weaken the FFN as soon as a token takes fewer experts than there are.
        n_experts: experts in every layer, the public one counted; 1 for dense models.
        top_k: experts per token; 1 for dense models.
    """

    architecture: Architecture
    shape: ModelShape
    n_experts: int
    top_k: int


def read_config(folder: Path, *, max_positions: int | None = None) -> Layout:
    """Reads and checks ``config.json``.

    Args:
        folder: of the model.
        max_positions: longest sequence to serve, in place of the config's (some say -1).

    Raises:
        ModelFolderRefused: there is no such file, or it is no JSON object.
        ConfigUnsupported: ``facts["field"]`` has a value that this decoder does not compute.
    """
    return parse_config(_load(folder), max_positions=max_positions)


def parse_config(fields: Mapping[str, Any], *, max_positions: int | None = None) -> Layout:
    """Checks the fields of a config.

    Args:
        fields: as in ``config.json``.
        max_positions: as ``read_config``.

    Raises:
        ConfigUnsupported: as ``read_config``.
    """
    kind = _architecture(fields)
    for field, allowed in _ONLY.items():
        if field in fields and not _among(fields[field], allowed):
            _unsupported(field, fields[field], f"only {_spell(allowed[0])} is supported")
    full = {**kind.defaults, **fields}
    for field in _SIZES:
        if full.get(field) is None:
            _unsupported(field, None, "it must be given")
    n_experts = _whole(full, kind.experts_field) if kind.moe else 1
    top_k = _whole(full, "num_experts_per_tok") if kind.moe else 1
    if top_k > n_experts:
        _unsupported("num_experts_per_tok", top_k, f"there are only {n_experts} experts")
    return Layout(
        architecture=kind, shape=_shape(kind, full, max_positions), n_experts=n_experts, top_k=top_k
    )


def write_config(
    layout: Layout, *, dtype: str, d_ffn: int | None = None, tokens: Mapping[str, Any] | None = None
) -> bytes:
    """The ``config.json`` of a layout, every field spelled out, keys sorted.

    Args:
        layout: what to say.
        dtype: of the weights: ``float32``, ``bfloat16`` or ``float16``.
        d_ffn: inner width of all experts, where it is not the shape's.
        tokens: ``bos_token_id``, ``eos_token_id`` and ``pad_token_id``, where known.
    """
    kind, shape = layout.architecture, layout.shape
    fields: dict[str, Any] = {
        "architectures": [kind.name],
        "model_type": kind.model_type,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_ffn if d_ffn is None else d_ffn,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_eps,
        "tie_word_embeddings": shape.tie_embeddings,
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
        "rope_theta": shape.rope_theta,  # what readers before transformers 5 look at
        "attention_bias": False,
        "dtype": dtype,
        "torch_dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **(tokens or {}),
    }
    if shape.d_head is not None or kind in (LLAMA, MIXTRAL):
        fields["head_dim"] = shape.head_dim
    if kind is LLAMA:
        fields["mlp_bias"] = False
    if kind.family == "olmoe":
        fields["clip_qkv"] = shape.clip_qkv
    if kind.moe:
        fields[kind.experts_field] = layout.n_experts
        fields["num_experts_per_tok"] = layout.top_k
        fields["output_router_logits"] = False
    # A dense OLMo-2 config knows no such field and keeps it unread: it is for experts that join later.
    if kind in (OLMOE, FLEX_OLMO) or (kind is OLMO2 and shape.renormalise):
        fields["norm_topk_prob"] = shape.renormalise
    if kind is MIXTRAL:
        fields["sliding_window"] = None
    return (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()


def _load(folder: Path) -> dict[str, Any]:
    try:
        fields = json.loads(read_side_file(folder, CONFIG_FILE, _MAX_CONFIG_BYTES) or b"")
    except (ValueError, RecursionError) as error:
        raise ModelFolderRefused(
            f"The folder has no readable {CONFIG_FILE}; pass the folder that a model was saved into.",
            file=CONFIG_FILE,
        ) from error
    if not isinstance(fields, dict):
        raise ModelFolderRefused(f"{CONFIG_FILE} is not a JSON object.", file=CONFIG_FILE)
    return fields


def _architecture(fields: Mapping[str, Any]) -> Architecture:
    names = fields.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in ARCHITECTURES:
        _unsupported("architectures", names, f"supported are {', '.join(sorted(ARCHITECTURES))}")
    kind = ARCHITECTURES[names[0]]
    if fields.get("model_type", kind.model_type) != kind.model_type:
        _unsupported("model_type", fields["model_type"], f"{kind.name} has {kind.model_type!r}")
    return kind


def _shape(kind: Architecture, full: Mapping[str, Any], max_positions: int | None) -> ModelShape:
    n_heads, d_model = _whole(full, "num_attention_heads"), _whole(full, "hidden_size")
    given = full.get("head_dim")
    d_head = None if given is None else _whole(full, "head_dim")
    if d_head is not None and d_head * n_heads == d_model:
        d_head = None
    if d_head is not None and kind is OLMOE:
        _unsupported("head_dim", given, "its QK norms are as wide as hidden_size")
    if d_head is None and d_model % n_heads:
        _unsupported("hidden_size", d_model, "it must be a multiple of num_attention_heads")
    if (d_head or d_model // n_heads) % 2:
        _unsupported("head_dim", d_head or d_model // n_heads, "rotary positions need an even width")
    if "clip_qkv" in full and full["clip_qkv"] is not None and kind is not OLMOE:
        _unsupported("clip_qkv", full["clip_qkv"], "only OLMoE clips")
    heads_kv = n_heads if full["num_key_value_heads"] is None else _whole(full, "num_key_value_heads")
    if n_heads % heads_kv:
        _unsupported("num_key_value_heads", heads_kv, f"it must divide the {n_heads} heads")
    positions = _whole(full, "max_position_embeddings") if max_positions is None else max_positions
    # Mixtral's code always renormalises, whatever a stray field says; dense Llama: see ``Layout``.
    renormalise = kind.family == "llama" or _flag(full, "norm_topk_prob")
    try:
        return ModelShape(
            family=kind.family,
            n_layers=_whole(full, "num_hidden_layers"),
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=heads_kv,
            d_ffn=_whole(full, "intermediate_size"),
            vocab_size=_whole(full, "vocab_size"),
            max_positions=positions,
            rope_theta=_rope_theta(kind, full),
            norm_eps=_number(full, "rms_norm_eps"),
            tie_embeddings=_flag(full, "tie_word_embeddings"),
            d_head=d_head,
            renormalise=renormalise,
            clip_qkv=None if full.get("clip_qkv") is None else _number(full, "clip_qkv"),
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "sizes"
        _unsupported(field, full.get(field), first["msg"])


def _rope_theta(kind: Architecture, full: Mapping[str, Any]) -> float:
    """The base of the frequencies; both the old form (``rope_theta``) and the new are read."""
    theta = _number(full if full["rope_theta"] is not None else kind.defaults, "rope_theta")
    for field in ("rope_parameters", "rope_scaling"):
        value = full.get(field)
        if value is None:
            continue
        if not isinstance(value, dict):
            _unsupported(field, value, "it must be an object")
        if value.get("rope_type", value.get("type", "default")) != "default":
            _unsupported(field, value, "only unscaled rotary positions are supported")
        if not _among(value.get("partial_rotary_factor"), (None, 1.0)):
            _unsupported(field, value, "only a whole rotation is supported")
        unknown = value.keys() - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
        if unknown:
            _unsupported(field, value, f"{sorted(unknown)[0]} is not known")
        if value.get("rope_theta") is not None:
            theta = _number(value, "rope_theta")
    return theta


def _whole(fields: Mapping[str, Any], field: str) -> int:
    value = fields.get(field)
    if type(value) is not int or not 1 <= value < 2**53:
        hint = " (pass the number of positions to serve)" if field == "max_position_embeddings" else ""
        _unsupported(field, value, f"it must be a positive whole number{hint}")
    return value


def _number(fields: Mapping[str, Any], field: str) -> float:
    value = fields.get(field)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value <= 0
    ):
        _unsupported(field, value, "it must be a positive number")
    return float(value)


def _flag(fields: Mapping[str, Any], field: str) -> bool:
    value = fields.get(field)
    if not isinstance(value, bool):
        _unsupported(field, value, "it must be true or false")
    return value


def _among(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether a value is one of these; true is not 1 here."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed)


def _spell(value: Any) -> str:
    return json.dumps(value)


def _unsupported(field: str, value: Any, why: str) -> NoReturn:
    try:
        said = json.dumps(value)[:200]
    except (TypeError, ValueError):
        said = repr(value)[:200]
    raise ConfigUnsupported(
        f"The model's config has {field} = {said}, which is not supported: {why}.", field=field, value=said
    )
