# SPDX-License-Identifier: Apache-2.0
"""Frozen matrices in the format of the products, and how many rows are worked on at once.

Autocast rounds a frozen weight anew in every pass, since it keeps only what will get a gradient. Here it is
rounded once. What is already of the right format is not copied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Rows are worked on in blocks whose inner activations stay in a core's cache (elements of one block).
_BLOCK_ELEMENTS = 1 << 19


def product_dtype(device: torch.device) -> torch.dtype:
    """What matrix products run in here and now: autocast's format, or fp32 outside of it."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32


def row_blocks(rows: int, width: int, device: torch.device) -> list[slice]:
    """Slices that cover ``rows`` rows of ``width`` elements; one for all where there is no cache to mind."""
    if device.type != "cpu":
        return [slice(0, rows)]
    size = max(64, _BLOCK_ELEMENTS // width // 64 * 64)
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


def applied(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Calls an autograd function (which torch leaves untyped)."""
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


class FrozenWeights:
    """Frozen parameters rounded to the products' format, each at most once."""

    def __init__(self) -> None:
        self._rounded: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight in ``dtype``; itself where it already is."""
        if weight.dtype == dtype:
            return weight.detach()
        found = self._rounded.get(id(weight))
        if found is None or found[1].dtype != dtype or found[1].device != weight.device:
            found = (weight, weight.detach().to(dtype))
            self._rounded[id(weight)] = found
        return found[1]
