# SPDX-License-Identifier: Apache-2.0
"""Root-mean-square norms with frozen weights, alone, before a residual sum, and before the rotation.

``y = w x r`` with ``r = rsqrt(mean(x^2) + eps)``; backward ``dx = r (g - n mean(g n))`` with ``n = x r`` and
``g = w dy``. What is kept for backward is ``x`` in its own format and ``r``, one number a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model_core.training.fused.weights import applied, row_blocks


def _inverse_rms(wide_RD: Tensor, eps: float) -> Tensor:
    width = wide_RD.shape[-1]
    norm_R1: Tensor = torch.linalg.vector_norm(wide_RD, dim=-1, keepdim=True)
    return norm_R1.square_().div_(width).add_(eps).rsqrt_()


def _norm_backward(grad_RD: Tensor, wide_RD: Tensor, inverse_R1: Tensor) -> Tensor:
    """Gradient by ``x`` for the gradient ``g`` by ``n``; ``grad_RD`` is written over."""
    normed_RD = wide_RD * inverse_R1
    share_R1 = (grad_RD * normed_RD).mean(-1, keepdim=True)
    return grad_RD.addcmul_(normed_RD, share_R1, value=-1).mul_(inverse_R1)


class _Norm(torch.autograd.Function):
    """``residual + w norm(x)``, or the norm alone; rows are the first dimension."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float, residual_TD: Tensor | None) -> Tensor:
        rows, width = x_TD.shape
        out_TD = torch.empty(rows, width, dtype=torch.float32, device=x_TD.device)
        inverse_T1 = torch.empty(rows, 1, dtype=torch.float32, device=x_TD.device)
        for block in row_blocks(rows, width, x_TD.device):
            wide_RD = x_TD[block].float()
            inverse_R1 = _inverse_rms(wide_RD, eps)
            inverse_T1[block] = inverse_R1
            normed_RD = torch.mul(wide_RD, inverse_R1, out=out_TD[block])
            if residual_TD is None:
                normed_RD.mul_(weight_D)
            else:
                torch.addcmul(residual_TD[block], normed_RD, weight_D, out=normed_RD)
        ctx.save_for_backward(x_TD, weight_D, inverse_T1)
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        x_TD, weight_D, inverse_T1 = ctx.saved_tensors
        d_x_TD = None
        if ctx.needs_input_grad[0]:
            d_x_TD = torch.empty_like(x_TD)
            for block in row_blocks(len(x_TD), x_TD.shape[1], x_TD.device):
                grad_RD = grad_TD[block] * weight_D
                d_x_TD[block] = _norm_backward(grad_RD, x_TD[block].float(), inverse_T1[block])
        return d_x_TD, None, None, grad_TD if ctx.needs_input_grad[3] else None


class _NormRotate(torch.autograd.Function):
    """Norm over the whole width (weight None: no norm), then the rotation of every head."""

    @staticmethod
    def forward(
        ctx: Any, x_BSW: Tensor, weight_W: Tensor | None, eps: float, cos_Sd: Tensor, sin_Sd: Tensor
    ) -> Tensor:
        batch, positions, _ = x_BSW.shape
        half = cos_Sd.shape[-1] // 2
        cos_S1h, sin_S1h = cos_Sd[:, None, :half], sin_Sd[:, None, :half]
        out_BSW = torch.empty_like(x_BSW)
        inverse_BS1 = x_BSW.new_empty(batch, positions, 1, dtype=torch.float32)
        for row in range(batch):
            wide_SW = x_BSW[row].float()
            if weight_W is not None:
                inverse_S1 = _inverse_rms(wide_SW, eps)
                inverse_BS1[row] = inverse_S1
                wide_SW = (wide_SW * inverse_S1).mul_(weight_W)
            first, second = wide_SW.view(positions, -1, 2, half).unbind(2)
            turned = out_BSW[row].view(positions, -1, 2, half)
            turned[:, :, 0] = (first * cos_S1h).addcmul_(second, sin_S1h, value=-1)
            turned[:, :, 1] = (second * cos_S1h).addcmul_(first, sin_S1h)
        ctx.save_for_backward(None if weight_W is None else x_BSW, weight_W, inverse_BS1, cos_Sd, sin_Sd)
        return out_BSW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BSW: Tensor) -> tuple[Tensor, None, None, None, None]:
        x_BSW, weight_W, inverse_BS1, cos_Sd, sin_Sd = ctx.saved_tensors
        batch, positions, width = grad_BSW.shape
        half = cos_Sd.shape[-1] // 2
        cos_S1h, sin_S1h = cos_Sd[:, None, :half], sin_Sd[:, None, :half]
        d_x_BSW = torch.empty_like(grad_BSW)
        for row in range(batch):
            first, second = grad_BSW[row].float().view(positions, -1, 2, half).unbind(2)
            grad_SW = torch.empty(positions, width, dtype=torch.float32, device=grad_BSW.device)
            back = grad_SW.view(positions, -1, 2, half)
            torch.mul(first, cos_S1h, out=back[:, :, 0]).addcmul_(second, sin_S1h)
            torch.mul(second, cos_S1h, out=back[:, :, 1]).addcmul_(first, sin_S1h, value=-1)
            if weight_W is not None:
                grad_SW = _norm_backward(grad_SW.mul_(weight_W), x_BSW[row].float(), inverse_BS1[row])
            d_x_BSW[row] = grad_SW
        return d_x_BSW, None, None, None, None


def frozen_norm(x_BSD: Tensor, weight_D: Tensor, eps: float, residual_BSD: Tensor | None = None) -> Tensor:
    """The norm of the last dimension with a frozen weight, fp32, added to a residual if one is given."""
    width = x_BSD.shape[-1]
    residual_TD = None if residual_BSD is None else residual_BSD.reshape(-1, width)
    out: Tensor = applied(_Norm, x_BSD.reshape(-1, width), weight_D, eps, residual_TD)
    return out.view_as(x_BSD)


def norm_rotate(x_BSW: Tensor, weight_W: Tensor | None, eps: float, cos_Sd: Tensor, sin_Sd: Tensor) -> Tensor:
    """Queries or keys normed over their whole width (if they are) and rotated, head by head.

    Args:
        x_BSW: projected rows, heads side by side.
        weight_W: the norm's frozen weight; None for families without one.
        eps: of the norm.
        cos_Sd: cosines of the positions, halves repeated, fp32.
        sin_Sd: their sines.

    Returns:
        ``[B, S, W]`` in the format of ``x_BSW``.
    """
    out: Tensor = applied(_NormRotate, x_BSW, weight_W, eps, cos_Sd, sin_Sd)
    return out
