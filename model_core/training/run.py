# SPDX-License-Identifier: Apache-2.0
"""The training loop: resumable at any step with the same bits, guarded, and telling how far it is.

One loop serves bases and experts. accelerate places tensors, applies autocast, accumulates and clips. Which
rows a step reads depends on (seed, step) alone, so a resumed run reads what an uninterrupted one would have
read, and every number of processes reads the same rows in the same step. On one CPU with one torch build and
thread count the result is bit-equal; elsewhere a run goes on and says so (``machine``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from model_core.errors import CheckpointInvalid
from model_core.packing.canonical import digest_bytes
from model_core.text.batches import BatchOrder, PackedText
from model_core.training.checkpoint import (
    Checkpoint,
    capture_optimizer,
    newest_checkpoint,
    restore_optimizer,
    write_checkpoint,
)
from model_core.training.distributed import Sharding, fsdp_plugin, placed_like, share_of, whole
from model_core.training.gradients import Batch, GradientRule, MeanGradients, RowOrder, ShuffledRows
from model_core.training.machine import Notice, machine_of, moved
from model_core.training.objective import Objective
from model_core.training.precision import choose_precision
from model_core.training.progress import Guard, MetricsLog, Progress, Speed, StepMetric
from model_core.training.recipe import TrainingRecipe


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOutcome:
    """How a run ended.

    Attributes:
        finished: False if it was asked to stop; a checkpoint then stands at ``steps_done``.
        steps_done: optimizer steps since the start of the run.
        precision: number format used.
        final_loss: mean cross-entropy of the last tenth of the steps, nats a token.
        resumed_from: step of the checkpoint that this attempt began at, 0 for none.
        data_order: digest of the rows that the steps have read, in their order.
        machine: what the last bits of the last attempt depended on.
        strayed: names of what changed of it in the middle of the run; empty where the bits are those of an
            uninterrupted run.
    """

    finished: bool
    steps_done: int
    precision: str
    final_loss: float
    resumed_from: int
    data_order: str
    machine: Mapping[str, str]
    strayed: tuple[str, ...]


@dataclass(kw_only=True, slots=True)
class _Attempt:
    """What one call of ``train`` works with."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    parameters: dict[str, nn.Parameter]
    precision: str
    guard: Guard
    data_order: str
    machine: dict[str, str]
    strayed: tuple[str, ...]


class TrainingRun:
    """One optimisation of an objective over packed text.

    Args:
        objective: what is trained; its trainable parameters are changed in place.
        packed: the text.
        recipe: settings; ``packed`` must have rows of ``recipe.sequence_tokens``.
        seed: of the data order and of torch's generator.
        folder: for checkpoints and ``metrics.jsonl``; None keeps nothing. Several processes share it.
        identity: further digests that a checkpoint must share to be resumed (base, starting weights).
        rule: turns a step's rows into its gradient; the clipped mean unless given.
        rows: which rows a step learns from; every row once an epoch unless given.
        sharding: splits parameters over GPUs; None keeps them whole in every process.
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
        sharding: Sharding | None = None,
    ) -> None:
        self.recipe = recipe
        order = BatchOrder(rows=len(packed.rows_NS1), batch_rows=recipe.batch_rows, seed=seed)
        self.rows = rows or ShuffledRows(order=order, accumulation=recipe.accumulation)
        self.rule = rule or MeanGradients(clip_norm=recipe.clip_norm)
        self.packed = packed
        self.folder = folder
        self.seed = seed
        self.sharding = sharding
        self.identity = {
            "recipe": recipe.digest,
            "data": packed.digest,
            "seed": str(seed),
            **(identity or {}),
        }
        self._objective = objective
        self._metrics = MetricsLog(folder / "metrics.jsonl" if folder is not None else None)

    def train(
        self,
        *,
        on_step: Callable[[Progress], None] = lambda _progress: None,
        stop: Callable[[], bool] = lambda: False,
        on_notice: Callable[[Notice], None] = lambda _notice: None,
    ) -> RunOutcome:
        """Trains to the last step, or until asked to stop, going on from the folder's newest checkpoint.

        Args:
            on_step: called after every optimizer step, in the main process alone.
            stop: asked after every step; True in any process writes a checkpoint and ends the attempt.
            on_notice: told, in the main process, what the run goes on in spite of.

        Raises:
            TrainingDiverged: the loss or a gradient is not finite, or the loss has run away.
            CheckpointInvalid: the folder holds a checkpoint of another run.
            RecipeRefused: passes that the processes cannot share evenly, or sharding without GPUs.
        """
        folder = self.folder / "checkpoints" if self.folder is not None else None
        found = newest_checkpoint(folder, self.identity) if folder is not None else None
        attempt, notice = self._begin(found)
        if notice is not None and attempt.accelerator.is_main_process:
            on_notice(notice)
        first = found.step if found else 0
        stopped = False
        speed = Speed(self.recipe.step_tokens)
        for step in range(first, self.recipe.steps):
            metric = self._step(attempt, step)
            attempt.guard.check(metric.step, metric.loss)
            self._metrics.append(metric, write=attempt.accelerator.is_main_process)
            rate = speed.after_step()
            left = (self.recipe.steps - metric.step) * self.recipe.step_tokens
            if attempt.accelerator.is_main_process:
                on_step(
                    Progress(metric=metric, steps=self.recipe.steps, tokens_per_s=rate, eta_s=left / rate)
                )
            last = metric.step == self.recipe.steps
            stopped = not last and _anywhere(attempt.accelerator, stop())
            if last or stopped or metric.step % self.recipe.checkpoint_every == 0:
                self._save(metric.step, attempt)
            if stopped:
                break
        return RunOutcome(
            finished=not stopped,
            steps_done=self._metrics.steps[-1].step if self._metrics.steps else first,
            precision=attempt.precision,
            final_loss=self._metrics.tail_loss(self.recipe.steps),
            resumed_from=first,
            data_order=attempt.data_order,
            machine=attempt.machine,
            strayed=attempt.strayed,
        )

    def _begin(self, found: Checkpoint | None) -> tuple[_Attempt, Notice | None]:
        names = dict(self._objective.trainable())
        d_model = next(iter(names.values())).shape[-1]
        precision = found.precision if found else choose_precision(self.recipe.precision, d_model=d_model)
        accelerator = self._accelerator(precision)
        share_of(self.recipe.batch_rows, 0, accelerator.num_processes)
        plain = torch.optim.AdamW(
            names.values(),
            lr=self.recipe.learning_rate,
            betas=(self.recipe.beta1, self.recipe.beta2),
            weight_decay=self.recipe.weight_decay,
            fused=True,
        )
        torch.manual_seed(self.seed)
        model, optimizer = accelerator.prepare(self._objective, plain)
        # Sharding puts other parameters in the place of the first ones.
        parameters = dict(accelerator.unwrap_model(model).trainable())
        machine = machine_of(accelerator.device, accelerator.num_processes)
        notice: Notice | None = None
        strayed: tuple[str, ...] = ()
        if found is not None:
            self._restore(found, parameters, optimizer)
            notice = moved(found.machine, machine, step=found.step)
            strayed = tuple(sorted({*found.strayed, *(notice.different if notice else ())}))
        self._metrics.read(found.step if found else 0)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self._metrics.rewrite()
        attempt = _Attempt(
            accelerator=accelerator,
            model=model,
            optimizer=optimizer,
            parameters=parameters,
            precision=precision,
            guard=Guard(found.guard if found else None),
            data_order=found.data_order if found else "",
            machine=machine,
            strayed=strayed,
        )
        return attempt, notice

    def _accelerator(self, precision: str) -> Accelerator:
        AcceleratorState._reset_state(reset_partial_state=True)
        gpu = torch.cuda.is_available()
        plugin = None
        if self.sharding is not None:
            plugin = fsdp_plugin(self.sharding, torch.device("cuda" if gpu else "cpu"))
            self._objective.use_modules()
        return Accelerator(
            mixed_precision="bf16" if precision == "bf16" else "no",
            gradient_accumulation_steps=self.recipe.accumulation,
            cpu=not gpu,
            fsdp_plugin=plugin,
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
            ],
        )

    def _step(self, attempt: _Attempt, step: int) -> StepMetric:
        rate = self.recipe.learning_rate_at(step)
        for group in attempt.optimizer.param_groups:
            group["lr"] = rate
        rows = self.rows.step_rows(step)
        accelerator = attempt.accelerator
        loss = self.rule.accumulate(accelerator, attempt.model, self._batches(rows, accelerator))
        norm = self.rule.finish(accelerator, attempt.parameters)
        attempt.guard.check_gradient(step + 1, norm)
        attempt.optimizer.step()
        attempt.optimizer.zero_grad()
        attempt.data_order = digest_bytes(attempt.data_order.encode() + rows.astype("<i8").tobytes())
        return StepMetric(
            step=step + 1,
            loss=_mean(accelerator, loss),
            learning_rate=rate,
            gradient_norm=norm,
            tokens=(step + 1) * self.recipe.step_tokens,
        )

    def _batches(self, rows: np.ndarray, accelerator: Accelerator) -> list[Batch]:
        """This process's share of every pass of a step."""
        size, batches = self.recipe.batch_rows, []
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            if accelerator.num_processes > 1:
                part = part[share_of(len(part), accelerator.process_index, accelerator.num_processes)]
            batches.append(self.packed.batch(part))
        return batches

    def _restore(
        self, found: Checkpoint, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        if found.tensors.keys() != parameters.keys():
            raise CheckpointInvalid(
                "The checkpoint's tensors are not those of this run. Use a fresh work folder."
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(placed_like(found.tensors[name], parameter))
        restore_optimizer(optimizer, parameters, found.optimizer)
        torch.set_rng_state(found.random_state)

    def _save(self, step: int, attempt: _Attempt) -> None:
        """Gathers everything in every process; the main one writes it."""
        if self.folder is None:
            return
        checkpoint = Checkpoint(
            step=step,
            identity=self.identity,
            precision=attempt.precision,
            guard=attempt.guard.figures,
            tensors={name: whole(value) for name, value in attempt.parameters.items()},
            optimizer=capture_optimizer(attempt.optimizer, attempt.parameters),
            random_state=torch.get_rng_state(),
            data_order=attempt.data_order,
            machine=attempt.machine,
            strayed=attempt.strayed,
        )
        if attempt.accelerator.is_main_process:
            write_checkpoint(self.folder / "checkpoints", checkpoint)
        attempt.accelerator.wait_for_everyone()


def _mean(accelerator: Accelerator, value: float) -> float:
    """The mean of a number over all processes, the same in each."""
    if accelerator.num_processes == 1:
        return value
    numbers: torch.Tensor = accelerator.gather(
        torch.tensor([value], dtype=torch.float64, device=accelerator.device)
    )
    return float(numbers.mean())


def _anywhere(accelerator: Accelerator, flag: bool) -> bool:
    """Whether a flag is set in any process; all of them ask, and hear the same."""
    return _mean(accelerator, float(flag)) > 0
