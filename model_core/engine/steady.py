# SPDX-License-Identifier: Apache-2.0
"""Steps by torch in which no bit of a row depends on the others: slower, and checked before it is promised.

Torch's kernels choose the order of their sums by the shapes they see. Here they always see the same: rows are
computed in blocks of one size, the last one filled up with zeros, and every row attends alone, over its pages
filled up to the next power of two. Whether equal shapes are enough depends on the build and the machine, so
it is measured for every product of base and experts when they come: rows are moved to other places and their
neighbours exchanged, and every bit must stay. Where one does not, ``row_exact`` is False; the steps are then
as right as those of the plain runner, within rounding.

The compiled runner makes the same promise and is many times as fast; this one needs no compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from model_core.engine.layout import Layout
from model_core.engine.torch_runner import RowsFunction, TorchRunner, gathered
from model_core.network.attention import Attention
from model_core.network.bank import ExpertBank
from model_core.network.ffn import RowFunction
from model_core.network.mixture import LayerExperts

BLOCK = 16


def in_blocks(compute: RowsFunction, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Computes rows in blocks of one size.

    Args:
        compute: maps rows to rows.
        parts: tensors with equally many rows, at least one.
    """
    n_rows = parts[0].shape[0]
    missing = -n_rows % BLOCK
    filled = [F.pad(part, (0, 0) * (part.dim() - 1) + (0, missing)) for part in parts]
    results = [
        compute(*(part[begin:end] for part in filled))
        for begin, end in pairwise(range(0, n_rows + missing + 1, BLOCK))
    ]
    return tuple(torch.cat(outputs)[:n_rows] for outputs in zip(*results, strict=True))


def keeps_bits(compute: Callable[..., Tensor], *parts: Tensor) -> bool:
    """Whether every row of a block comes out the same at every place and beside any other rows.

    Args:
        compute: maps a block of rows to a block of rows.
        parts: what it takes, ``BLOCK`` rows each.
    """
    plain = compute(*parts)
    for shift in (1, 5, BLOCK // 2, BLOCK - 1):
        moved = compute(*(part.roll(shift, 0) for part in parts))
        alone = compute(*(_only(part, shift) for part in parts))
        if not torch.equal(moved.roll(-shift, 0), plain) or not torch.equal(alone[shift], plain[shift]):
            return False
    return True


def _only(part: Tensor, row: int) -> Tensor:
    """The same block with zeros in all rows but one."""
    kept = torch.zeros_like(part)
    kept[row] = part[row]
    return kept


def attend_alone(q_RGQd: Tensor, k_RSGd: Tensor, v_RSGd: Tensor, positions_R1: Tensor) -> Tensor:
    """Attention of rows that each see keys of their own up to their position.

    Products and sums are written out, for torch's fused kernel gives a row other bits at other places of a
    batch as soon as it runs on two threads.

    Returns:
        Mixed values ``[R, G, Q, d]``.
    """
    k_RG1Sd, v_RG1Sd = (part.transpose(1, 2).unsqueeze(2).float() for part in (k_RSGd, v_RSGd))
    scores_RGQS = (q_RGQd.float().unsqueeze(3) * k_RG1Sd).sum(-1) * q_RGQd.shape[-1] ** -0.5
    hidden_RS = torch.arange(k_RSGd.shape[1], device=q_RGQd.device) > positions_R1
    scores_RGQS = scores_RGQS.masked_fill(hidden_RS[:, None, None, :], -torch.inf)
    shares_RGQS = torch.softmax(scores_RGQS, dim=-1)
    return (shares_RGQS.unsqueeze(-1) * v_RG1Sd).sum(-2).to(q_RGQd.dtype)


class SteadyRunner(TorchRunner):
    """Row-exact steps by torch, where that holds (see ``runner.Runner``).

    Args:
        bank: weights; its device and dtype are those of the pages.
        n_pages: pages of keys and values.
        n_tails: places for prefix sums.
        page_size: positions in a page.
    """

    def __init__(self, bank: ExpertBank, *, n_pages: int, n_tails: int, page_size: int = 16) -> None:
        super().__init__(bank, n_pages=n_pages, n_tails=n_tails, page_size=page_size)
        generator = torch.Generator().manual_seed(0)
        sample_RD = torch.randn(BLOCK, bank.shape.d_model, generator=generator)
        self._sample_RD = sample_RD.to(self._device, bank.dtype)
        self._checked: set[str] = set()
        self._steady_panels: tuple[int, list[LayerExperts]] | None = None
        self.row_exact = self._base_is_steady()
        self.refresh()

    def refresh(self) -> None:
        """Takes over what the bank holds, and checks what is new in it."""
        super().refresh()
        new = set(self.bank.digests) - self._checked
        self._checked |= new
        names = self.bank.names()
        with torch.inference_mode():
            functions = [panel.ffns[names.index(name)] for name in new for panel in self.bank.panels()]
            steady = all(keeps_bits(function, self._sample_RD) for function in functions)
        self.row_exact = self.row_exact and steady

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    @torch.inference_mode()
    def _base_is_steady(self) -> bool:
        decoder = self.bank.decoder
        functions: list[Callable[[Tensor], Tensor]] = [decoder.logits]
        width = self.bank.shape.n_heads * self.bank.shape.head_dim
        repeats = -(-width // self._sample_RD.shape[1])
        wide_RX = self._sample_RD.repeat(1, repeats)[:, :width]
        steady = True
        for index in range(self.bank.shape.n_layers):
            layer = decoder.layer(index)
            functions += [layer.attn.q, layer.attn.k, layer.attn.v, layer.ffn, layer.attn_norm]
            steady = steady and keeps_bits(layer.attn.o, wide_RX)
        steady = steady and all(keeps_bits(function, self._sample_RD) for function in functions)
        return steady and all(self._attention_is_steady(width) for width in self._widths())

    def _widths(self) -> list[int]:
        """All numbers of positions that a row may attend over: powers of two in pages."""
        longest = min(self.n_pages, -(-self.bank.shape.max_positions // self.page_size))
        return [self.page_size << power for power in range((longest - 1).bit_length() + 1)]

    def _attention_is_steady(self, width: int) -> bool:
        shape, generator = self.bank.shape, torch.Generator().manual_seed(width)
        queries = shape.n_heads // shape.n_kv_heads
        sizes = ((shape.n_kv_heads, queries), (width, shape.n_kv_heads), (width, shape.n_kv_heads))
        parts = [
            torch.randn(BLOCK, *size, shape.head_dim, generator=generator).to(self._device, self.bank.dtype)
            for size in sizes
        ]
        positions_R1 = torch.linspace(0, width - 1, BLOCK, device=self._device).long()[:, None]
        return keeps_bits(attend_alone, *parts, positions_R1)

    def _rows(self, compute: RowsFunction, *parts: Tensor) -> tuple[Tensor, ...]:
        return in_blocks(compute, parts)

    def _panels(self) -> list[LayerExperts]:
        if self._steady_panels is None or self._steady_panels[0] != self.bank.changes:
            panels = [
                replace(panel, ffns=tuple(_blocked(ffn) for ffn in panel.ffns))
                for panel in self.bank.panels()
            ]
            self._steady_panels = (self.bank.changes, panels)
        return self._steady_panels[1]

    def _attend(
        self, attn: Attention, index: int, layout: Layout, new: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """Attends row by row: what a row sees has a length that depends on its own position alone."""
        keys, values = self.keys[index], self.values[index]

        def attend(q_RHd: Tensor, pages_RP: Tensor, positions_R1: Tensor) -> tuple[Tensor, ...]:
            q_RGQd = q_RHd.view(BLOCK, attn.n_kv_heads, -1, attn.head_dim)
            k_RSGd, v_RSGd = gathered(keys, pages_RP), gathered(values, pages_RP)
            return (attend_alone(q_RGQd, k_RSGd, v_RSGd, positions_R1).flatten(1, 2),)

        mixed_THd = torch.empty_like(new[0])
        for group in layout.solo(self.page_size):
            parts = (new[0][group.rows_N], group.pages_NP, group.positions_N1)
            (mixed_THd[group.rows_N],) = in_blocks(attend, parts)
        return mixed_THd


def _blocked(ffn: RowFunction) -> RowFunction:
    def compute(x_RD: Tensor) -> Tensor:
        return in_blocks(lambda block: (ffn(block),), [x_RD])[0]

    return compute
