# SPDX-License-Identifier: Apache-2.0
"""The norm of the OLMo-2 family. Knows nothing about where it is applied."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension (OLMo-2 order of casts).

    The variance and the multiplication by the weight run in fp32 and the result is cast last; the Llama
    family casts before multiplying, which differs in bf16.

    Args:
        width: size of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Norms ``x`` of any leading shape; returns its dtype."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (self.weight.float() * wide).to(x.dtype)
