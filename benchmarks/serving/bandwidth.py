# SPDX-License-Identifier: Apache-2.0
"""How fast this machine reads memory: the best of several ways to run over an array far beyond the caches."""

from __future__ import annotations

import time

import torch

_BYTES = 1 << 29
_ROWS = 1 << 14


class ReadMeter:
    """Reads an array of half a gibibyte.

    Attributes:
        seen: bytes per second, of every measurement so far.
    """

    def __init__(self, size_bytes: int = _BYTES) -> None:
        self._array_RC = torch.ones(_ROWS, max(1, size_bytes // 4 // _ROWS))
        self._ones_C = torch.ones(self._array_RC.shape[1])
        self.seen: list[float] = []

    def measure(self, tries: int = 2) -> float:
        """Bytes read per second by all of torch's threads together, best of some tries."""
        best = float("inf")
        for _ in range(tries):
            for way in (self._add, self._multiply):
                began = time.perf_counter()
                way()
                best = min(best, time.perf_counter() - began)
        self.seen.append(self._array_RC.nbytes / best)
        return self.seen[-1]

    def _add(self) -> None:
        self._array_RC.sum()

    def _multiply(self) -> None:
        torch.mv(self._array_RC, self._ones_C)
