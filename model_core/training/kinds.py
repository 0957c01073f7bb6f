# SPDX-License-Identifier: Apache-2.0
"""The kind of expert that an owner asks for: from the start of training, or made of a trained expert.

Router rows, gates and calibration belong after a conversion, so that they see what will be served. The
module knows no files and no recipe's other settings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model_core.errors import RecipeRefused
from model_core.network.decoder import Decoder, upcycle
from model_core.network.expert import Expert
from model_core.packing.forms import ExpertKind, FfnForm
from model_core.packing.manifest import ModelShape
from model_core.training.conversions import (
    empty_low_rank,
    factors_of,
    to_full,
    to_int8,
    to_low_rank,
    to_narrow,
    to_split,
)


def wanted_form(
    shape: ModelShape, kind: ExpertKind, *, width: int = 0, rank: int = 0, pieces: int = 0
) -> FfnForm:
    """The form that a recipe asks for beside a base.

    Args:
        shape: of the base.
        kind: of the expert.
        width: inner neurons of a narrow expert; 0 for every other kind.
        rank: of a low-rank expert; 0 for every other kind.
        pieces: of a split expert; 0 for every other kind.

    Raises:
        RecipeRefused: a size that the kind does not have, lacks, or that does not fit the base.
    """
    given = {"expert_width": width, "expert_rank": rank, "expert_pieces": pieces}
    needed = {"narrow": "expert_width", "low_rank": "expert_rank", "split": "expert_pieces"}.get(kind)
    if wrong := [name for name, value in given.items() if (value > 0) != (name == needed)]:
        raise RecipeRefused(
            f"An expert of kind {kind} "
            + (f"needs {needed} and no other size." if needed else "takes none of these sizes."),
            fields=wrong,
        )
    form = FfnForm(kind=kind, d_ffn=width or shape.d_ffn, rank=rank or None, pieces=pieces or None)
    if why := form.problem(shape.d_model) or form.misfit(shape.d_ffn):
        raise RecipeRefused(f"The base cannot have such an expert: {why}.", fields=[needed or "expert_kind"])
    return form


def start_expert(decoder: Decoder, form: FfnForm, rows: Sequence[Tensor] = (), *, seed: int = 0) -> Expert:
    """A new expert that is of its kind before the first step of training.

    A full or a split one starts as a copy of the public network; a low-rank one computes what the public
    network does, since its second factors are 0; a narrow one starts as the public network's neurons that
    matter most on the owner's text.

    Args:
        decoder: the base; not changed.
        form: of the expert's networks.
        rows: token rows ``[S]`` of the owner's text, for a narrow expert.
        seed: of the first factors of a low-rank expert.

    Raises:
        RecipeRefused: integers cannot be trained, or the form does not fit.
    """
    if form.kind == "int8":
        raise RecipeRefused(
            "An int8 expert is made after training; leave trained_as_kind off.", fields=["trained_as_kind"]
        )
    if form.kind != "low_rank":
        return convert(decoder, upcycle(decoder), form, rows)[0]
    expert = empty_low_rank(decoder, upcycle(decoder), form)
    generator = torch.Generator().manual_seed(seed)
    # Adam moves every weight alike. At this scale one step of b moves a merged weight by as much as a step
    # of a full expert would; at the usual 1 / sqrt(inputs) it is several times less.
    scale = (form.rank or 1) ** -0.5
    with torch.no_grad():
        for index in range(decoder.shape.n_layers):
            for part in factors_of(expert, index):
                part.a.copy_(torch.empty(part.a.shape).normal_(0.0, scale, generator=generator))
    return expert


def convert(
    decoder: Decoder, expert: Expert, form: FfnForm, rows: Sequence[Tensor] = ()
) -> tuple[Expert, float]:
    """Turns an expert into one of another form.

    Args:
        decoder: the base.
        expert: of any kind, beside this base.
        form: what it shall be.
        rows: token rows ``[S]`` of the owner's text, for a narrow expert.

    Returns:
        The new expert, and the share of its change's energy that was kept (1 unless ``low_rank``).

    Raises:
        RecipeRefused: the form does not fit the expert or the base, or a narrow one lacks rows.
    """
    if form == expert.form:
        return expert, 1.0
    if form.kind == "low_rank" and form.rank is not None:
        return to_low_rank(decoder, expert, form.rank)
    whole = to_full(decoder, expert)
    if form.kind == "narrow":
        return to_narrow(decoder, whole, form.d_ffn, rows), 1.0
    if form.kind == "split" and form.pieces is not None:
        return to_split(whole, form.pieces), 1.0
    return (to_int8(whole) if form.kind == "int8" else whole), 1.0
