# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of a linear head without ever holding the logits of more than a block of rows.

``loss = mean(lse - z_target) + weight * mean(lse^2)`` over the rows, with ``z = h W^T`` and ``lse`` its
log-sum-exp. Its gradient by the logits, ``(softmax * (1 + 2 weight lse) - onehot) / T``, needs nothing but
the block at hand, so the gradients of ``h`` and ``W`` are made in forward and only scaled in backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model_core.training.fused.weights import applied, product_dtype, row_blocks


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, z_weight: float
    ) -> tuple[Tensor, Tensor]:
        rows, vocabulary = hidden_TD.shape[0], weight_VD.shape[0]
        dtype = weight_VD.dtype
        d_hidden_TD = torch.empty_like(hidden_TD) if ctx.needs_input_grad[0] else None
        d_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        losses_T = torch.empty(rows, dtype=torch.float32, device=hidden_TD.device)
        normalisers_T = torch.empty_like(losses_T)
        for block in row_blocks(rows, vocabulary, hidden_TD.device):
            part_RD, targets_R1 = hidden_TD[block].to(dtype), targets_T[block].unsqueeze(-1)
            logits_RV = torch.mm(part_RD, weight_VD.t()).float()
            picked_R1 = logits_RV.gather(-1, targets_R1)
            top_R1 = logits_RV.amax(-1, keepdim=True)
            exponents_RV = logits_RV.sub_(top_R1).exp_()
            sums_R1 = exponents_RV.sum(-1, keepdim=True)
            normaliser_R1 = sums_R1.log() + top_R1
            normalisers_T[block] = normaliser_R1.squeeze(-1)
            losses_T[block] = (normaliser_R1 - picked_R1).squeeze(-1)
            if d_hidden_TD is None and d_weight_VD is None:
                continue
            scale_R1 = (1 + 2 * z_weight * normaliser_R1) / (sums_R1 * rows)
            d_logits_RV = exponents_RV.mul_(scale_R1)
            d_logits_RV.scatter_add_(-1, targets_R1, torch.full_like(picked_R1, -1 / rows))
            d_logits_RV = d_logits_RV.to(dtype)
            if d_hidden_TD is not None:
                d_hidden_TD[block] = torch.mm(d_logits_RV, weight_VD)
            if d_weight_VD is not None:
                d_weight_VD += torch.mm(d_logits_RV.t(), part_RD)
        ctx.save_for_backward(d_hidden_TD, d_weight_VD)
        ctx.weight_dtype = weight_VD.dtype
        loss = losses_T.mean()
        return loss + z_weight * normalisers_T.square().mean(), loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _plain: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        d_hidden_TD, d_weight_VD = ctx.saved_tensors
        return (
            None if d_hidden_TD is None else d_hidden_TD * grad,
            None if d_weight_VD is None else (d_weight_VD * grad).to(ctx.weight_dtype),
            None,
            None,
        )


def linear_cross_entropy(
    hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, *, z_weight: float
) -> tuple[Tensor, Tensor]:
    """The loss of a linear head over rows.

    Args:
        hidden_TD: normed hidden states.
        weight_VD: the head; under autocast it is rounded to autocast's format unless it already is.
        targets_T: token ids, int64.
        z_weight: weight of the mean squared log-sum-exp.

    Returns:
        The loss with the z-loss in it, and the plain mean cross-entropy (no gradient), fp32 nats a token.
    """
    weight_VD = weight_VD.to(product_dtype(hidden_TD.device))
    loss, plain = applied(_LinearCrossEntropy, hidden_TD, weight_VD, targets_T, z_weight)
    return loss, plain.detach()
