# SPDX-License-Identifier: Apache-2.0
"""The SwiGLU feed-forward network, and what every kind of expert network offers. Knows nothing of routing."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

# Maps rows [R, D] to rows [R, D]; every row stands alone.
RowFunction = Callable[[Tensor], Tensor]


class DenseWeights(NamedTuple):
    """The three matrices of one SwiGLU.

    Attributes:
        gate_FD: inner x model width.
        up_FD: the same.
        down_DF: model x inner width.
    """

    gate_FD: Tensor
    up_FD: Tensor
    down_DF: Tensor


class ExpertFfn(nn.Module):
    """One layer's network of an expert, of whatever kind.

    It may lean on the public network of its layer, which is passed in and never kept, so that an expert's
    tensors are its own alone.
    """

    def beside(self, public: SwiGLU) -> RowFunction:
        """The network as a function of rows.

        Args:
            public: the public network of the layer.
        """
        raise NotImplementedError

    def dense(self, public: SwiGLU) -> DenseWeights:
        """The matrices of the plain SwiGLU that computes the same (up to rounding).

        Args:
            public: the public network of the layer.
        """
        raise NotImplementedError


class SwiGLU(ExpertFfn):
    """``down(silu(gate(x)) * up(x))`` without biases: the public network, a full or a narrow expert.

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

    def beside(self, public: SwiGLU) -> RowFunction:  # noqa: ARG002  (it stands on its own)
        """The network itself."""
        return self

    def dense(self, public: SwiGLU) -> DenseWeights:  # noqa: ARG002
        """Its own matrices, not copied."""
        return DenseWeights(self.gate.weight, self.up.weight, self.down.weight)
