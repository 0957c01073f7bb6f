# SPDX-License-Identifier: Apache-2.0
"""Attention of all families: rotary positions, grouped keys and values, full-width QK norm or none.

Projects, attends within one call, and writes out. It knows nothing about caches: the engine keeps keys and
values itself and calls ``project`` and ``o`` around its own attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_core.network.norm import norm_of
from model_core.packing.manifest import ModelShape


def rotary_tables(shape: ModelShape) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, fp32 ``[max_positions, head_dim]`` (NeoX halves repeated)."""
    # On a CPU whatever the default device is: computing without memory would load torch's compiler first.
    with torch.device("cpu"):
        exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.int64).float() / shape.head_dim
        frequencies = 1.0 / (shape.rope_theta**exponents)
        angles = torch.arange(shape.max_positions, dtype=torch.float32)[:, None] * frequencies[None, :]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates pairs (i, i + head_dim/2) of ``x [..., heads, head_dim]`` by the angles of its position.

    Args:
        x: queries or keys.
        cos: cosines ``[..., 1, head_dim]``, fp32.
        sin: sines of the same shape.

    Returns:
        The rotated tensor in the dtype of ``x``.
    """
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention.

    Args:
        shape: sizes of the decoder.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = shape.n_heads, shape.n_kv_heads, shape.head_dim
        width, kv_width = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
        self.q = nn.Linear(shape.d_model, width, bias=False)
        self.k = nn.Linear(shape.d_model, kv_width, bias=False)
        self.v = nn.Linear(shape.d_model, kv_width, bias=False)
        self.o = nn.Linear(width, shape.d_model, bias=False)
        # The norm runs over the whole projected width, before heads are split and before rotation.
        self.q_norm = norm_of(shape, width) if shape.qk_norm else None
        self.k_norm = norm_of(shape, kv_width) if shape.qk_norm else None
        self.clip = shape.clip_qkv

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of rows.

        Args:
            x: rows that enter the layer's attention ``[..., D]``.
            cos: cosines of the rows' positions ``[..., head_dim]``.
            sin: sines of the same shape.

        Returns:
            Queries ``[..., H, head_dim]``, keys and values ``[..., n_kv_heads, head_dim]``.
        """
        lead, cos, sin = x.shape[:-1], cos.unsqueeze(-2), sin.unsqueeze(-2)
        q, k, v = self.q(x), self.k(x), self.v(x)
        q, k = self.normed(q, k)
        if self.clip is not None:
            q, k, v = (part.clamp(-self.clip, self.clip) for part in (q, k, v))
        q = q.view(*lead, self.n_heads, self.head_dim)
        k = k.view(*lead, self.n_kv_heads, self.head_dim)
        v = v.view(*lead, self.n_kv_heads, self.head_dim)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys over their projected widths, normed where the family does."""
        if self.q_norm is None or self.k_norm is None:
            return q, k
        return self.q_norm(q), self.k_norm(k)

    def forward(self, x_BSD: Tensor, cos_Sd: Tensor, sin_Sd: Tensor) -> Tensor:
        """Attends causally over whole sequences ``[B, S, D]`` that start at position 0."""
        q, k, v = (part.transpose(1, 2) for part in self.project(x_BSD, cos_Sd, sin_Sd))
        k, v = self.widen(k), self.widen(v)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o(mixed.transpose(1, 2).flatten(-2))
        return out

    def widen(self, kv: Tensor) -> Tensor:
        """Repeats each key or value head for its group of queries; dimension 1 holds the heads."""
        groups = self.n_heads // self.n_kv_heads
        return kv if groups == 1 else kv.repeat_interleave(groups, dim=1)
