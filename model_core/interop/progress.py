# SPDX-License-Identifier: Apache-2.0
"""How far a transfer of weights has come, for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferProgress:
    """One moment of a transfer.

    Attributes:
        phase: imports: ``compare``, ``base``, ``expert NAME``, ``check``; exports: ``weights``, ``measure``.
        done_bytes: weights that were moved or compared so far.
        total_bytes: of the whole transfer.
    """

    phase: str
    done_bytes: int
    total_bytes: int


OnProgress = Callable[[TransferProgress], None]


class Meter:
    """Counts bytes and tells them on.

    Args:
        tell: called at every phase's beginning and after every piece.
        total_bytes: of the whole transfer.
    """

    def __init__(self, tell: OnProgress, total_bytes: int) -> None:
        self._tell, self._total_bytes = tell, total_bytes
        self._phase, self._done_bytes = "", 0

    def begin(self, phase: str) -> None:
        """Enters a phase."""
        self._phase = phase
        self.add(0)

    def add(self, count_bytes: int) -> None:
        """Counts bytes."""
        self._done_bytes = min(self._done_bytes + count_bytes, self._total_bytes)
        self._tell(
            TransferProgress(phase=self._phase, done_bytes=self._done_bytes, total_bytes=self._total_bytes)
        )
