# SPDX-License-Identifier: Apache-2.0
"""How one optimizer step gets its rows and its gradient: two seams of the training loop.

``RowOrder`` says which rows a step learns from, ``GradientRule`` turns them into gradients and finishes them
(clipping, noise). The loop knows neither. Both must be functions of the step and of torch's CPU generator
alone, whose state every checkpoint holds, so that a resumed run does what an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn

from model_core.text.batches import BatchOrder

# Inputs and targets [b, S], int64, of one forward pass of this process.
Batch = tuple[Tensor, Tensor]


class RowOrder(Protocol):
    """Which rows of the packed text each optimizer step learns from."""

    def step_rows(self, step: int) -> np.ndarray:
        """Row indices of a step (counted from 0) over all processes, ``[R]``; R may differ between steps."""
        ...


class GradientRule(Protocol):
    """The gradient of one optimizer step."""

    def accumulate(self, accelerator: Accelerator, model: nn.Module, batches: Sequence[Batch]) -> float:
        """Leaves the step's gradient in the parameters' ``grad``.

        Args:
            accelerator: for autocast, backward and, over several processes, the mean of gradients.
            model: the prepared objective: ``model(ids_BS, targets_BS)`` gives the loss to minimise and the
                plain cross-entropy in it. Gradients are empty when this is called.
            batches: the step's rows of this process in passes of at most ``batch_rows`` rows; may be empty
                only if the ``RowOrder`` may return no rows.

        Returns:
            Mean cross-entropy of this process's passes, nats a token.
        """
        ...

    def finish(self, accelerator: Accelerator, parameters: Mapping[str, nn.Parameter]) -> float:
        """Clips and noises the gradients in place.

        Returns:
            Their norm before that.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ShuffledRows:
    """Every row once an epoch, in an order that the seed decides.

    Attributes:
        order: batches of ``batch_rows``.
        accumulation: batches an optimizer step.
    """

    order: BatchOrder
    accumulation: int

    def step_rows(self, step: int) -> np.ndarray:
        """Row indices of a step, ``[batch_rows * accumulation]``."""
        first = step * self.accumulation
        return np.concatenate([self.order.indices(first + part) for part in range(self.accumulation)])


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanGradients:
    """The usual rule: the mean over the step's rows, its norm clipped.

    Attributes:
        clip_norm: bound of the gradient's norm.
    """

    clip_norm: float

    def accumulate(self, accelerator: Accelerator, model: nn.Module, batches: Sequence[Batch]) -> float:
        """Backward of every pass; processes speak to each other in the last one only."""
        losses: list[Tensor] = []
        for ids_BS, targets_BS in batches:
            with accelerator.accumulate(model):
                loss, plain = model(ids_BS.to(accelerator.device), targets_BS.to(accelerator.device))
                accelerator.backward(loss)
            losses.append(plain)
        return sum(float(loss) for loss in losses) / len(losses)

    def finish(self, accelerator: Accelerator, parameters: Mapping[str, nn.Parameter]) -> float:
        """Clips; returns the norm before."""
        return float(accelerator.clip_grad_norm_(list(parameters.values()), self.clip_norm))
