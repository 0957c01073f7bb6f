# SPDX-License-Identifier: Apache-2.0
"""One decode step of fixed shape over slots: everything that differs between two steps is in one buffer.

Rows are single tokens. Token, position, pages, tail, slots and k of each stand in one array of integers that
is copied to the device at once; a recomposition is other numbers in it. Rows that a step does not need read
and write a page that belongs to nobody and take no expert. Nothing else is read but weights, router tables
and states, all of them in memory that stays, so the step can be captured.

Weights of experts outside a row's set are not multiplied: only slots that are named are looked at, and a row
is sorted to none but those it chose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model_core.engine.grouped import chosen, combine
from model_core.engine.runner import Piece
from model_core.engine.slots import SlotWeights
from model_core.engine.torch_runner import (
    attend_singles,
    into_attention,
    into_logits,
    out_of_attention,
    out_of_mixture,
)
from model_core.network.router import RouterRows, router_logits

_FIELDS = ("ids", "positions", "write", "fresh", "full", "tails", "counts", "top_k")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepShape:
    """What a captured step is made for.

    Attributes:
        rows: B.
        pages: P, of the longest sequence.
        columns: n, experts that the largest set allows.
        width: K, most experts that a row takes.
        gated: whether prefix means are needed.
    """

    rows: int
    pages: int
    columns: int
    width: int
    gated: bool

    @classmethod
    def of(cls, pieces: Sequence[Piece], *, page_size: int, gated: bool) -> StepShape:
        """The shape that holds single tokens; sizes are rounded up to powers of two, but for K."""
        return cls(
            rows=_power(len(pieces)),
            pages=_power(max(piece.start // page_size + 1 for piece in pieces)),
            columns=_power(max(len(piece.columns) for piece in pieces)),
            width=max(min(piece.top_k, len(piece.columns)) for piece in pieces),
            gated=gated,
        )


class States(Protocol):
    """Where keys, values and prefix sums stand; there is one page more than ``n_pages``."""

    page_size: int
    n_pages: int
    keys: list[Tensor]
    values: list[Tensor]
    page_sums: list[Tensor]
    tail_sums_LND: Tensor


class DecodeStep:
    """Single tokens in a fixed shape.

    Args:
        shape: of the step.
        states: read and written.
        weights: multiplied.
        renormalise: whether the weights of the chosen experts are divided by their sum.
        device: where all of it is.
    """

    def __init__(
        self,
        shape: StepShape,
        states: States,
        weights: SlotWeights,
        *,
        renormalise: bool,
        device: torch.device,
    ) -> None:
        self.shape, self._states, self._weights, self._renormalise = shape, states, weights, renormalise
        sizes = [len(_FIELDS) * shape.rows, shape.rows * shape.columns, shape.rows * shape.pages]
        # Pinned, so that copying does not wait for the host; every step ends with the host waiting for it.
        self._host = torch.zeros(sum(sizes), dtype=torch.long, pin_memory=device.type == "cuda")
        self._numbers = torch.zeros(sum(sizes), dtype=torch.long, device=device)
        host = self._host.numpy()
        bounds = np.cumsum(sizes)[:-1].tolist()
        fields, slots, pages = (part.reshape(-1, shape.rows) for part in np.split(host, bounds))
        self._fields = dict(zip(_FIELDS, fields, strict=True))
        self._host_slots, self._host_pages = slots.reshape(shape.rows, -1), pages.reshape(shape.rows, -1)
        fields_, slots_, pages_ = torch.split(self._numbers, sizes)
        self._input = dict(zip(_FIELDS, fields_.view(-1, shape.rows).unbind(), strict=True))
        self._slots_Bn, self._pages_BP = slots_.view(shape.rows, -1), pages_.view(shape.rows, -1)

    def fill(self, pieces: Sequence[Piece]) -> None:
        """Puts single tokens in, one row each, and rows of nobody behind them."""
        n, size, dump = len(pieces), self._states.page_size, self._states.n_pages
        fields = self._fields
        starts = np.array([piece.start for piece in pieces])
        last = np.array([piece.pages[piece.start // size] for piece in pieces])
        for name, found in (
            ("ids", [piece.ids[0] for piece in pieces]),
            ("positions", starts),
            ("write", last * size + starts % size),
            ("fresh", np.where(starts % size == 0, last, dump)),
            ("full", np.where(starts % size == size - 1, last, dump)),
            ("tails", [piece.tail for piece in pieces]),
            ("counts", [len(piece.columns) for piece in pieces]),
            ("top_k", [piece.top_k for piece in pieces]),
        ):
            fields[name][:n] = found
            fields[name][n:] = 0
        fields["write"][n:] = dump * size
        fields["fresh"][n:] = fields["full"][n:] = dump
        fields["counts"][n:] = 1
        self._host_slots[:] = 0
        self._host_pages[:] = dump
        for row, piece in enumerate(pieces):
            self._host_slots[row, : len(piece.columns)] = self._weights.slots_of(piece.columns)
            count = piece.start // size + 1
            self._host_pages[row, :count] = piece.pages[:count]
        self._numbers.copy_(self._host, non_blocking=True)

    def compute(self) -> tuple[Tensor, ...]:
        """Computes what was filled in.

        Returns:
            Logits and shares by place in the row's columns, side by side ``[B, V + n]`` in fp32; and with
            gates the new prefix sums ``[L, B, D]``.
        """
        given, states, decoder = self._input, self._states, self._weights.decoder
        positions_B1 = given["positions"].unsqueeze(-1)
        cos_Bd, sin_Bd = decoder.rope_cos[given["positions"]], decoder.rope_sin[given["positions"]]
        places_S = torch.arange(self.shape.pages * states.page_size, device=positions_B1.device)
        mask_B11S = (places_S <= positions_B1)[:, None, None, :]
        x_BD = decoder.embed(given["ids"])
        shares_Bn = torch.zeros(self._slots_Bn.shape, dtype=torch.float64, device=x_BD.device)
        sums = []
        for index in range(len(states.keys)):
            layer = decoder.layer(index)
            q_BHd, k_BGd, v_BGd = into_attention(layer)(x_BD, cos_Bd, sin_Bd)
            pages = (states.keys[index], states.values[index])
            for part, new_BGd in zip(pages, (k_BGd, v_BGd), strict=True):
                part.index_fill_(0, given["fresh"], 0)
                part.flatten(0, 1).index_copy_(0, given["write"], new_BGd)
            mixed_BHd = attend_singles(layer.attn, q_BHd, pages, self._pages_BP, mask_B11S)
            h_BD, inner_BD = out_of_attention(layer)(x_BD, mixed_BHd)
            mean_BD = None
            if self.shape.gated:
                sums_BD = states.tail_sums_LND[index][given["tails"]] + inner_BD.double()
                states.page_sums[index].index_copy_(0, given["full"], sums_BD)
                mean_BD = sums_BD / (positions_B1 + 1).double()
                sums.append(sums_BD)
            out_BD, weights_Bn = self._mix(index, inner_BD, mean_BD)
            shares_Bn += weights_Bn.double() / weights_Bn.double().sum(-1, keepdim=True)
            (x_BD,) = out_of_mixture(layer)(h_BD, out_BD)
        (logits_BV,) = into_logits(self._weights)(x_BD)
        both_BX = torch.cat((logits_BV, (shares_Bn / len(states.keys)).float()), dim=-1)
        return (both_BX, torch.stack(sums)) if sums else (both_BX,)

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    def _mix(self, index: int, x_BD: Tensor, mean_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mixture's output and the weights of each row's columns."""
        n, capacity = self.shape.columns, self._weights.capacity
        columns_n = torch.arange(n, device=x_BD.device)
        valid_Bn = columns_n < self._input["counts"].unsqueeze(-1)
        logits_Bn = router_logits(x_BD, mean_BD, self._rows(index, valid_Bn))
        logits_Bn = logits_Bn.masked_fill(~valid_Bn, -torch.inf)
        exponents_Bn = (logits_Bn - logits_Bn.amax(-1, keepdim=True)).exp()
        weights_Bn = exponents_Bn / exponents_Bn.sum(-1, keepdim=True)
        order_Bn = weights_Bn.sort(dim=-1, descending=True, stable=True).indices
        ranks_Bn = torch.empty_like(order_Bn).scatter_(-1, order_Bn, columns_n.expand_as(order_Bn))
        kept_Bn = (ranks_Bn < self._input["top_k"].unsqueeze(-1)) & valid_Bn
        weights_Bn = torch.where(kept_Bn, weights_Bn, 0.0)
        if self._renormalise:
            weights_Bn = weights_Bn / weights_Bn.sum(-1, keepdim=True)
        places_BK, weights_BK = chosen(weights_Bn, kept_Bn, self.shape.width)
        slots_BK = self._slots_Bn.gather(-1, places_BK.clamp(max=n - 1))
        slots_BK = torch.where(places_BK < n, slots_BK, capacity)
        return combine(x_BD, slots_BK, weights_BK, self._weights.ffns(index), capacity), weights_Bn

    def _rows(self, index: int, valid_Bn: Tensor) -> RouterRows:
        """Router rows of each row's own columns; places that stand for nobody take no part in sharing."""
        table, slots_Bn = self._weights.tables[index], self._slots_Bn
        gated = self.shape.gated
        return RouterRows(
            rows_ED=table.rows_ED[slots_Bn],
            biases_E=table.biases_E[slots_Bn],
            gate_rows_ED=table.gate_rows_ED[slots_Bn] if gated else table.gate_rows_ED,
            gate_biases_E=torch.where(valid_Bn, table.gate_biases_E[slots_Bn], torch.inf),
        )


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()
