# SPDX-License-Identifier: Apache-2.0
"""What a run tells while it runs: the metrics of its steps, its speed, and when it must not go on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from model_core.errors import TrainingDiverged


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMetric:
    """One optimizer step.

    Attributes:
        step: counted from 1.
        loss: cross-entropy, nats a token, over all processes.
        learning_rate: of this step.
        gradient_norm: before clipping.
        tokens: learned from since the start of the run.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a run is, for people.

    Attributes:
        metric: the step just done.
        steps: of the whole run.
        tokens_per_s: over the last steps of this attempt, all processes together.
        eta_s: seconds to go at that speed.
    """

    metric: StepMetric
    steps: int
    tokens_per_s: float
    eta_s: float


class Guard:
    """Stops a run whose loss or gradient is not finite, or whose loss has run away from where it began.

    Args:
        figures: of an earlier attempt.
    """

    def __init__(self, figures: Mapping[str, float] | None = None) -> None:
        self.figures = dict(figures or {})

    def check_gradient(self, step: int, norm: float) -> None:
        """Asked before the optimizer moves a weight.

        Raises:
            TrainingDiverged: the gradient's norm is NaN or infinite.
        """
        if not math.isfinite(norm):
            raise TrainingDiverged(
                f"The gradient is not finite at step {step}. Lower the learning rate or check the data.",
                step=step,
            )

    def check(self, step: int, loss: float) -> None:
        """Asked with every step's loss.

        Raises:
            TrainingDiverged: it is NaN or infinite, or its running mean has more than doubled.
        """
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"The loss is not finite at step {step}. Lower the learning rate or check the data.",
                step=step,
            )
        smooth = 0.9 * self.figures.get("smooth", loss) + 0.1 * loss
        first = self.figures.setdefault("first", loss)
        self.figures["smooth"] = smooth
        if smooth > 2 * first + 1:
            raise TrainingDiverged(
                f"The loss rose from {first:.2f} to {smooth:.2f} by step {step}. Lower the learning rate.",
                step=step,
            )


class MetricsLog:
    """The steps of a run, in memory and as lines of ``metrics.jsonl``.

    Args:
        path: the file; None keeps them in memory alone.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.steps: list[StepMetric] = []

    def read(self, done: int) -> None:
        """Takes up the steps that a checkpoint holds; later lines will be written again."""
        if self.path is None or not self.path.exists():
            return
        for line in self.path.read_text().splitlines():
            try:
                metric = StepMetric(**json.loads(line))
            except (ValueError, TypeError):
                continue  # the line that a kill cut short
            if metric.step <= done:
                self.steps.append(metric)

    def rewrite(self) -> None:
        """Writes what is held, and nothing else."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(json.dumps(asdict(metric)) + "\n" for metric in self.steps))

    def append(self, metric: StepMetric, *, write: bool) -> None:
        """Adds a step."""
        self.steps.append(metric)
        if write and self.path is not None:
            with self.path.open("a") as stream:
                stream.write(json.dumps(asdict(metric)) + "\n")

    def tail_loss(self, steps: int) -> float:
        """Mean cross-entropy of the last tenth of ``steps``, NaN where none is held."""
        tail = [metric.loss for metric in self.steps if metric.step > 0.9 * steps]
        return sum(tail) / len(tail) if tail else math.nan


class Speed:
    """Tokens per second over the last steps.

    Args:
        step_tokens: of one optimizer step, all processes together.
    """

    def __init__(self, step_tokens: int) -> None:
        self._tokens = step_tokens
        self._times = [time.monotonic()]

    def after_step(self) -> float:
        """Notes that a step is done; returns the speed."""
        self._times = [*self._times[-20:], time.monotonic()]
        passed = max(1e-9, self._times[-1] - self._times[0])
        return (len(self._times) - 1) * self._tokens / passed
