# SPDX-License-Identifier: Apache-2.0
"""Random prompts: different ones for every sequence and every round, so that no side reuses a prefix."""

from __future__ import annotations

import numpy as np

from benchmarks.serving.case import Cell


def prompts_of(cell: Cell, number: int) -> list[list[int]]:
    """The prompts of one round of a cell, the same for all sides.

    Args:
        cell: the setting.
        number: of the round.
    """
    draw = np.random.default_rng([cell.concurrency, cell.prompt_tokens, number])
    size = (cell.concurrency, cell.prompt_tokens)
    ids: list[list[int]] = draw.integers(0, cell.sizes.vocabulary, size).tolist()
    return ids
