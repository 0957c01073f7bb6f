# SPDX-License-Identifier: Apache-2.0
"""The kinds of expert networks that are not a plain SwiGLU: low-rank, split and int8.

Each is a module whose ``state_dict`` names are the tensor names below ``layers.N.ffn.`` and whose rows stand
alone, so that every law of the mixture holds for any mix of kinds. The module does not know how they are
made out of each other (``training.kinds``) nor how they are routed to.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_core.network.ffn import DenseWeights, ExpertFfn, RowFunction, SwiGLU
from model_core.packing.forms import FfnForm

# Integers are widened in blocks of so many, which stay in a core's cache: at 4096 x 11008 and one row that
# is 14 times as fast as widening a whole matrix, and as fast as multiplying fp32.
_WIDENED_AT_ONCE = 1 << 18


class Factors(nn.Module):
    """Two factors that stand for a change of one matrix: ``public + b a``.

    Args:
        n_in: width of the matrix's input.
        n_out: of its output.
        rank: columns of ``b``, rows of ``a`` (r).
    """

    def __init__(self, n_in: int, n_out: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, n_in))
        self.b = nn.Parameter(torch.zeros(n_out, rank))

    def forward(self, x_RI: Tensor, public_OI: Tensor) -> Tensor:
        """The changed matrix times rows, without ever making it."""
        return F.linear(x_RI, public_OI) + F.linear(F.linear(x_RI, self.a), self.b)

    def merged(self, public_OI: Tensor) -> Tensor:
        """The changed matrix."""
        return public_OI + (self.b.float() @ self.a.float()).to(public_OI.dtype)


class LowRankFfn(ExpertFfn):
    """The public network with a low-rank change of each matrix (LoRA, arXiv 2106.09685, without alpha).

    The public weights are those of the layer it stands in; it holds its factors only.

    Args:
        d_model: width of the residual stream (D).
        d_ffn: inner width of the public network (F).
        rank: of the factors.
    """

    def __init__(self, d_model: int, d_ffn: int, rank: int) -> None:
        super().__init__()
        self.gate = Factors(d_model, d_ffn, rank)
        self.up = Factors(d_model, d_ffn, rank)
        self.down = Factors(d_ffn, d_model, rank)

    def forward(self, x_RD: Tensor, public: SwiGLU) -> Tensor:
        """Maps rows of width D to rows of width D; every row stands alone."""
        inner_RF = F.silu(self.gate(x_RD, public.gate.weight)) * self.up(x_RD, public.up.weight)
        out: Tensor = self.down(inner_RF, public.down.weight)
        return out

    def beside(self, public: SwiGLU) -> RowFunction:
        """Public matrices and factors together."""
        return lambda x_RD: self(x_RD, public)

    def dense(self, public: SwiGLU) -> DenseWeights:
        """The public matrices with the factors merged in."""
        return DenseWeights(
            self.gate.merged(public.gate.weight),
            self.up.merged(public.up.weight),
            self.down.merged(public.down.weight),
        )


class SplitFfn(ExpertFfn):
    """A SwiGLU cut by inner neurons into pieces that share one routing weight (DeepSeekMoE, 2401.06066).

    Every inner neuron works alone, so the sum of the pieces is the whole, up to the order of additions.

    Args:
        d_model: width of the residual stream (D).
        d_ffn: inner width of all pieces together (F).
        pieces: how many; divides ``d_ffn``.
    """

    def __init__(self, d_model: int, d_ffn: int, pieces: int) -> None:
        super().__init__()
        self.pieces = nn.ModuleList(SwiGLU(d_model, d_ffn // pieces) for _ in range(pieces))

    def each(self) -> Iterator[SwiGLU]:
        """The pieces in order of their neurons."""
        for piece in self.pieces:
            assert isinstance(piece, SwiGLU)  # noqa: S101  (a ModuleList forgets its members' type)
            yield piece

    def forward(self, x_RD: Tensor) -> Tensor:
        """The sum of the pieces, the first one first."""
        first, *rest = self.each()
        out_RD: Tensor = first(x_RD)
        for piece in rest:
            out_RD = out_RD + piece(x_RD)
        return out_RD

    def beside(self, public: SwiGLU) -> RowFunction:  # noqa: ARG002  (it stands on its own)
        """The network itself."""
        return self

    def dense(self, public: SwiGLU) -> DenseWeights:  # noqa: ARG002
        """The pieces' matrices side by side."""
        pieces = list(self.each())
        return DenseWeights(
            torch.cat([piece.gate.weight for piece in pieces]),
            torch.cat([piece.up.weight for piece in pieces]),
            torch.cat([piece.down.weight for piece in pieces], dim=1),
        )


class Int8Matrix(nn.Module):
    """A matrix of whole numbers from -127 to 127 and one fp32 scale per output channel.

    Buffers, not parameters: nothing here can be trained.

    Args:
        n_in: width of the matrix's input (I).
        n_out: of its output (O).
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(n_out, n_in, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(n_out, dtype=torch.float32))

    def forward(self, x_RI: Tensor) -> Tensor:
        """Rows times the matrix; numbers are widened to the rows' dtype, which holds them exactly."""
        rows_at_once = max(1, _WIDENED_AT_ONCE // self.weight.shape[1])
        blocks = [F.linear(x_RI, block.to(x_RI.dtype)) for block in torch.split(self.weight, rows_at_once)]
        out_RO = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=-1)
        return (out_RO.float() * self.scale).to(x_RI.dtype)

    def widened(self, dtype: torch.dtype) -> Tensor:
        """The matrix in a floating dtype."""
        return (self.weight.float() * self.scale[:, None]).to(dtype)


class Int8Ffn(ExpertFfn):
    """A SwiGLU of int8 matrices; only weights are quantised, rows keep their dtype.

    Args:
        d_model: width of the residual stream (D).
        d_ffn: inner width (F).
    """

    def __init__(self, d_model: int, d_ffn: int) -> None:
        super().__init__()
        self.gate = Int8Matrix(d_model, d_ffn)
        self.up = Int8Matrix(d_model, d_ffn)
        self.down = Int8Matrix(d_ffn, d_model)

    def forward(self, x_RD: Tensor) -> Tensor:
        """Maps rows of width D to rows of width D; every row stands alone."""
        out: Tensor = self.down(F.silu(self.gate(x_RD)) * self.up(x_RD))
        return out

    def beside(self, public: SwiGLU) -> RowFunction:  # noqa: ARG002  (it stands on its own)
        """The network itself."""
        return self

    def dense(self, public: SwiGLU) -> DenseWeights:
        """The matrices that the integers stand for, in the public network's dtype."""
        dtype = public.gate.weight.dtype
        return DenseWeights(self.gate.widened(dtype), self.up.widened(dtype), self.down.widened(dtype))


def make_ffn(form: FfnForm, d_model: int) -> ExpertFfn:
    """An empty network of a form.

    Args:
        form: what it shall be; a possible one (``form.problem`` is None).
        d_model: width of the residual stream (D).
    """
    if form.kind == "low_rank":
        return LowRankFfn(d_model, form.d_ffn, form.rank or 1)
    if form.kind == "split":
        return SplitFfn(d_model, form.d_ffn, form.pieces or 1)
    if form.kind == "int8":
        return Int8Ffn(d_model, form.d_ffn)
    return SwiGLU(d_model, form.d_ffn)
