# SPDX-License-Identifier: Apache-2.0
"""Computes steps with torch over pages: the runner that works wherever torch does, on CPU and CUDA.

Projections, router and experts run over all rows of a step at once. Attention runs once per prefill chunk,
and once for all single tokens of sequences of similar length: their pages are gathered side by side, so that
a group copies at most twice what its sequences hold. The module does not choose what to compute, nor who may
use what.

Sums run in whatever order torch's kernels choose for a shape, so results agree with other batches within
rounding, not bit for bit: ``row_exact`` is False.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model_core.engine.grouped import chosen, combine, of_single_row, one_by_one
from model_core.engine.layout import Layout
from model_core.engine.runner import Piece, StepResult
from model_core.engine.weights import BankWeights
from model_core.network.attention import Attention
from model_core.network.bank import ExpertBank
from model_core.network.decoder import DecoderLayer
from model_core.network.expert import Expert
from model_core.network.mixture import LayerExperts, Plan, Routing, plan_rows, plan_uniform, route
from model_core.network.router import running_sum

# Maps tensors of rows to tensors of rows; every row stands alone.
RowsFunction = Callable[..., tuple[Tensor, ...]]


class TorchRunner:
    """Steps over one bank, by torch (see ``runner.Runner``).

    Args:
        bank: weights; its device and dtype are those of the pages.
        n_pages: pages of keys and values.
        n_tails: places for prefix sums.
        page_size: positions in a page.
        weights: what is multiplied; None takes the bank's own, in place.
    """

    # Pages beyond those that the engine knows, and whether experts take turns.
    _spare_pages = 0
    _one_by_one = True

    def __init__(
        self,
        bank: ExpertBank,
        *,
        n_pages: int,
        n_tails: int,
        page_size: int = 16,
        weights: BankWeights | None = None,
    ) -> None:
        self.page_size, self.n_pages, self.n_tails = page_size, n_pages, n_tails
        self.row_exact = False
        self.bank = bank
        self.weights = weights or BankWeights(bank)
        shape = bank.shape
        self._device = self.weights.decoder.embed.weight.device
        # One tensor per layer: [pages, positions, kv heads, head width].
        size = (n_pages + self._spare_pages, page_size, shape.n_kv_heads, shape.head_dim)
        layers = range(shape.n_layers)
        self.keys = [torch.zeros(size, dtype=bank.dtype, device=self._device) for _ in layers]
        self.values = [torch.zeros(size, dtype=bank.dtype, device=self._device) for _ in layers]
        # Sums of what entered each layer's router up to the end of a full page; made for the first gate.
        self.page_sums: list[Tensor] = []
        self.tail_sums_LND = torch.zeros(
            shape.n_layers, n_tails, shape.d_model, dtype=torch.float64, device=self._device
        )
        self._sums_LBD: Tensor | None = None
        self._plan: tuple[tuple[object, ...], Plan] | None = None

    @torch.inference_mode()
    def run(self, pieces: Sequence[Piece]) -> StepResult:
        """Computes pieces in one batch; nothing counts until ``keep``."""
        decoder, layout = self.weights.decoder, Layout(pieces, self.page_size, self._device)
        plan = self._plan_of([pieces[place] for place in layout.order])
        cos_Td, sin_Td = decoder.rope_cos[layout.positions_T], decoder.rope_sin[layout.positions_T]
        x_TD = decoder.embed(layout.ids_T)
        panels = self._panels()
        gated = plan.used != (0,) and any(panel.gated for panel in panels)
        if gated:
            self._want_page_sums()
        shares_BE = torch.zeros(len(pieces), len(panels[0].ffns), dtype=torch.float64, device=self._device)
        sums = []
        for index, panel in enumerate(panels):
            layer = decoder.layer(index)
            q_THd, k_TGd, v_TGd = self._rows(into_attention(layer), x_TD, cos_Td, sin_Td)
            self._write(index, layout, k_TGd, v_TGd)
            mixed_THd = self._attend(layer.attn, index, layout, (q_THd, k_TGd, v_TGd))
            h_TD, inner_TD = self._rows(out_of_attention(layer), x_TD, mixed_THd)
            mean_TD = None
            if gated:
                mean_TD, sums_BD = self._prefix(index, layout, inner_TD)
                sums.append(sums_BD)
            out_TD, routing = self._mix(index, panel, plan, inner_TD, mean_TD)
            if routing is None:
                shares_BE[:, 0] += 1.0
            else:
                weights_BE = routing.weights_TE[layout.last_rows_B].double()
                shares_BE += weights_BE / weights_BE.sum(-1, keepdim=True)
            (x_TD,) = self._rows(out_of_mixture(layer), h_TD, out_TD)
        (logits_BV,) = self._rows(into_logits(self.weights), x_TD[layout.last_rows_B])
        self._sums_LBD = torch.stack(sums) if sums else None
        return StepResult(logits_BV=logits_BV, shares_BE=shares_BE / len(panels))

    @torch.inference_mode()
    def keep(self, tails: Sequence[tuple[int, int]]) -> None:
        """Makes prefix sums of the last step count."""
        if self._sums_LBD is not None and tails:
            places, rows = (torch.tensor(part, device=self._device) for part in zip(*tails, strict=True))
            self.tail_sums_LND[:, places] = self._sums_LBD[:, rows]

    @torch.inference_mode()
    def begin(self, tail: int, page: int | None) -> None:
        """Sets a tail to the prefix sums at the end of a full page, or to zero (None)."""
        if page is None or not self.page_sums:
            self.tail_sums_LND[:, tail] = 0
            return
        for layer, sums_ND in enumerate(self.page_sums):
            self.tail_sums_LND[layer, tail] = sums_ND[page]

    @torch.inference_mode()
    def erase(self, pages: Sequence[int], tails: Sequence[int] = ()) -> None:
        """Overwrites pages and tails with zeros."""
        if pages:
            index = torch.tensor(list(pages), device=self._device)
            for tensor in (*self.keys, *self.values, *self.page_sums):
                tensor.index_fill_(0, index, 0)
        if tails:
            self.tail_sums_LND.index_fill_(1, torch.tensor(list(tails), device=self._device), 0)

    def prepare(self, digest: str, expert: Expert) -> None:
        """Derives what ``weights`` keeps of an expert."""
        self.weights.prepare(digest, expert)

    def refresh(self) -> None:
        """Takes over what the bank holds now."""
        self._plan = None
        self.weights.refresh()

    def size_bytes(self) -> int:
        """Memory of pages and tails."""
        return sum(t.nbytes for t in (*self.keys, *self.values, *self.page_sums, self.tail_sums_LND))

    # ── how rows are computed; a runner with other promises computes them otherwise ─────────────────────
    def _rows(self, compute: RowsFunction, *parts: Tensor) -> tuple[Tensor, ...]:
        """Computes rows that do not depend on each other."""
        return compute(*parts)

    def _panels(self) -> list[LayerExperts]:
        """What the layers route to."""
        return self.weights.panels()

    def _mix(
        self, index: int, panel: LayerExperts, plan: Plan, x_TD: Tensor, mean_TD: Tensor | None
    ) -> tuple[Tensor, Routing | None]:
        """The mixture of one layer and its routing (None where only the public expert is allowed)."""
        if plan.used == (0,):
            return panel.ffns[0](x_TD), None
        routing, kept_TE = route(x_TD, mean_TD, panel, plan)
        if len(x_TD) == 1 and self._one_by_one:
            return of_single_row(x_TD, routing.weights_TE, kept_TE, panel.ffns), routing
        width = max(group.top_k for group in plan.groups)
        experts_TK, weights_TK = chosen(routing.weights_TE, kept_TE, width)
        return self._combine(index, panel, x_TD, experts_TK, weights_TK), routing

    def _combine(
        self,
        index: int,  # noqa: ARG002  (of the layer)
        panel: LayerExperts,
        x_TD: Tensor,
        experts_TK: Tensor,
        weights_TK: Tensor,
    ) -> Tensor:
        """What chosen columns make of rows."""
        return combine(x_TD, experts_TK, weights_TK, one_by_one(panel.ffns), len(panel.ffns))

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    def _want_page_sums(self) -> None:
        if not self.page_sums:
            size = (self.n_pages + self._spare_pages, self.bank.shape.d_model)
            self.page_sums = [
                torch.zeros(size, dtype=torch.float64, device=self._device)
                for _ in range(self.bank.shape.n_layers)
            ]

    def _plan_of(self, ordered: Sequence[Piece]) -> Plan:
        """The plan of a batch; in steady decoding it is that of the last one."""
        signature = tuple((piece.columns, piece.top_k, len(piece.ids)) for piece in ordered)
        if self._plan is None or self._plan[0] != signature:
            allowed = [(columns, top_k) for columns, top_k, count in signature for _ in range(count)]
            renormalise = self.bank.shape.renormalise
            if len(set(allowed)) == 1:
                plan = plan_uniform(*allowed[0], self._device, renormalise=renormalise)
            else:
                plan = plan_rows(allowed, self._device, renormalise=renormalise)
            self._plan = (signature, plan)
        return self._plan[1]

    def _write(self, index: int, layout: Layout, k_TGd: Tensor, v_TGd: Tensor) -> None:
        """Writes new keys and values into their pages."""
        for pages, part_TGd in ((self.keys[index], k_TGd), (self.values[index], v_TGd)):
            if layout.fresh is not None:
                pages.index_fill_(0, layout.fresh, 0)
            pages.flatten(0, 1).index_copy_(0, layout.slots_T, part_TGd)

    def _attend(
        self, attn: Attention, index: int, layout: Layout, new: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """Attends over what is written; returns mixed values ``[T, H, head_dim]``."""
        q_THd, k_TGd, v_TGd = new
        keys, values = self.keys[index], self.values[index]
        mixed_THd = torch.empty_like(q_THd)
        for group in layout.singles:
            q_NHd = q_THd[group.rows_N]
            mixed_THd[group.rows_N] = attend_singles(
                attn, q_NHd, (keys, values), group.pages_NP, group.mask_N11S
            )
        for chunk in layout.chunks:
            q_1HRd = q_THd[chunk.rows].transpose(0, 1).unsqueeze(0)
            if chunk.pages_P is None:
                k_1SGd, v_1SGd = k_TGd[None, chunk.rows], v_TGd[None, chunk.rows]
            else:
                k_1SGd = gathered(keys, chunk.pages_P[None])[:, : chunk.end]
                v_1SGd = gathered(values, chunk.pages_P[None])[:, : chunk.end]
            mixed = F.scaled_dot_product_attention(
                q_1HRd,
                attn.widen(k_1SGd.transpose(1, 2)),
                attn.widen(v_1SGd.transpose(1, 2)),
                attn_mask=chunk.mask_RS,
                is_causal=chunk.mask_RS is None,
            )
            mixed_THd[chunk.rows] = mixed[0].transpose(0, 1)
        return mixed_THd

    def _prefix(self, index: int, layout: Layout, inner_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Prefix means of all rows and the sums after each piece, fp64; sums that count are not changed."""
        tails_ND = self.tail_sums_LND[index]
        parts = [tails_ND[layout.tails_N] + inner_TD[: layout.n_single].double()]
        for chunk in layout.chunks:
            carry_1D = tails_ND[chunk.tail : chunk.tail + 1]
            parts.append(running_sum(inner_TD[None, chunk.rows], carry_1D)[0])
        sums_TD = torch.cat(parts)
        self.page_sums[index][layout.full_pages] = sums_TD[layout.full_rows]
        return sums_TD / (layout.positions_T + 1).double()[:, None], sums_TD[layout.last_rows_B]


def gathered(pages: Tensor, numbers_NP: Tensor) -> Tensor:
    """Pages of rows side by side: ``[N, P * page size, kv heads, head width]``.

    Whole pages are copied one after the other; indexing with a table would look up every element.
    """
    found = pages.index_select(0, numbers_NP.flatten())
    return found.view(numbers_NP.shape[0], -1, *pages.shape[2:])


def attend_singles(
    attn: Attention, q_NHd: Tensor, states: tuple[Tensor, Tensor], pages_NP: Tensor, mask_N11S: Tensor
) -> Tensor:
    """Attention of rows over pages of their own.

    Args:
        attn: of the layer.
        q_NHd: queries.
        states: pages of keys, pages of values.
        pages_NP: each row's pages.
        mask_N11S: which positions each may see.

    Returns:
        Mixed values ``[N, H, head_dim]``.
    """
    # Queries that share a key head stand as rows of one attention, so grouped keys are not repeated.
    q_NGRd = q_NHd.view(len(q_NHd), attn.n_kv_heads, -1, attn.head_dim)
    k_NGSd, v_NGSd = (gathered(pages, pages_NP).transpose(1, 2) for pages in states)
    mask = mask_N11S.expand(-1, -1, q_NGRd.shape[2], -1)
    return F.scaled_dot_product_attention(q_NGRd, k_NGSd, v_NGSd, attn_mask=mask).flatten(1, 2)


def into_attention(layer: DecoderLayer) -> RowsFunction:
    """Rows, cosines and sines to queries, keys and values."""
    return lambda x, cos, sin: layer.attn.project(layer.attention_input(x), cos, sin)


def out_of_attention(layer: DecoderLayer) -> RowsFunction:
    """Rows and mixed values to the residual and to what enters the mixture."""

    def compute(x_TD: Tensor, mixed_THd: Tensor) -> tuple[Tensor, ...]:
        h_TD = layer.after_attention(x_TD, layer.attn.o(mixed_THd.flatten(-2)))
        return h_TD, layer.mixture_input(h_TD)

    return compute


def out_of_mixture(layer: DecoderLayer) -> RowsFunction:
    """Residual and mixture to the residual that leaves the layer."""
    return lambda h, mixed: (layer.after_mixture(h, mixed),)


def into_logits(weights: BankWeights) -> RowsFunction:
    """The residual of the last layer to logits."""
    return lambda x: (weights.head(weights.decoder.norm(x)).float(),)


def page_bytes(bank: ExpertBank, page_size: int) -> int:
    """Memory of one page in all layers: keys, values, and the prefix sums at its end (fp64)."""
    shape = bank.shape
    states = 2 * page_size * shape.n_kv_heads * shape.head_dim * bank.dtype.itemsize
    return shape.n_layers * (states + 8 * shape.d_model)
