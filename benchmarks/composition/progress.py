# SPDX-License-Identifier: Apache-2.0
"""How far the whole benchmark is, over all its processes, and when it will be done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from benchmarks.composition.settings import Plan, Size


def shares(plan: Plan, size: Size) -> dict[str, float]:
    """Rough cost of each stage of a cell, in multiplications; only their proportions are used."""
    per_layer = 4 * size.d_model**2 + 3 * size.d_model * size.d_ffn
    once = size.n_layers * per_layer + plan.amounts.vocabulary * size.d_model
    step = plan.amounts.batch_rows * plan.amounts.sequence_tokens * once
    found = {"base": 3.0 * size.base_steps * step}
    found |= dict.fromkeys(plan.owners, 3.0 * size.expert_steps * step)
    passage = once * plan.amounts.passage_characters / 3
    # Fitting, tuning and scoring: own models, and every variant on every domain with several experts a token.
    found["scores"] = 20.0 * passage * plan.amounts.passages * (1 + len(plan.owners))
    found["scores"] += 5.0 * plan.tuning_steps * step
    return found


class Board:
    """What all processes have done, behind one mapping that they share.

    Args:
        done: stage of a cell to the share of it that is done; may be a manager's proxy.
        cells: name of each cell to the costs of its stages.
    """

    def __init__(self, done: dict[str, float], cells: Mapping[str, Mapping[str, float]]) -> None:
        self._done = done
        self._costs = {f"{cell}/{stage}": cost for cell, of in cells.items() for stage, cost in of.items()}
        self._began = time.monotonic()
        self._free = 0.0

    def mark(self, cell: str, stage: str, share: float) -> None:
        """Sets how much of a stage is done."""
        self._done[f"{cell}/{stage}"] = share

    def found(self, cell: str, stages: Sequence[str]) -> None:
        """Marks stages that an earlier run had done: they say nothing about this run's speed."""
        for stage in stages:
            self.mark(cell, stage, 1.0)
            self._free += self._costs[f"{cell}/{stage}"]

    def line(self) -> str:
        """The share that is done and the minutes to go, for people."""
        total = sum(self._costs.values())
        worked = sum(self._costs[name] * share for name, share in dict(self._done).items())
        fresh = worked - self._free
        said = f"{worked / total:4.0%} of all"
        if fresh <= 0:
            return said
        left_s = (total - worked) * (time.monotonic() - self._began) / fresh
        return f"{said}, {left_s / 60:.0f} min to go"
