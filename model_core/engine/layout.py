# SPDX-License-Identifier: Apache-2.0
"""The index tensors of a step: which rows stand where, for a runner that gathers pages with torch.

Knows page tables and positions; not what is computed on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model_core.engine.runner import Piece


@dataclass(frozen=True, kw_only=True, slots=True)
class Singles:
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
class Solo:
    """Rows that attend each for itself, over equally many pages.

    Attributes:
        rows_N: rows of the batch.
        pages_NP: pages of each, filled up to a power of two with a page of its own.
        positions_N1: of each.
    """

    rows_N: Tensor
    pages_NP: Tensor
    positions_N1: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
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


class Layout:
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
        self._ordered, self._device = ordered, device
        self.singles = _group_singles(ordered[: self.n_single], page_size, device)
        self.chunks = _chunks(ordered[self.n_single :], self.n_single, page_size, device)

    def solo(self, page_size: int) -> list[Solo]:
        """All rows by the power of two that holds their pages; made anew with every call."""
        groups: dict[int, tuple[list[int], list[list[int]], list[list[int]]]] = {}
        row = 0
        for piece in self._ordered:
            for position in range(piece.start, piece.start + len(piece.ids)):
                count = position // page_size + 1
                width = 1 << (count - 1).bit_length()
                rows, tables, positions = groups.setdefault(width, ([], [], []))
                rows.append(row)
                tables.append(list(piece.pages[:count]) + [piece.pages[0]] * (width - count))
                positions.append([position])
                row += 1
        return [
            Solo(
                rows_N=torch.tensor(rows).to(self._device),
                pages_NP=torch.tensor(tables).to(self._device),
                positions_N1=torch.tensor(positions).to(self._device),
            )
            for rows, tables, positions in groups.values()
        ]


def _group_singles(pieces: Sequence[Piece], page_size: int, device: torch.device) -> list[Singles]:
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
            Singles(
                rows_N=torch.tensor(rows).to(device),
                pages_NP=torch.tensor(tables).to(device),
                mask_N11S=mask_NS[:, None, None, :].to(device),
            )
        )
    return found


def _chunks(pieces: Sequence[Piece], row: int, page_size: int, device: torch.device) -> list[Chunk]:
    found = []
    for piece in pieces:
        end = piece.start + len(piece.ids)
        pages_P, mask_RS = None, None
        if piece.start:
            pages_P = torch.tensor(list(piece.pages[: -(-end // page_size)])).to(device)
            positions_R1 = torch.arange(piece.start, end, device=device)[:, None]
            mask_RS = torch.arange(end, device=device) <= positions_R1
        rows = slice(row, row + len(piece.ids))
        found.append(Chunk(rows=rows, tail=piece.tail, pages_P=pages_P, mask_RS=mask_RS, end=end))
        row = rows.stop
    return found
