# SPDX-License-Identifier: Apache-2.0
"""The SwiGLU feed-forward network: what an expert is made of. Knows nothing about routing."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))`` without biases.

    Args:
        d_model: width of the residual stream (D).
        d_ffn: inner width (F).
    """

    def __init__(self, d_model: int, d_ffn: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_ffn, bias=False)
        self.up = nn.Linear(d_model, d_ffn, bias=False)
        self.down = nn.Linear(d_ffn, d_model, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Maps rows of width D to rows of width D; every row stands alone."""
        out: Tensor = self.down(F.silu(self.gate(x_TD)) * self.up(x_TD))
        return out
