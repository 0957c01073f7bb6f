# SPDX-License-Identifier: Apache-2.0
"""Causal attention over whole rows, on CPU in blocks of queries small enough for a core's cache.

A block of queries reads only the keys up to its end. Probabilities are not kept: backward makes them again,
block by block. Elsewhere torch's own fused attention runs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from model_core.training.fused.weights import applied

# Scores of one block over all its heads (elements).
_BLOCK_ELEMENTS = 1 << 18


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BSHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, scale: float) -> Tensor:
        out_BSHd = torch.empty_like(q_BSHd)
        mask_RR = _mask(q_BSHd)
        for row in range(q_BSHd.shape[0]):
            q, k, v, out = (part[row].transpose(0, 1) for part in (q_BSHd, k_BSHd, v_BSHd, out_BSHd))
            for first, last in _blocks(q):
                weights = _weights(q, k, mask_RR, first, last, scale)
                out[:, first:last] = torch.bmm(weights, v[:, :last])
        ctx.save_for_backward(q_BSHd, k_BSHd, v_BSHd)
        ctx.scale = scale
        return out_BSHd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BSHd: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_BSHd, k_BSHd, v_BSHd = ctx.saved_tensors
        d_q_BSHd = torch.empty_like(q_BSHd)
        d_k_BSHd = torch.zeros_like(k_BSHd, dtype=torch.float32)
        d_v_BSHd = torch.zeros_like(v_BSHd, dtype=torch.float32)
        mask_RR = _mask(q_BSHd)
        every = (q_BSHd, k_BSHd, v_BSHd, grad_BSHd, d_q_BSHd, d_k_BSHd, d_v_BSHd)
        for row in range(q_BSHd.shape[0]):
            q, k, v, grad, d_q, d_k, d_v = (part[row].transpose(0, 1) for part in every)
            for first, last in _blocks(q):
                weights = _weights(q, k, mask_RR, first, last, ctx.scale)
                d_weights = torch.bmm(grad[:, first:last], v[:, :last].transpose(1, 2))
                d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
                d_scores.mul_(ctx.scale)
                d_q[:, first:last] = torch.bmm(d_scores, k[:, :last])
                d_k[:, :last] += torch.bmm(d_scores.transpose(1, 2), q[:, first:last])
                d_v[:, :last] += torch.bmm(weights.transpose(1, 2), grad[:, first:last])
        return d_q_BSHd, d_k_BSHd.to(k_BSHd.dtype), d_v_BSHd.to(v_BSHd.dtype), None


def _blocks(q_HSd: Tensor) -> list[tuple[int, int]]:
    heads, positions, _ = q_HSd.shape
    size = _block_rows(heads, positions)
    return [(first, min(first + size, positions)) for first in range(0, positions, size)]


def _block_rows(heads: int, positions: int) -> int:
    return min(positions, max(32, _BLOCK_ELEMENTS // (heads * positions) // 32 * 32))


def _mask(q_BSHd: Tensor) -> Tensor:
    size = _block_rows(q_BSHd.shape[2], q_BSHd.shape[1])
    return torch.full((size, size), float("-inf"), dtype=q_BSHd.dtype, device=q_BSHd.device).triu_(1)


def _weights(q: Tensor, k: Tensor, mask_RR: Tensor, first: int, last: int, scale: float) -> Tensor:
    """Probabilities of queries ``first..last`` over keys ``0..last``, ``[H, R, last]``."""
    scores = torch.bmm(q[:, first:last], k[:, :last].transpose(1, 2)).mul_(scale)
    scores[:, :, first:] += mask_RR[: last - first, : last - first]
    return torch.softmax(scores, -1)


def causal_attention(q_BSHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor) -> Tensor:
    """Attends over whole rows that start at position 0.

    Args:
        q_BSHd: rotated queries.
        k_BSHd: rotated keys, as many heads as queries have.
        v_BSHd: values.

    Returns:
        ``[B, S, H, head_dim]`` in their format.
    """
    if q_BSHd.device.type == "cpu":
        scale = q_BSHd.shape[-1] ** -0.5
        blocked: Tensor = applied(_CausalAttention, q_BSHd, k_BSHd, v_BSHd, scale)
        return blocked
    q, k, v = (part.transpose(1, 2) for part in (q_BSHd, k_BSHd, v_BSHd))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
