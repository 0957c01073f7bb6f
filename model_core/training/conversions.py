# SPDX-License-Identifier: Apache-2.0
"""Experts turned from one kind into another.

Every conversion is a pure function: the expert that is given stays as it is, router rows, biases and gates
are copied unchanged. The module does not know why a kind is wanted, nor how it is served.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model_core.errors import RecipeRefused
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.network.ffn import DenseWeights, SwiGLU
from model_core.network.kinds import Factors, Int8Ffn, Int8Matrix, LowRankFfn, SplitFfn
from model_core.network.mixture import Routing
from model_core.packing.forms import FfnForm
from model_core.packing.manifest import ModelShape

_INT8_MOST = 127


def to_full(decoder: Decoder, expert: Expert) -> Expert:
    """The plain SwiGLU expert that computes what this one does, up to rounding.

    Args:
        decoder: the base, whose public networks low-rank factors are merged into.
        expert: of any kind.
    """
    dense = [
        expert.layer(index).dense_ffn(decoder.layer(index).ffn) for index in range(decoder.shape.n_layers)
    ]
    return _of_dense(expert, FfnForm(d_ffn=expert.form.d_ffn), dense)


def to_low_rank(decoder: Decoder, expert: Expert, rank: int) -> tuple[Expert, float]:
    """Keeps the strongest directions of what training changed, per matrix (singular values).

    The factors are balanced: both carry the square root of each singular value.

    Args:
        decoder: the base.
        expert: of the public inner width.
        rank: directions kept per matrix (r).

    Returns:
        The low-rank expert, and the share of the change's squared norm that it keeps.

    Raises:
        RecipeRefused: another width than the public one, or a rank beyond the matrices'.
    """
    form = FfnForm(kind="low_rank", d_ffn=expert.form.d_ffn, rank=rank)
    new = empty_low_rank(decoder, expert, form)
    kept, total = 0.0, 0.0
    with torch.no_grad():
        for index in range(decoder.shape.n_layers):
            public = decoder.layer(index).ffn
            own, base = expert.layer(index).dense_ffn(public), public.dense(public)
            for part, own_OI, base_OI in zip(factors_of(new, index), own, base, strict=True):
                u_OR, s_R, v_RI = torch.linalg.svd(own_OI.float() - base_OI.float(), full_matrices=False)
                root_R = s_R[:rank].sqrt()
                part.b.copy_(u_OR[:, :rank] * root_R)
                part.a.copy_(root_R[:, None] * v_RI[:rank])
                energy_R = s_R.double().square()
                kept, total = kept + float(energy_R[:rank].sum()), total + float(energy_R.sum())
    return new, kept / total if total else 1.0


def to_narrow(decoder: Decoder, expert: Expert, d_ffn: int, rows: Sequence[Tensor]) -> Expert:
    """Keeps the inner neurons that matter most on the owner's text, in their old order.

    Args:
        decoder: the base.
        expert: of any kind.
        d_ffn: neurons kept per layer.
        rows: token rows ``[S]`` of the owner's text.

    Raises:
        RecipeRefused: more neurons than there are, or no text to tell them apart by.
    """
    if not 1 <= d_ffn <= expert.form.d_ffn:
        raise RecipeRefused(
            f"A narrow expert keeps from 1 to {expert.form.d_ffn} neurons of this one.",
            fields=["expert_width"],
        )
    if d_ffn < expert.form.d_ffn and not rows:
        raise RecipeRefused("Neurons are told apart by the owner's text; there is none.", fields=["rows"])
    matter_LF = neuron_weights(decoder, expert, rows)
    dense = []
    for index in range(decoder.shape.n_layers):
        weights = expert.layer(index).dense_ffn(decoder.layer(index).ffn)
        kept = matter_LF[index].sort(descending=True, stable=True).indices[:d_ffn].sort().values
        dense.append(
            DenseWeights(weights.gate_FD[kept], weights.up_FD[kept], weights.down_DF[:, kept].contiguous())
        )
    return _of_dense(expert, _fitting(FfnForm(kind="narrow", d_ffn=d_ffn), decoder.shape), dense)


def neuron_weights(decoder: Decoder, expert: Expert, rows: Sequence[Tensor]) -> Tensor:
    """How much every inner neuron adds on some text: mean |activation| times the length of its column.

    Args:
        decoder: the base.
        expert: beside which, with k = 2, the residuals are computed.
        rows: token rows ``[S]``.

    Returns:
        fp64 ``[L, F]``, zeros without rows.
    """
    layers = range(decoder.shape.n_layers)
    dense = [expert.layer(index).dense_ffn(decoder.layer(index).ffn) for index in layers]
    total_LF = torch.zeros(len(dense), expert.form.d_ffn, dtype=torch.float64)

    def watch(layer: int, h_BSD: Tensor, _routing: Routing | None) -> None:
        weights = dense[layer]
        inner_BSF = F.silu(F.linear(h_BSD, weights.gate_FD)) * F.linear(h_BSD, weights.up_FD)
        total_LF[layer] += inner_BSF.abs().double().sum((0, 1)).cpu()

    with torch.no_grad():
        for row in rows:
            decoder.hidden(row[None].to(decoder.embed.weight.device), (expert,), top_k=2, observe=watch)
        lengths_LF = torch.stack([weights.down_DF.double().norm(dim=0).cpu() for weights in dense])
    return total_LF / max(1, sum(len(row) for row in rows)) * lengths_LF


def to_split(expert: Expert, pieces: int) -> Expert:
    """Cuts the networks into groups of neighbouring neurons that share one routing weight; exact.

    Args:
        expert: a full or narrow one.
        pieces: how many; divides its inner width.

    Raises:
        RecipeRefused: another kind, or a number that does not divide the width.
    """
    _needs_matrices(expert)
    d_ffn = expert.form.d_ffn
    form = FfnForm(kind="split", d_ffn=d_ffn, pieces=pieces)
    if why := form.problem(expert.layer(0).router.row.shape[0]):
        raise RecipeRefused(f"The expert cannot be split so: {why}.", fields=["expert_pieces"])
    new = _reformed(expert, form, expert.dtype)
    with torch.no_grad():
        for index in range(len(expert.layers)):
            whole, cut = expert.layer(index).ffn, new.layer(index).ffn
            assert isinstance(whole, SwiGLU)  # noqa: S101  (checked above)
            assert isinstance(cut, SplitFfn)  # noqa: S101
            for number, piece in enumerate(cut.each()):
                part = slice(number * d_ffn // pieces, (number + 1) * d_ffn // pieces)
                piece.gate.weight.copy_(whole.gate.weight[part])
                piece.up.weight.copy_(whole.up.weight[part])
                piece.down.weight.copy_(whole.down.weight[:, part])
    return new


def to_int8(expert: Expert) -> Expert:
    """Rounds every weight to one of 255 steps of its output channel, for serving.

    The largest weight of a channel is 127 steps, so no weight moves by more than half a step.

    Args:
        expert: a full or narrow one.

    Raises:
        RecipeRefused: another kind; make it a full one first.
    """
    _needs_matrices(expert)
    new = _reformed(expert, FfnForm(kind="int8", d_ffn=expert.form.d_ffn), None)
    for index in range(len(expert.layers)):
        whole, small = expert.layer(index).ffn, new.layer(index).ffn
        assert isinstance(whole, SwiGLU)  # noqa: S101  (checked above)
        assert isinstance(small, Int8Ffn)  # noqa: S101
        for matrix, weight_OI in zip((small.gate, small.up, small.down), whole.dense(whole), strict=True):
            _quantise(matrix, weight_OI)
    return new


@torch.no_grad()
def _quantise(matrix: Int8Matrix, weight_OI: Tensor) -> None:
    step_O = weight_OI.float().abs().amax(dim=1) / _INT8_MOST
    step_O = torch.where(step_O > 0, step_O, torch.ones_like(step_O))  # a channel of zeros
    steps_OI = (weight_OI.float() / step_O[:, None]).round().clamp(-_INT8_MOST, _INT8_MOST)
    matrix.scale.copy_(step_O)
    matrix.weight.copy_(steps_OI.to(torch.int8))


def _needs_matrices(expert: Expert) -> None:
    if not isinstance(expert.layer(0).ffn, SwiGLU):
        raise RecipeRefused(
            f"An expert of kind {expert.kind} has no matrices of its own; make it a full one first.",
            fields=["expert_kind"],
        )


def _fitting(form: FfnForm, shape: ModelShape) -> FfnForm:
    if why := form.problem(shape.d_model) or form.misfit(shape.d_ffn):
        raise RecipeRefused(f"The base cannot have such an expert: {why}.", fields=["expert_kind"])
    return form


def empty_low_rank(decoder: Decoder, expert: Expert, form: FfnForm) -> Expert:
    """A low-rank expert with another's routing, whose second factors are 0 and whose first are not set.

    Raises:
        RecipeRefused: the form does not fit the base.
    """
    return _reformed(expert, _fitting(form, decoder.shape), decoder.embed.weight.dtype)


def factors_of(expert: Expert, layer: int) -> tuple[Factors, Factors, Factors]:
    """The factors of a low-rank expert's gate, up and down matrix."""
    ffn = expert.layer(layer).ffn
    assert isinstance(ffn, LowRankFfn)  # noqa: S101  (made so)
    return ffn.gate, ffn.up, ffn.down


@torch.no_grad()
def _reformed(expert: Expert, form: FfnForm, dtype: torch.dtype | None) -> Expert:
    """The same router rows, biases and gates before empty networks of another form (None: of integers)."""
    first = expert.layer(0)
    row_D = first.router.row
    new = Expert.of_form(
        form, n_layers=len(expert.layers), d_model=row_D.shape[0], gated=first.gate is not None
    )
    for index in range(len(new.layers)):
        old, part = expert.layer(index), new.layer(index)
        part.ffn.to(dtype=dtype)
        part.router.load_state_dict(old.router.state_dict())
        if part.gate is not None and old.gate is not None:
            part.gate.load_state_dict(old.gate.state_dict())
    return new.to(device=row_D.device).requires_grad_(row_D.requires_grad)


@torch.no_grad()
def _of_dense(expert: Expert, form: FfnForm, dense: Sequence[DenseWeights]) -> Expert:
    new = _reformed(expert, form, dense[0].gate_FD.dtype)
    for index, weights in enumerate(dense):
        ffn = new.layer(index).ffn
        assert isinstance(ffn, SwiGLU)  # noqa: S101  (full and narrow are)
        for linear, weight in zip((ffn.gate, ffn.up, ffn.down), weights, strict=True):
            linear.weight.copy_(weight)
    return new
