# SPDX-License-Identifier: Apache-2.0
"""The root-mean-square norm of all families. Knows nothing about where it is applied."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_core.packing.manifest import ModelShape


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension.

    The variance is that of fp32 always. Families differ in where they round: OLMo-2 multiplies by the weight
    in fp32 and casts the product; Llama and OLMoE cast first and multiply in the dtype of ``x``. In fp32 both
    are the same.

    Args:
        width: size of the last dimension.
        eps: added to the mean square.
        cast_first: the order of Llama and OLMoE.
    """

    def __init__(self, width: int, eps: float, *, cast_first: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.cast_first = cast_first

    def forward(self, x: Tensor) -> Tensor:
        """Norms ``x`` of any leading shape; returns its dtype."""
        return self.by(x, x.float().square().mean(-1, keepdim=True))

    def by(self, x: Tensor, mean_square: Tensor) -> Tensor:
        """Norms ``x`` by a mean square ``[..., 1]`` that is known already (of a wider row, say)."""
        wide = x.float() * torch.rsqrt(mean_square + self.eps)
        if self.cast_first:
            return (self.weight * wide.to(x.dtype)).to(x.dtype)
        return (self.weight.float() * wide).to(x.dtype)


def norm_of(shape: ModelShape, width: int) -> RMSNorm:
    """A norm of the shape's family and epsilon over ``width`` elements."""
    return RMSNorm(width, shape.norm_eps, cast_first=shape.norm_before)
