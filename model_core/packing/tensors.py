# SPDX-License-Identifier: Apache-2.0
"""Which tensors the weights file of a base or of an expert holds, as its manifest implies them.

Writers, readers and checks agree on these tables. Knows no tensor library and no values.
"""

from __future__ import annotations

from model_core.packing.forms import EXACT_DTYPES, TensorSpec, ffn_specs
from model_core.packing.manifest import BaseManifest, ExpertManifest


def base_tensor_shapes(manifest: BaseManifest) -> dict[str, tuple[int, ...]]:
    """Every tensor of ``base.safetensors`` with its exact shape (linear layers are out x in).

    QK norms, where the family has them, span the full width of queries and of keys, as in OLMo 2.
    """
    shape = manifest.shape
    d_model, d_q, d_kv = shape.d_model, shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embed.weight": (shape.vocab_size, d_model),
        "norm.weight": (d_model,),
    }
    if not shape.tie_embeddings:
        shapes["lm_head.weight"] = (shape.vocab_size, d_model)
    for layer in range(shape.n_layers):
        at = f"layers.{layer}"
        shapes[f"{at}.attn.q.weight"] = (d_q, d_model)
        shapes[f"{at}.attn.k.weight"] = (d_kv, d_model)
        shapes[f"{at}.attn.v.weight"] = (d_kv, d_model)
        shapes[f"{at}.attn.o.weight"] = (d_model, d_q)
        if shape.qk_norm:
            shapes[f"{at}.attn.q_norm.weight"] = (d_q,)
            shapes[f"{at}.attn.k_norm.weight"] = (d_kv,)
        shapes[f"{at}.attn_norm.weight"] = (d_model,)
        shapes |= _ffn_shapes(at, d_model, shape.d_ffn)
        shapes[f"{at}.ffn_norm.weight"] = (d_model,)
        shapes[f"{at}.router.row"] = (d_model,)
    return shapes


def base_tensors(manifest: BaseManifest) -> dict[str, TensorSpec]:
    """Every tensor of ``base.safetensors`` with its exact shape and the dtypes that it may have."""
    return {name: TensorSpec(shape=shape) for name, shape in base_tensor_shapes(manifest).items()}


def expert_tensors(manifest: ExpertManifest) -> dict[str, TensorSpec]:
    """Every tensor of ``expert.safetensors`` with its exact shape and the dtypes that it may have.

    Per layer: the network in the form of its kind, the router's row and bias, and the domain gate if it has
    one, a logistic regression on the standardised running mean of the residual (weight, bias, mean, scale).
    """
    vector = TensorSpec(shape=(manifest.d_model,), dtypes=EXACT_DTYPES)
    scalar = TensorSpec(shape=(), dtypes=EXACT_DTYPES)
    routing = {"router.row": vector, "router.bias": scalar}
    if manifest.gated:
        routing |= {
            "gate.weight": vector,
            "gate.bias": scalar,
            "gate.mean": vector,
            "gate.scale": vector,
        }
    part = {f"ffn.{name}": spec for name, spec in ffn_specs(manifest.form, manifest.d_model).items()}
    return {
        f"layers.{layer}.{name}": spec
        for layer in range(manifest.n_layers)
        for name, spec in (part | routing).items()
    }


def expert_tensor_shapes(manifest: ExpertManifest) -> dict[str, tuple[int, ...]]:
    """Every tensor of ``expert.safetensors`` with its exact shape (linear layers are out x in)."""
    return {name: spec.shape for name, spec in expert_tensors(manifest).items()}


def _ffn_shapes(at: str, d_model: int, d_ffn: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{at}.ffn.gate.weight": (d_ffn, d_model),
        f"{at}.ffn.up.weight": (d_ffn, d_model),
        f"{at}.ffn.down.weight": (d_model, d_ffn),
    }
