# SPDX-License-Identifier: Apache-2.0
"""A pause before each turn, for threads of whoever ran before.

Threads of torch, llama.cpp and others watch for more work for some milliseconds before they sleep, on the
cores that the next side needs. Nobody's turn may begin beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")
_REST_S = 0.05


def rest() -> None:
    """Waits until idle threads sleep."""
    time.sleep(_REST_S)


def rested(turn: Callable[[int], _T]) -> Callable[[int], _T]:
    """The same turn after a pause."""

    def after_rest(number: int) -> _T:
        rest()
        return turn(number)

    return after_rest
