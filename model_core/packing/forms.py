# SPDX-License-Identifier: Apache-2.0
"""The forms that an expert's feed-forward networks may have, and which tensors each form consists of.

Five kinds stand behind one interface. Every one replaces or varies the public SwiGLU of its layer:

* ``full``: three matrices of its own;
* ``narrow``: the same with fewer inner neurons than the public network;
* ``low_rank``: per matrix two factors, added to the public matrix, which is shared and never copied;
* ``split``: the inner neurons cut into pieces that share one routing weight;
* ``int8``: whole numbers of eight bits with one fp32 scale per output channel, for serving only.

This table is what writers, readers and checks agree on. It knows no tensor library and no values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

ExpertKind = Literal["full", "narrow", "low_rank", "split", "int8"]
EXPERT_KINDS: tuple[ExpertKind, ...] = get_args(ExpertKind)

MAX_PIECES = 256

WEIGHT_DTYPES = frozenset({"F32", "BF16", "F16"})
EXACT_DTYPES = frozenset({"F32"})  # routers, gates and scales decide or multiply; they are never rounded
INTEGER_DTYPES = frozenset({"I8"})

MATRICES = ("gate", "up", "down")


@dataclass(frozen=True, kw_only=True, slots=True)
class FfnForm:
    """How an expert's networks are stored.

    Attributes:
        kind: see the module.
        d_ffn: inner width (F); of a low-rank expert that of the public network.
        rank: of the factors (r) of a low-rank expert, at most min(D, F); None for every other kind.
        pieces: number of pieces of a split expert, which divides ``d_ffn``; None for every other kind.
    """

    kind: ExpertKind = "full"
    d_ffn: int
    rank: int | None = None
    pieces: int | None = None

    def problem(self, d_model: int) -> str | None:
        """What is impossible about this form at a width of the residual stream, or None.

        Args:
            d_model: width of the residual stream (D).
        """
        if (self.rank is not None) != (self.kind == "low_rank"):
            return "rank: a low-rank expert has one, no other kind does"
        if (self.pieces is not None) != (self.kind == "split"):
            return "pieces: a split expert has them, no other kind does"
        if self.rank is not None and not 1 <= self.rank <= min(d_model, self.d_ffn):
            return f"rank: from 1 to {min(d_model, self.d_ffn)} here"
        if self.pieces is not None and (not 1 <= self.pieces <= MAX_PIECES or self.d_ffn % self.pieces):
            return f"pieces: from 1 to {MAX_PIECES}, and a divisor of the inner width {self.d_ffn}"
        return None

    def misfit(self, public_d_ffn: int) -> str | None:
        """Why this form cannot stand beside a public network of some inner width, or None.

        Args:
            public_d_ffn: inner width of the base's SwiGLU.
        """
        if self.kind == "low_rank" and self.d_ffn != public_d_ffn:
            return f"a low-rank expert has the public inner width, {public_d_ffn}"
        if self.kind == "narrow" and self.d_ffn > public_d_ffn:
            return f"a narrow expert is at most as wide as the public network, {public_d_ffn}"
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """What one tensor of a weights file must be.

    Attributes:
        shape: elements per dimension; ``()`` is a scalar.
        dtypes: dtypes that are accepted, by their names in safetensors.
        positive: whether every value must be greater than 0.
    """

    shape: tuple[int, ...]
    dtypes: frozenset[str] = WEIGHT_DTYPES
    positive: bool = False


def ffn_specs(form: FfnForm, d_model: int) -> dict[str, TensorSpec]:
    """Every tensor of one layer's network with what it must be; names are relative to ``ffn.``.

    Args:
        form: a possible one (``problem`` is None).
        d_model: width of the residual stream (D).
    """
    sizes = _sizes(d_model, form.d_ffn)
    if form.kind == "low_rank" and form.rank is not None:
        factors = {f"{name}.a": TensorSpec(shape=(form.rank, n_in)) for name, (_, n_in) in sizes.items()}
        return factors | {
            f"{name}.b": TensorSpec(shape=(n_out, form.rank)) for name, (n_out, _) in sizes.items()
        }
    if form.kind == "split" and form.pieces is not None:
        width = form.d_ffn // form.pieces
        return {
            f"pieces.{piece}.{name}.weight": TensorSpec(shape=size)
            for piece in range(form.pieces)
            for name, size in _sizes(d_model, width).items()
        }
    if form.kind == "int8":
        weights = {
            f"{name}.weight": TensorSpec(shape=size, dtypes=INTEGER_DTYPES) for name, size in sizes.items()
        }
        return weights | {
            f"{name}.scale": TensorSpec(shape=(n_out,), dtypes=EXACT_DTYPES, positive=True)
            for name, (n_out, _) in sizes.items()
        }
    return {f"{name}.weight": TensorSpec(shape=size) for name, size in sizes.items()}


def _sizes(d_model: int, d_ffn: int) -> dict[str, tuple[int, int]]:
    """Out x in of the three matrices of a SwiGLU."""
    return {"gate": (d_ffn, d_model), "up": (d_ffn, d_model), "down": (d_model, d_ffn)}
