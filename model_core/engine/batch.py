# SPDX-License-Identifier: Apache-2.0
"""One forward pass over the rows of many sequences: prefill chunks and single tokens together.

Projections, router and experts run over all rows at once. Attention runs once for all sequences that add a
single token and once per prefill chunk. Keys and values are written beyond what counts; the caller decides
later whether they do. The module does not choose what to compute, nor who may use what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model_core.engine.states import SequenceStates
from model_core.network.attention import Attention
from model_core.network.bank import ExpertBank
from model_core.network.mixture import Plan, mix
from model_core.network.router import running_sum


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Consecutive positions of one sequence that a step computes.

    Attributes:
        slot: of its states.
        start: first position.
        ids: token ids of the positions.
    """

    slot: int
    start: int
    ids: Sequence[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What a forward pass leaves to be committed or discarded.

    Attributes:
        logits_BV: logits of each piece's last position, fp32.
        shares_BE: routing weight per expert of that position, normalised per layer, averaged over layers.
        sums_LBD: prefix sums after each piece (fp64), or None where no expert is gated.
    """

    logits_BV: Tensor
    shares_BE: Tensor
    sums_LBD: Tensor | None


class _Layout:
    """Index tensors of a batch: single tokens first, then chunks; made once, used in every layer."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.n_single = sum(1 for piece in pieces if len(piece.ids) == 1)
        self.singles, self.chunks = pieces[: self.n_single], pieces[self.n_single :]
        self.ids_T = torch.tensor([token for piece in pieces for token in piece.ids])
        starts = torch.tensor([piece.start for piece in pieces])
        lengths = torch.tensor([len(piece.ids) for piece in pieces])
        ends = lengths.cumsum(0)
        self.last_rows_B = ends - 1
        offsets_T = torch.arange(len(self.ids_T)) - (ends - lengths).repeat_interleave(lengths)
        self.positions_T = starts.repeat_interleave(lengths) + offsets_T
        slots = [piece.slot for piece in self.singles]
        self.slots_B = torch.tensor(slots, dtype=torch.long)
        self.positions_B = self.positions_T[: self.n_single]
        self.reach = int(self.positions_B.max()) + 1 if slots else 0
        mask_BS = torch.arange(self.reach) <= self.positions_B[:, None]
        self.mask_B11S = mask_BS[:, None, None, :]
        dense = bool(slots) and slots == list(range(slots[0], slots[0] + len(slots)))
        self.run = slice(slots[0], slots[0] + len(slots)) if dense else None


@torch.inference_mode()
def run_pieces(bank: ExpertBank, states: SequenceStates, pieces: Sequence[Piece], plan: Plan) -> StepResult:
    """Computes pieces in one batch.

    Args:
        bank: weights.
        states: slots; positions of the pieces are written, none is counted.
        pieces: what to compute, those of one token first.
        plan: allowed columns and k of every row, in the order of the pieces.

    Returns:
        Logits and the rest of each piece's last position.
    """
    decoder, layout = bank.decoder, _Layout(pieces)
    for piece in pieces:
        states.touch(piece.slot, piece.start + len(piece.ids))
    cos_Td, sin_Td = decoder.rope_cos[layout.positions_T], decoder.rope_sin[layout.positions_T]
    x_TD = decoder.embed(layout.ids_T)
    panels = bank.panels()
    shares_BE = torch.zeros(len(pieces), len(panels[0].ffns), dtype=torch.float64)
    sums = []
    for index, panel in enumerate(panels):
        layer = decoder.layer(index)
        cache = (states.keys[index], states.values[index])
        projected = layer.attn.project(layer.attention_input(x_TD), cos_Td, sin_Td)
        mixed_THd = _attend(layer.attn, layout, cache, projected)
        h_TD = layer.after_attention(x_TD, layer.attn.o(mixed_THd.flatten(-2)))
        inner_TD = layer.mixture_input(h_TD)
        mean_TD = None
        if panel.gated:
            mean_TD, sums_BD = _prefix(layout, states.sums_LND[index], inner_TD)
            sums.append(sums_BD)
        out_TD, routing = mix(inner_TD, mean_TD, panel, plan)
        if routing is None:
            shares_BE[:, 0] += 1.0
        else:
            weights_BE = routing.weights_TE[layout.last_rows_B].double()
            shares_BE += weights_BE / weights_BE.sum(-1, keepdim=True)
        x_TD = layer.after_mixture(h_TD, out_TD)
    logits_BV = decoder.logits(decoder.norm(x_TD[layout.last_rows_B])).float()
    return StepResult(
        logits_BV=logits_BV,
        shares_BE=shares_BE / len(panels),
        sums_LBD=torch.stack(sums) if sums else None,
    )


def _attend(
    attn: Attention, layout: _Layout, cache: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Writes new keys and values and attends; returns mixed values ``[T, H, head_dim]``."""
    (keys, values), (q_THd, k_TGd, v_TGd) = cache, new
    parts = []
    n_single = layout.n_single
    if n_single:
        keys[layout.slots_B, :, layout.positions_B] = k_TGd[:n_single]
        values[layout.slots_B, :, layout.positions_B] = v_TGd[:n_single]
        where = layout.slots_B if layout.run is None else layout.run
        # Queries that share a key head stand as rows of one attention, so grouped keys are not repeated.
        q_BGRd = q_THd[:n_single].view(n_single, attn.n_kv_heads, -1, attn.head_dim)
        mixed = F.scaled_dot_product_attention(
            q_BGRd,
            keys[where, :, : layout.reach],
            values[where, :, : layout.reach],
            attn_mask=layout.mask_B11S.expand(-1, -1, q_BGRd.shape[2], -1),
        )
        parts.append(mixed.flatten(1, 2))
    row = n_single
    for piece in layout.chunks:
        length = len(piece.ids)
        end = piece.start + length
        keys[piece.slot, :, piece.start : end] = k_TGd[row : row + length].transpose(0, 1)
        values[piece.slot, :, piece.start : end] = v_TGd[row : row + length].transpose(0, 1)
        q_1HSd = q_THd[row : row + length].transpose(0, 1).unsqueeze(0)
        mask = None
        if piece.start:
            mask = torch.arange(end) <= torch.arange(piece.start, end)[:, None]
        mixed = F.scaled_dot_product_attention(
            q_1HSd,
            attn.widen(keys[piece.slot : piece.slot + 1, :, :end]),
            attn.widen(values[piece.slot : piece.slot + 1, :, :end]),
            attn_mask=mask,
            is_causal=mask is None,
        )
        parts.append(mixed[0].transpose(0, 1))
        row += length
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _prefix(layout: _Layout, sums_ND: Tensor, inner_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Prefix means of all rows and the sums after each piece, both fp64; counted sums are not changed."""
    n_single = layout.n_single
    parts = [sums_ND[layout.slots_B] + inner_TD[:n_single].double()]
    row = n_single
    for piece in layout.chunks:
        length = len(piece.ids)
        carry_1D = sums_ND[piece.slot : piece.slot + 1]
        parts.append(running_sum(inner_TD[None, row : row + length], carry_1D)[0])
        row += length
    sums_TD = torch.cat(parts)
    return sums_TD / (layout.positions_T + 1).double()[:, None], sums_TD[layout.last_rows_B]
