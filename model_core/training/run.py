# SPDX-License-Identifier: Apache-2.0
"""The training loop: resumable at any step with the same bits, guarded, and telling how far it is.

One loop serves bases and experts. accelerate places tensors, applies autocast, accumulates and clips. Which
rows a step reads depends on (seed, step) alone, so a resumed run reads what an uninterrupted one would have
read. On one CPU with one torch build and thread count the result is bit-equal.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from model_core.errors import CheckpointInvalid, TrainingDiverged
from model_core.text.batches import BatchOrder, PackedText
from model_core.training.checkpoint import (
    Checkpoint,
    capture_optimizer,
    newest_checkpoint,
    restore_optimizer,
    write_checkpoint,
)
from model_core.training.gradients import Batch, GradientRule, MeanGradients, RowOrder, ShuffledRows
from model_core.training.objective import Objective
from model_core.training.precision import choose_precision
from model_core.training.recipe import TrainingRecipe


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMetric:
    """One optimizer step.

    Attributes:
        step: counted from 1.
        loss: cross-entropy, nats a token.
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
        tokens_per_s: over the last steps of this attempt.
        eta_s: seconds to go at that speed.
    """

    metric: StepMetric
    steps: int
    tokens_per_s: float
    eta_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOutcome:
    """How a run ended.

    Attributes:
        finished: False if it was asked to stop; a checkpoint then stands at ``steps_done``.
        steps_done: optimizer steps since the start of the run.
        precision: number format used.
        final_loss: mean cross-entropy of the last tenth of the steps, nats a token.
        resumed_from: step of the checkpoint that this attempt began at, 0 for none.
    """

    finished: bool
    steps_done: int
    precision: str
    final_loss: float
    resumed_from: int


class _Guard:
    """Stops a run whose loss is not finite or has run away from where it began."""

    def __init__(self, figures: Mapping[str, float] | None = None) -> None:
        self.figures = dict(figures or {})

    def check(self, step: int, loss: float) -> None:
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


class TrainingRun:
    """One optimisation of an objective over packed text.

    Args:
        objective: what is trained; its trainable parameters are changed in place.
        packed: the text.
        recipe: settings; ``packed`` must have rows of ``recipe.sequence_tokens``.
        seed: of the data order and of torch's generator.
        folder: for checkpoints and ``metrics.jsonl``; None keeps nothing.
        identity: further digests that a checkpoint must share to be resumed (base, starting weights).
        rule: turns a step's rows into its gradient; the clipped mean unless given.
        rows: which rows a step learns from; every row once an epoch unless given.
    """

    def __init__(
        self,
        objective: Objective,
        packed: PackedText,
        recipe: TrainingRecipe,
        *,
        seed: int,
        folder: Path | None = None,
        identity: Mapping[str, str] | None = None,
        rule: GradientRule | None = None,
        rows: RowOrder | None = None,
    ) -> None:
        self.recipe = recipe
        order = BatchOrder(rows=len(packed.rows_NS1), batch_rows=recipe.batch_rows, seed=seed)
        self.rows = rows or ShuffledRows(order=order, accumulation=recipe.accumulation)
        self.rule = rule or MeanGradients(clip_norm=recipe.clip_norm)
        self.packed = packed
        self.folder = folder
        self.seed = seed
        self.identity = {
            "recipe": recipe.digest,
            "data": packed.digest,
            "seed": str(seed),
            **(identity or {}),
        }
        self._objective = objective
        self._names: dict[str, nn.Parameter] = dict(objective.trainable())
        self._metrics: list[StepMetric] = []

    def train(
        self,
        *,
        on_step: Callable[[Progress], None] = lambda _progress: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> RunOutcome:
        """Trains to the last step, or until asked to stop, going on from the folder's newest checkpoint.

        Args:
            on_step: called after every optimizer step.
            stop: asked after every step; True writes a checkpoint and ends the attempt.

        Raises:
            TrainingDiverged: the loss is not finite or has run away.
            CheckpointInvalid: the folder holds a checkpoint of another run.
        """
        found = (
            newest_checkpoint(self.folder / "checkpoints", self.identity) if self.folder is not None else None
        )
        d_model = next(iter(self._names.values())).shape[-1]
        precision = found.precision if found else choose_precision(self.recipe.precision, d_model=d_model)
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(
            mixed_precision="bf16" if precision == "bf16" else "no",
            gradient_accumulation_steps=self.recipe.accumulation,
            cpu=not torch.cuda.is_available(),
        )
        plain = torch.optim.AdamW(
            self._names.values(),
            lr=self.recipe.learning_rate,
            betas=(self.recipe.beta1, self.recipe.beta2),
            weight_decay=self.recipe.weight_decay,
            fused=True,
        )
        guard = _Guard(found.guard if found else None)
        torch.manual_seed(self.seed)
        if found is not None:
            self._restore(found, plain)
        model, optimizer = accelerator.prepare(self._objective, plain)
        first = found.step if found else 0
        self._open_metrics(first)
        stopped = False
        speed = _Speed(self.recipe.step_tokens)
        for step in range(first, self.recipe.steps):
            metric = self._step(accelerator, model, optimizer, step)
            guard.check(metric.step, metric.loss)
            self._record(metric)
            rate = speed.after_step()
            left = (self.recipe.steps - metric.step) * self.recipe.step_tokens
            on_step(Progress(metric=metric, steps=self.recipe.steps, tokens_per_s=rate, eta_s=left / rate))
            last = metric.step == self.recipe.steps
            stopped = not last and stop()
            if last or stopped or metric.step % self.recipe.checkpoint_every == 0:
                self._save(metric.step, precision, guard, plain)
            if stopped:
                break
        done = self._metrics[-1].step if self._metrics else first
        tail = [metric.loss for metric in self._metrics if metric.step > 0.9 * self.recipe.steps]
        return RunOutcome(
            finished=not stopped,
            steps_done=done,
            precision=precision,
            final_loss=sum(tail) / len(tail) if tail else math.nan,
            resumed_from=first,
        )

    def _step(
        self, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, step: int
    ) -> StepMetric:
        rate = self.recipe.learning_rate_at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = self.rule.accumulate(accelerator, model, self._batches(step))
        norm = self.rule.finish(accelerator, self._names)
        optimizer.step()
        optimizer.zero_grad()
        return StepMetric(
            step=step + 1,
            loss=loss,
            learning_rate=rate,
            gradient_norm=norm,
            tokens=(step + 1) * self.recipe.step_tokens,
        )

    def _batches(self, step: int) -> list[Batch]:
        rows, size = self.rows.step_rows(step), self.recipe.batch_rows
        return [self.packed.batch(rows[first : first + size]) for first in range(0, len(rows), size)]

    def _restore(self, found: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
        if found.tensors.keys() != self._names.keys():
            raise CheckpointInvalid(
                "The checkpoint's tensors are not those of this run. Use a fresh work folder."
            )
        with torch.no_grad():
            for name, parameter in self._names.items():
                parameter.copy_(found.tensors[name])
        restore_optimizer(optimizer, self._names, found.optimizer)
        torch.set_rng_state(found.random_state)

    def _save(self, step: int, precision: str, guard: _Guard, optimizer: torch.optim.Optimizer) -> None:
        if self.folder is None:
            return
        checkpoint = Checkpoint(
            step=step,
            identity=self.identity,
            precision=precision,
            guard=guard.figures,
            tensors={name: value.detach().cpu().clone().contiguous() for name, value in self._names.items()},
            optimizer=capture_optimizer(optimizer, self._names),
            random_state=torch.get_rng_state(),
        )
        write_checkpoint(self.folder / "checkpoints", checkpoint)

    def _open_metrics(self, done: int) -> None:
        """Keeps the metrics of steps that the checkpoint holds; later lines will be written again."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "metrics.jsonl"
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    metric = StepMetric(**json.loads(line))
                except (ValueError, TypeError):
                    continue  # the line that a kill cut short
                if metric.step <= done:
                    self._metrics.append(metric)
        path.write_text("".join(json.dumps(asdict(metric)) + "\n" for metric in self._metrics))

    def _record(self, metric: StepMetric) -> None:
        self._metrics.append(metric)
        if self.folder is not None:
            with (self.folder / "metrics.jsonl").open("a") as stream:
                stream.write(json.dumps(asdict(metric)) + "\n")


class _Speed:
    """Tokens per second over the last steps."""

    def __init__(self, step_tokens: int) -> None:
        self._tokens = step_tokens
        self._times = [time.monotonic()]

    def after_step(self) -> float:
        self._times = [*self._times[-20:], time.monotonic()]
        passed = max(1e-9, self._times[-1] - self._times[0])
        return (len(self._times) - 1) * self._tokens / passed
