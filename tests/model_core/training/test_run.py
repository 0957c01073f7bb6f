# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from training_builders import same_tensors, texts, tiny_decoder, tiny_shape, tiny_tokenizer

from model_core.errors import CheckpointInvalid, RecipeRefused, TrainingDiverged
from model_core.network.decoder import Decoder
from model_core.text.batches import pack
from model_core.training.base import pretrain
from model_core.training.checkpoint import checkpoints
from model_core.training.gradients import MeanGradients
from model_core.training.objective import DenseObjective
from model_core.training.progress import Progress
from model_core.training.recipe import TrainingRecipe
from model_core.training.run import RunOutcome, TrainingRun

_RECIPE = TrainingRecipe(
    steps=12, batch_rows=2, sequence_tokens=16, accumulation=2, checkpoint_every=5, precision="fp32"
)


def _train(
    folder: Path | None, recipe: TrainingRecipe = _RECIPE, stop_after: int = 0, seed: int = 3
) -> tuple[Decoder, RunOutcome]:
    decoder = tiny_decoder()
    packed = pack(texts("public", 20), tiny_tokenizer(), sequence_tokens=recipe.sequence_tokens, seed=seed)
    run = TrainingRun(DenseObjective(decoder, logit_z_loss=1e-5), packed, recipe, seed=seed, folder=folder)
    return decoder, run.train(stop=_after(stop_after))


def _after(steps: int) -> Callable[[], bool]:
    count = 0

    def stop() -> bool:
        nonlocal count
        count += 1
        return count == steps

    return stop


@pytest.mark.parametrize("stop_after", [1, 5, 8, 11])
def test_a_stopped_run_resumes_bit_for_bit(tmp_path: Path, stop_after: int) -> None:
    """Stopped anywhere and resumed, a run has the weights and the metrics of an uninterrupted one."""
    whole, outcome = _train(tmp_path / "whole")
    _, stopped = _train(tmp_path / "cut", stop_after=stop_after)
    assert (stopped.finished, stopped.steps_done) == (False, stop_after)
    resumed, again = _train(tmp_path / "cut")
    assert again.resumed_from == stop_after
    assert same_tensors(whole, resumed)
    assert again.final_loss == outcome.final_loss
    assert (tmp_path / "cut/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Killed between checkpoints with a line half written, the run redoes the lost steps alike."""
    whole, _ = _train(tmp_path / "whole")

    class Killed(BaseException):
        pass

    def kill(progress: Progress) -> None:
        if progress.metric.step == 8:
            raise Killed

    decoder = tiny_decoder()
    packed = pack(texts("public", 20), tiny_tokenizer(), sequence_tokens=16, seed=3)
    run = TrainingRun(
        DenseObjective(decoder, logit_z_loss=1e-5), packed, _RECIPE, seed=3, folder=tmp_path / "cut"
    )
    with pytest.raises(Killed):
        run.train(on_step=kill)
    with (tmp_path / "cut/metrics.jsonl").open("a") as stream:
        stream.write('{"step": 9, "lo')
    resumed, outcome = _train(tmp_path / "cut")
    assert outcome.resumed_from == 5
    assert same_tensors(whole, resumed)
    assert (tmp_path / "cut/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()


def test_a_damaged_checkpoint_yields_to_the_one_before(tmp_path: Path) -> None:
    """The newest checkpoint with a flipped byte is passed over; with none left the run refuses."""
    whole, _ = _train(tmp_path / "whole")
    _train(tmp_path / "cut", stop_after=11)
    newest = checkpoints(tmp_path / "cut/checkpoints")[-1] / "trained.safetensors"
    body = bytearray(newest.read_bytes())
    body[-1] ^= 1
    newest.write_bytes(body)
    resumed, outcome = _train(tmp_path / "cut")
    assert outcome.resumed_from == 10
    assert same_tensors(whole, resumed)
    for path in checkpoints(tmp_path / "cut/checkpoints"):
        (path / "state.json").write_text("{}")
    with pytest.raises(CheckpointInvalid):
        _train(tmp_path / "cut")


@pytest.mark.parametrize("change", [{"learning_rate": 1e-3}, {"steps": 13}])
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, change: dict[str, float]) -> None:
    """Another recipe or another seed in the same folder is refused by name, never mixed in."""
    _train(tmp_path, stop_after=6)
    with pytest.raises(CheckpointInvalid) as refusal:
        _train(tmp_path, recipe=_RECIPE.model_copy(update=change))
    assert refusal.value.facts["different"] == ["recipe"]
    with pytest.raises(CheckpointInvalid):
        _train(tmp_path, seed=4)


def test_training_learns_and_tells_its_progress(tmp_path: Path) -> None:
    """The loss falls below that of fresh weights; every step is reported with speed and time to go."""
    seen: list[Progress] = []
    recipe = TrainingRecipe(steps=40, batch_rows=4, sequence_tokens=32, learning_rate=1e-2, precision="fp32")
    _, outcome = pretrain(
        tiny_shape(),
        texts("public", 30),
        tiny_tokenizer(),
        recipe,
        seed=1,
        work_folder=tmp_path,
        on_step=seen.append,
    )
    assert [progress.metric.step for progress in seen] == list(range(1, 41))
    assert outcome.final_loss < seen[0].metric.loss - 1
    assert all(progress.tokens_per_s > 0 for progress in seen)
    assert seen[-1].eta_s == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["tokens"] == 40 * 128


def test_a_run_away_loss_stops_the_run() -> None:
    """A poisoned weight gives a typed refusal, not a checkpoint of NaN."""
    decoder = tiny_decoder()
    packed = pack(texts("public", 20), tiny_tokenizer(), sequence_tokens=16, seed=3)
    with torch.no_grad():
        decoder.norm.weight[0] = math.nan
    with pytest.raises(TrainingDiverged):
        TrainingRun(DenseObjective(decoder, logit_z_loss=0.0), packed, _RECIPE, seed=3).train()


@given(steps=st.integers(1, 400), warmup=st.floats(0, 1), final=st.floats(0, 1))
def test_the_learning_rate_rises_and_falls(steps: int, warmup: float, final: float) -> None:
    """The schedule stays within (0, peak], rises during warm-up and never rises after it."""
    recipe = TrainingRecipe(steps=steps, warmup_share=warmup, final_share=final, learning_rate=1.0)
    rates = [recipe.learning_rate_at(step) for step in range(steps)]
    top = math.ceil(warmup * steps)
    assert all(0 <= rate <= 1 + 1e-12 for rate in rates)
    assert rates[:top] == sorted(rates[:top])
    assert all(left >= right - 1e-12 for left, right in zip(rates[top:], rates[top + 1 :], strict=False))


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"learning_rate": float("nan")}, {"unknown": 1}, {"precision": "fp8"}, {"steps": "x"}],
)
def test_recipes_outside_their_bounds_are_refused(settings: dict[str, object]) -> None:
    """Unknown names and impossible values are refused with the field's name."""
    with pytest.raises(RecipeRefused) as refusal:
        TrainingRecipe.of(settings)
    assert refusal.value.facts["fields"] == list(settings)


def test_rows_longer_than_the_model_are_refused() -> None:
    """A base cannot be trained on rows that it has no positions for."""
    with pytest.raises(RecipeRefused):
        pretrain(
            tiny_shape(), texts("public", 9), tiny_tokenizer(), TrainingRecipe(sequence_tokens=512), seed=1
        )


@dataclass(frozen=True, kw_only=True)
class _Poisoned(MeanGradients):
    """Gradients whose norm is not a number."""

    def finish(self, accelerator: Accelerator, parameters: Mapping[str, nn.Parameter]) -> float:
        super().finish(accelerator, parameters)
        return math.nan


def test_a_gradient_that_is_not_finite_moves_no_weight() -> None:
    """The run ends before the optimizer writes NaN into weights that were still whole."""
    decoder = tiny_decoder()
    packed = pack(texts("public", 20), tiny_tokenizer(), sequence_tokens=16, seed=3)
    run = TrainingRun(
        DenseObjective(decoder, logit_z_loss=0.0), packed, _RECIPE, seed=3, rule=_Poisoned(clip_norm=1.0)
    )
    with pytest.raises(TrainingDiverged, match="gradient"):
        run.train()
    assert same_tensors(decoder, tiny_decoder())
