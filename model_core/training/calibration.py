# SPDX-License-Identifier: Apache-2.0
"""Calibration of one expert against the public one alone, on public text that travels with the base.

An expert that is good on its owner's text must not take public text from the public expert. Its biases are
lowered, step by step, until the two-expert model is within a tolerance of the base on public calibration
text; if its owner is ready to lose a little, they are lowered that far first. Its router rows are bounded in
norm. Nothing here looks at any other
expert, so a later removal of one changes no calibration of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model_core.evaluation.bits import bits_per_byte, bits_per_document
from model_core.evaluation.shares import routing_shares
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.text.documents import Document
from model_core.text.tokenizer import TextTokenizer

# An expert that is hardly worse than the base on public text could keep most of it and no tolerance would
# object. Admission refuses above a half, on other documents than these.
PUBLIC_SHARE_LIMIT = 0.4


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationReport:
    """What calibration found and did.

    Attributes:
        public_excess: bits per byte of the calibrated pair over the base on public text, less 1.
        public_share: the expert's mean routing weight there.
        own_loss: bits per byte of the pair on own text against unshifted gates, less 1.
        gate_shift: bias of every layer (0 or below), which shifts its gate against public text.
        rows_clipped: router rows that were longer than the bound.
        row_logit_bound: the bound: the largest logit that a row can give a residual of typical length.
        held: whether tolerance and share limit were reached.
    """

    public_excess: float
    public_share: float
    own_loss: float
    gate_shift: float
    rows_clipped: int
    row_logit_bound: float
    held: bool


def bound_router_rows(expert: Expert, residual_norms_L: Tensor, *, logit_bound: float) -> int:
    """Shortens router rows so that no residual of typical length gets a logit above the bound.

    Args:
        expert: whose rows are bounded in place.
        residual_norms_L: typical length of the residual that enters each layer's router, on public text.
        logit_bound: largest ``|row| * typical length``.

    Returns:
        How many rows were shortened.
    """
    clipped = 0
    with torch.no_grad():
        for layer, norm in enumerate(residual_norms_L.tolist()):
            row = expert.layer(layer).router.row
            longest = logit_bound / max(norm, 1e-12)
            length = float(row.double().norm())
            if length > longest:
                row.mul_(longest / length)
                clipped += 1
    return clipped


def residual_norms(decoder: Decoder, rows: Sequence[Tensor]) -> Tensor:
    """Root mean square length of the base's residual at every router, fp64 ``[L]``."""
    total_L = torch.zeros(decoder.shape.n_layers, dtype=torch.float64)

    def watch(layer: int, h_BSD: Tensor, _routing: object) -> None:
        total_L[layer] += h_BSD.double().square().sum().cpu()

    with torch.no_grad():
        for row in rows:
            decoder.hidden(row[None].to(decoder.embed.weight.device), observe=watch)
    return (total_L / sum(len(row) for row in rows)).sqrt()


def calibrate(
    decoder: Decoder,
    expert: Expert,
    public: Sequence[Document],
    own: Sequence[Document],
    tokenizer: TextTokenizer,
    *,
    tolerance: float,
    own_slack: float,
    share_limit: float = PUBLIC_SHARE_LIMIT,
    max_tokens: int = 1024,
    shifts: Sequence[float] = (0.0, -0.5, -1.0, -1.5, -2.0, -2.5, -3.0, -3.5, -4.0, -5.0, -6.0, -8.0),
) -> CalibrationReport:
    """Lowers the expert's biases as far as the owner allows, and further if public text needs it.

    A bias tells against the public expert where the gate doubts, and hardly where it is sure (see
    ``network.router.reserve``); it does not weaken the owner's evidence beside other owners'.

    A gate that is only as open as its owner's text needs is shut earliest elsewhere: on public text, and on
    the texts of other owners, which nobody may look at here. So the first bound is the owner's own: the
    lowest shift at which its text loses no more than ``own_slack`` (0: no shift). Then public text has the
    last word.

    Args:
        decoder: the base.
        expert: has gates; its router biases are set in place.
        public: calibration documents, not those that the gates were fitted on.
        own: documents of the owner.
        tokenizer: the base's.
        tolerance: largest relative excess of bits per byte over the base on public text, such as 0.003.
        own_slack: largest relative loss of bits per byte on own text against unshifted gates.
        share_limit: largest mean routing weight on public text.
        max_tokens: evaluation window.
        shifts: what is tried, falling from 0.

    Returns:
        The report; ``rows_clipped`` and ``row_logit_bound`` are 0 here and filled by the caller.
    """
    parts = [expert.layer(index).router for index in range(decoder.shape.n_layers)]
    biases = [part.bias for part in parts if part.bias is not None]

    def shifted(shift: float, documents: Sequence[Document]) -> float:
        with torch.no_grad():
            for bias in biases:
                bias.fill_(shift)
        scores = bits_per_document(
            decoder, documents, tokenizer, experts=(expert,), top_k=2, window_tokens=max_tokens
        )
        return bits_per_byte(scores)

    open_bits = shifted(shifts[0], own)
    place, own_loss = 0, 0.0
    for candidate in range(1, len(shifts) if own_slack > 0 else 1):
        loss = shifted(shifts[candidate], own) / open_bits - 1
        if loss > own_slack:
            break
        place, own_loss = candidate, loss
    base = bits_per_byte(bits_per_document(decoder, public, tokenizer, window_tokens=max_tokens))
    within_slack = place
    excess = shifted(shifts[place], public) / base - 1
    share = public_share(decoder, expert, public, tokenizer, max_tokens=max_tokens)
    while (excess > tolerance or share > share_limit) and place + 1 < len(shifts):
        place += 1
        excess = shifted(shifts[place], public) / base - 1
        share = public_share(decoder, expert, public, tokenizer, max_tokens=max_tokens)
    if place != within_slack:
        own_loss = shifted(shifts[place], own) / open_bits - 1
    return CalibrationReport(
        public_excess=excess,
        public_share=share,
        own_loss=own_loss,
        gate_shift=shifts[place],
        rows_clipped=0,
        row_logit_bound=0.0,
        held=excess <= tolerance and share <= share_limit,
    )


def public_share(
    decoder: Decoder,
    expert: Expert,
    public: Sequence[Document],
    tokenizer: TextTokenizer,
    *,
    max_tokens: int = 1024,
) -> float:
    """The expert's mean routing weight beside the public one on the first dozen of public documents."""
    shares_LE = routing_shares(decoder, (expert,), public[:12], tokenizer, top_k=2, max_tokens=max_tokens)
    return float(shares_LE[:, 1].mean())
