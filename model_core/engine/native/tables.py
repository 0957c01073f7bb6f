# SPDX-License-Identifier: Apache-2.0
"""The structures that a step takes (``source/model.hpp``), and how packed weights become one.

Addresses only: whoever makes a table keeps alive what it points to. Holds no states and calls nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from model_core.engine.native.panels import KINDS, MatrixView, panel_kind
from model_core.engine.native.weights import (
    PackedBase,
    PackedBaseLayer,
    PackedExpert,
    PackedExpertLayer,
    PackedFactors,
    PackedFfn,
)
from model_core.packing.manifest import ModelShape

_P, _I64, _I32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


class ShapeView(ctypes.Structure):
    """Sizes of a decoder and its columns."""

    _fields_ = (
        *((name, _I64) for name in ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim")),
        ("vocab_size", _I64),
        ("n_columns", _I64),
        ("n_positions", _I64),
        ("norm_eps", ctypes.c_float),
        ("clip", ctypes.c_float),
        ("norm_before", _I32),
        ("renormalise", _I32),
    )


class NetworkView(ctypes.Structure):
    """A SwiGLU, and a change of low rank to each of its matrices (without data: none)."""

    _fields_ = tuple(
        (name, MatrixView)
        for name in ("gate", "up", "down", "gate_a", "gate_b", "up_a", "up_b", "down_a", "down_b")
    )


class ColumnView(ctypes.Structure):
    """An expert in one layer."""

    _fields_ = (
        ("network", NetworkView),
        ("row", _P),
        ("gate_row", _P),
        ("gate_bias", ctypes.c_double),
        ("bias", ctypes.c_float),
    )


class LayerView(ctypes.Structure):
    """The base in one layer, its public network aside."""

    _fields_ = (
        *((name, MatrixView) for name in ("q", "k", "v", "o")),
        *((name, _P) for name in ("attn_norm", "ffn_norm", "q_norm", "k_norm")),
    )


class ModelView(ctypes.Structure):
    """A base and all columns."""

    _fields_ = (
        ("shape", ShapeView),
        ("embedding", _P),
        ("embedding_kind", _I32),
        ("head", MatrixView),
        *((name, _P) for name in ("norm", "rope_cos", "rope_sin", "layers", "columns")),
    )


class StatesView(ctypes.Structure):
    """Where states lie."""

    _fields_ = (
        *((name, _P) for name in ("keys_values", "page_sums", "tails")),
        ("n_pages", _I64),
        ("n_tails", _I64),
        ("kind", _I32),
    )


class BatchView(ctypes.Structure):
    """What a step computes, and where its results go."""

    _fields_ = (
        ("n_pieces", _I64),
        ("n_rows", _I64),
        *((name, _P) for name in ("ids", "starts", "lengths", "tails", "top_k")),
        *((name, _P) for name in ("pages_at", "pages", "columns_at", "columns")),
        *((name, _P) for name in ("logits", "shares", "new_tails", "touched")),
        *((name, _P) for name in ("likeliest", "log_totals", "ppm")),
    )


class Record(ctypes.Structure):
    """A matrix that was multiplied, and by how many rows."""

    _fields_ = (("address", ctypes.c_uint64), ("rows", _I64))


def model_view(
    shape: ModelShape,
    base: PackedBase,
    experts: Sequence[PackedExpert],
    rope: tuple[Tensor, Tensor],
) -> ModelView:
    """The table of a base and experts.

    Args:
        shape: sizes of the base.
        base: its weights.
        experts: in canonical order.
        rope: cosines and sines of all positions, fp32, contiguous.
    """
    columns = []
    for index, layer in enumerate(base.layers):
        columns.append(_column(layer.public, layer.public))
        columns += [_column(expert.layers[index], layer.public) for expert in experts]
    table = ModelView(shape=_shape(shape, 1 + len(experts)), head=base.head.view())
    if base.embedding_VD is not None:
        table.embedding = base.embedding_VD.data_ptr()
        table.embedding_kind = KINDS.index(panel_kind(base.embedding_VD.dtype))
    table.norm = base.norm_D.data_ptr()
    table.rope_cos, table.rope_sin = (part.data_ptr() for part in rope)
    # Arrays that a structure points to live as long as the structure: ctypes keeps what an attribute holds.
    table.owned = (
        (LayerView * len(base.layers))(*map(_layer, base.layers)),
        (ColumnView * len(columns))(*columns),
    )
    table.layers, table.columns = (ctypes.addressof(array) for array in table.owned)
    return table


def _shape(shape: ModelShape, n_columns: int) -> ShapeView:
    return ShapeView(
        n_layers=shape.n_layers,
        d_model=shape.d_model,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        n_columns=n_columns,
        n_positions=shape.max_positions,
        norm_eps=shape.norm_eps,
        clip=shape.clip_qkv or 0.0,
        norm_before=shape.norm_before,
        renormalise=shape.renormalise,
    )


def _layer(layer: PackedBaseLayer) -> LayerView:
    return LayerView(
        q=layer.q.view(),
        k=layer.k.view(),
        v=layer.v.view(),
        o=layer.o.view(),
        attn_norm=layer.attn_norm_D.data_ptr(),
        ffn_norm=layer.ffn_norm_D.data_ptr(),
        q_norm=None if layer.q_norm_Q is None else layer.q_norm_Q.data_ptr(),
        k_norm=None if layer.k_norm_K is None else layer.k_norm_K.data_ptr(),
    )


def _column(layer: PackedExpertLayer, public: PackedExpertLayer) -> ColumnView:
    gate_row_D = layer.gate_row_D
    return ColumnView(
        network=_network(layer.network, public.network),
        row=layer.row_D.data_ptr(),
        gate_row=None if gate_row_D is None else gate_row_D.data_ptr(),
        gate_bias=layer.gate_bias,
        bias=layer.bias,
    )


def _network(own: PackedFfn | PackedFactors, public: PackedFfn | PackedFactors) -> NetworkView:
    full = public if isinstance(own, PackedFactors) else own
    views = {name: getattr(full, name).view() for name in PackedFfn.__slots__}
    if isinstance(own, PackedFactors):
        views |= {name: getattr(own, name).view() for name in PackedFactors.__slots__}
    return NetworkView(**views)


def state_kind(dtype: torch.dtype) -> tuple[torch.dtype, int]:
    """In which dtype keys and values are kept beside weights of a dtype, and its number."""
    kind = panel_kind(dtype)
    return (torch.bfloat16 if kind == "bf16" else torch.float32), KINDS.index(kind)
