# SPDX-License-Identifier: Apache-2.0
"""The SwiGLU network and the weighted sum of two of them, in blocks of rows that stay in a core's cache.

Kept for backward are the input and the two products before the activation; the activation is made again.
Weights that do not ask for a gradient get none, nor a buffer for one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from model_core.training.fused.weights import applied, row_blocks


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
        rows, inner = x_TD.shape[0], gate_FD.shape[0]
        # Rounded in here, not outside: so the gradients of fp32 weights never pass through a narrower format.
        gate_FD, up_FD, down_DF = (weight.to(x_TD.dtype) for weight in (gate_FD, up_FD, down_DF))
        keep = any(ctx.needs_input_grad)
        g_TF = x_TD.new_empty(rows if keep else 0, inner)
        u_TF = torch.empty_like(g_TF)
        out_TD = x_TD.new_empty(rows, down_DF.shape[0])
        for block in row_blocks(rows, inner, x_TD.device):
            if keep:
                g_RF = torch.mm(x_TD[block], gate_FD.t(), out=g_TF[block])
                u_RF = torch.mm(x_TD[block], up_FD.t(), out=u_TF[block])
            else:
                g_RF, u_RF = torch.mm(x_TD[block], gate_FD.t()), torch.mm(x_TD[block], up_FD.t())
            torch.mm(F.silu(g_RF).mul_(u_RF), down_DF.t(), out=out_TD[block])
        ctx.save_for_backward(x_TD, gate_FD, up_FD, down_DF, g_TF, u_TF)
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, gate_FD, up_FD, down_DF, g_TF, u_TF = ctx.saved_tensors
        wants_x, wants_weights = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        d_x_TD = torch.empty_like(x_TD) if wants_x else None
        d_gate_FD = d_up_FD = d_down_DF = None
        if wants_weights:
            d_gate_FD = torch.zeros_like(gate_FD, dtype=torch.float32)
            d_up_FD = torch.zeros_like(d_gate_FD)
            d_down_DF = torch.zeros_like(down_DF, dtype=torch.float32)
        for block in row_blocks(len(g_TF), g_TF.shape[1], x_TD.device):
            grad_RD, g_RF, u_RF = grad_TD[block], g_TF[block], u_TF[block]
            silu_RF = F.silu(g_RF)
            if d_down_DF is not None:
                _add_product(d_down_DF, grad_RD.t(), silu_RF * u_RF)
            d_inner_RF = torch.mm(grad_RD, down_DF)
            d_u_RF = silu_RF.mul_(d_inner_RF)
            d_g_RF = torch.ops.aten.silu_backward(d_inner_RF.mul_(u_RF), g_RF)
            if d_x_TD is not None:
                d_x_RD = torch.mm(d_g_RF, gate_FD, out=d_x_TD[block])
                torch.addmm(d_x_RD, d_u_RF, up_FD, out=d_x_RD)
            if d_gate_FD is not None and d_up_FD is not None:
                _add_product(d_gate_FD, d_g_RF.t(), x_TD[block])
                _add_product(d_up_FD, d_u_RF.t(), x_TD[block])
        return d_x_TD, d_gate_FD, d_up_FD, d_down_DF


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds a product to an fp32 total, in place of the product where the formats agree."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += torch.mm(left, right)


class _MixTwo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights_T2: Tensor, public_TD: Tensor, own_TD: Tensor) -> Tensor:
        out_TD = torch.empty(public_TD.shape, dtype=torch.float32, device=public_TD.device)
        for block in row_blocks(len(public_TD), public_TD.shape[1], public_TD.device):
            torch.mul(public_TD[block], weights_T2[block, :1], out=out_TD[block])
            out_TD[block].addcmul_(own_TD[block], weights_T2[block, 1:])
        ctx.save_for_backward(weights_T2, public_TD, own_TD)
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        weights_T2, public_TD, own_TD = ctx.saved_tensors
        d_weights_T2 = torch.empty_like(weights_T2)
        d_public_TD = torch.empty_like(public_TD) if ctx.needs_input_grad[1] else None
        d_own_TD = torch.empty_like(own_TD)
        for block in row_blocks(len(public_TD), public_TD.shape[1], public_TD.device):
            grad_RD, weights_R2 = grad_TD[block], weights_T2[block]
            d_weights_T2[block, 0] = (grad_RD * public_TD[block]).sum(-1)
            d_weights_T2[block, 1] = (grad_RD * own_TD[block]).sum(-1)
            if d_public_TD is not None:
                d_public_TD[block] = grad_RD * weights_R2[:, :1]
            d_own_TD[block] = grad_RD * weights_R2[:, 1:]
        return d_weights_T2, d_public_TD, d_own_TD


def swiglu(x_TD: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """``down(silu(gate x) * up x)`` of rows in their format; weights in any, with or without gradient."""
    out: Tensor = applied(_SwiGLU, x_TD, gate_FD, up_FD, down_DF)
    return out


def mix_two(weights_T2: Tensor, public_TD: Tensor, own_TD: Tensor) -> Tensor:
    """``w_0 public + w_1 own``, fp32 ``[T, D]``, with fp32 weights."""
    out: Tensor = applied(_MixTwo, weights_T2, public_TD, own_TD)
    return out
