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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model_core.engine.runner import Piece, StepResult
from model_core.network.attention import Attention
from model_core.network.bank import ExpertBank
from model_core.network.expert import Expert
from model_core.network.mixture import Plan, mix, plan_rows, plan_uniform
from model_core.network.router import running_sum


@dataclass(frozen=True, kw_only=True, slots=True)
class _Singles:
    """Rows of single tokens that attend together.

    Attributes:
        rows_N: rows of the batch.
        pages_NP: their page tables; shorter ones are filled up with a page of their own.
        mask_N11S: which positions each may see.
    """

    rows_N: Tensor
    pages_NP: Tensor
    mask_N11S: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chunk:
    """Rows of one piece of several tokens.

    Attributes:
        rows: of the batch.
        tail: place of its prefix sums.
        pages_P: its pages; None where it begins at position 0 and needs no earlier ones.
        mask_RS: which positions each row may see; None where it begins at position 0.
        end: position after its last.
    """

    rows: slice
    tail: int
    pages_P: Tensor | None
    mask_RS: Tensor | None
    end: int


class _Layout:
    """Index tensors of a step, made once and used in every layer: single tokens first, then chunks."""

    def __init__(self, pieces: Sequence[Piece], page_size: int, device: torch.device) -> None:
        self.order = sorted(range(len(pieces)), key=lambda place: len(pieces[place].ids) > 1)
        ordered = [pieces[place] for place in self.order]
        self.n_single = sum(1 for piece in ordered if len(piece.ids) == 1)
        positions, slots, last_rows, fresh = [], [], np.empty(len(pieces), dtype=np.int64), []
        full: list[tuple[int, int]] = []
        row = 0
        for place, piece in zip(self.order, ordered, strict=True):
            where = np.arange(piece.start, piece.start + len(piece.ids))
            pages = np.asarray(piece.pages)[where // page_size]
            positions.append(where)
            slots.append(pages * page_size + where % page_size)
            ends = np.flatnonzero(where % page_size == page_size - 1)
            full += [(row + int(end), int(pages[end])) for end in ends]
            if where[-1] % page_size < len(piece.ids) and where[-1] % page_size != page_size - 1:
                fresh.append(int(pages[-1]))
            row += len(piece.ids)
            last_rows[place] = row - 1

        def on_device(array: object) -> Tensor:
            return torch.as_tensor(array, dtype=torch.long).to(device)

        self.ids_T = on_device([token for piece in ordered for token in piece.ids])
        self.positions_T = on_device(np.concatenate(positions))
        self.slots_T = on_device(np.concatenate(slots))
        self.last_rows_B = on_device(last_rows)
        self.tails_N = on_device([piece.tail for piece in ordered[: self.n_single]])
        # A page that is begun and not filled: whatever stood in it must not meet a mask.
        self.fresh = on_device(fresh) if fresh else None
        self.full_rows = on_device([entry[0] for entry in full])
        self.full_pages = on_device([entry[1] for entry in full])
        self.singles = _group_singles(ordered[: self.n_single], page_size, device)
        self.chunks = _chunks(ordered[self.n_single :], self.n_single, page_size, device)


def _group_singles(pieces: Sequence[Piece], page_size: int, device: torch.device) -> list[_Singles]:
    """Single tokens by the power of two that holds their number of pages."""
    groups: dict[int, list[int]] = {}
    for row, piece in enumerate(pieces):
        groups.setdefault((piece.start // page_size).bit_length(), []).append(row)
    found = []
    for rows in groups.values():
        counts = [pieces[row].start // page_size + 1 for row in rows]
        widest = max(counts)
        tables = [
            list(pieces[row].pages[:count]) + [pieces[row].pages[0]] * (widest - count)
            for row, count in zip(rows, counts, strict=True)
        ]
        starts_N1 = torch.tensor([[pieces[row].start] for row in rows])
        mask_NS = torch.arange(widest * page_size) <= starts_N1
        found.append(
            _Singles(
                rows_N=torch.tensor(rows).to(device),
                pages_NP=torch.tensor(tables).to(device),
                mask_N11S=mask_NS[:, None, None, :].to(device),
            )
        )
    return found


def _chunks(pieces: Sequence[Piece], row: int, page_size: int, device: torch.device) -> list[_Chunk]:
    found = []
    for piece in pieces:
        end = piece.start + len(piece.ids)
        pages_P, mask_RS = None, None
        if piece.start:
            pages_P = torch.tensor(list(piece.pages[: -(-end // page_size)])).to(device)
            positions_R1 = torch.arange(piece.start, end, device=device)[:, None]
            mask_RS = torch.arange(end, device=device) <= positions_R1
        rows = slice(row, row + len(piece.ids))
        found.append(_Chunk(rows=rows, tail=piece.tail, pages_P=pages_P, mask_RS=mask_RS, end=end))
        row = rows.stop
    return found


class TorchRunner:
    """Steps over one bank, by torch (see ``runner.Runner``).

    Args:
        bank: weights; its device and dtype are those of the pages.
        n_pages: pages of keys and values.
        n_tails: places for prefix sums.
        page_size: positions in a page.
    """

    def __init__(self, bank: ExpertBank, *, n_pages: int, n_tails: int, page_size: int = 16) -> None:
        self.page_size, self.n_pages, self.n_tails = page_size, n_pages, n_tails
        self.row_exact = False
        self.bank = bank
        shape = bank.shape
        self._device = bank.decoder.embed.weight.device
        # One tensor per layer: [pages, positions, kv heads, head width].
        size = (n_pages, page_size, shape.n_kv_heads, shape.head_dim)
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
        decoder, layout = self.bank.decoder, _Layout(pieces, self.page_size, self._device)
        plan = self._plan_of([pieces[place] for place in layout.order])
        cos_Td, sin_Td = decoder.rope_cos[layout.positions_T], decoder.rope_sin[layout.positions_T]
        x_TD = decoder.embed(layout.ids_T)
        panels = self.bank.panels()
        gated = plan.used != (0,) and any(panel.gated for panel in panels)
        if gated and not self.page_sums:
            size = (self.n_pages, self.bank.shape.d_model)
            self.page_sums = [
                torch.zeros(size, dtype=torch.float64, device=self._device) for _ in range(len(panels))
            ]
        shares_BE = torch.zeros(len(pieces), len(panels[0].ffns), dtype=torch.float64, device=self._device)
        sums = []
        for index, panel in enumerate(panels):
            layer = decoder.layer(index)
            projected = layer.attn.project(layer.attention_input(x_TD), cos_Td, sin_Td)
            mixed_THd = self._attend(layer.attn, index, layout, projected)
            h_TD = layer.after_attention(x_TD, layer.attn.o(mixed_THd.flatten(-2)))
            inner_TD = layer.mixture_input(h_TD)
            mean_TD = None
            if gated:
                mean_TD, sums_BD = self._prefix(index, layout, inner_TD)
                sums.append(sums_BD)
            out_TD, routing = mix(inner_TD, mean_TD, panel, plan)
            if routing is None:
                shares_BE[:, 0] += 1.0
            else:
                weights_BE = routing.weights_TE[layout.last_rows_B].double()
                shares_BE += weights_BE / weights_BE.sum(-1, keepdim=True)
            x_TD = layer.after_mixture(h_TD, out_TD)
        logits_BV = decoder.logits(decoder.norm(x_TD[layout.last_rows_B])).float()
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
        """Nothing: the weights are read in place."""

    def refresh(self) -> None:
        """Forgets what was derived from the bank's experts; the weights themselves are read in place."""
        self._plan = None

    def size_bytes(self) -> int:
        """Memory of pages and tails."""
        return sum(t.nbytes for t in (*self.keys, *self.values, *self.page_sums, self.tail_sums_LND))

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
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

    def _attend(
        self, attn: Attention, index: int, layout: _Layout, new: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """Writes new keys and values and attends; returns mixed values ``[T, H, head_dim]``."""
        q_THd, k_TGd, v_TGd = new
        keys, values = self.keys[index], self.values[index]
        for pages, part_TGd in ((keys, k_TGd), (values, v_TGd)):
            if layout.fresh is not None:
                pages.index_fill_(0, layout.fresh, 0)
            pages.flatten(0, 1).index_copy_(0, layout.slots_T, part_TGd)
        mixed_THd = torch.empty_like(q_THd)
        for group in layout.singles:
            # Queries that share a key head stand as rows of one attention, so grouped keys are not repeated.
            q_NGRd = q_THd[group.rows_N].view(len(group.rows_N), attn.n_kv_heads, -1, attn.head_dim)
            k_NGSd = keys[group.pages_NP].flatten(1, 2).transpose(1, 2)
            v_NGSd = values[group.pages_NP].flatten(1, 2).transpose(1, 2)
            mask = group.mask_N11S.expand(-1, -1, q_NGRd.shape[2], -1)
            mixed = F.scaled_dot_product_attention(q_NGRd, k_NGSd, v_NGSd, attn_mask=mask)
            mixed_THd[group.rows_N] = mixed.flatten(1, 2)
        for chunk in layout.chunks:
            q_1HRd = q_THd[chunk.rows].transpose(0, 1).unsqueeze(0)
            if chunk.pages_P is None:
                k_1SGd, v_1SGd = k_TGd[None, chunk.rows], v_TGd[None, chunk.rows]
            else:
                k_1SGd = keys[chunk.pages_P].flatten(0, 1)[None, : chunk.end]
                v_1SGd = values[chunk.pages_P].flatten(0, 1)[None, : chunk.end]
            mixed = F.scaled_dot_product_attention(
                q_1HRd,
                attn.widen(k_1SGd.transpose(1, 2)),
                attn.widen(v_1SGd.transpose(1, 2)),
                attn_mask=chunk.mask_RS,
                is_causal=chunk.mask_RS is None,
            )
            mixed_THd[chunk.rows] = mixed[0].transpose(0, 1)
        return mixed_THd

    def _prefix(self, index: int, layout: _Layout, inner_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Prefix means of all rows and the sums after each piece, fp64; sums that count are not changed."""
        tails_ND = self.tail_sums_LND[index]
        parts = [tails_ND[layout.tails_N] + inner_TD[: layout.n_single].double()]
        for chunk in layout.chunks:
            carry_1D = tails_ND[chunk.tail : chunk.tail + 1]
            parts.append(running_sum(inner_TD[None, chunk.rows], carry_1D)[0])
        sums_TD = torch.cat(parts)
        self.page_sums[index][layout.full_pages] = sums_TD[layout.full_rows]
        return sums_TD / (layout.positions_T + 1).double()[:, None], sums_TD[layout.last_rows_B]


def page_bytes(bank: ExpertBank, page_size: int) -> int:
    """Memory of one page in all layers: keys, values, and the prefix sums at its end (fp64)."""
    shape = bank.shape
    states = 2 * page_size * shape.n_kv_heads * shape.head_dim * bank.dtype.itemsize
    return shape.n_layers * (states + 8 * shape.d_model)
