# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training_builders import same_tensors, texts, tiny_decoder, tiny_tokenizer

from model_core.errors import RecipeRefused
from model_core.network.decoder import upcycle
from model_core.network.expert import Expert
from model_core.packing.canonical import digest_bytes
from model_core.text.batches import BatchOrder, PackedText, pack
from model_core.training import machine
from model_core.training.distributed import (
    Sharding,
    fsdp_plugin,
    placed_like,
    run_processes,
    share_of,
    whole,
)
from model_core.training.gradients import Batch, GradientRule, MeanGradients
from model_core.training.machine import ELSEWHERE_TOLERANCE, Notice
from model_core.training.objective import PairObjective
from model_core.training.recipe import TrainingRecipe
from model_core.training.run import RunOutcome, TrainingRun

_RECIPE = TrainingRecipe(
    steps=6,
    batch_rows=4,
    sequence_tokens=16,
    accumulation=2,
    checkpoint_every=3,
    precision="fp32",
    learning_rate=1e-2,
)


def _packed() -> PackedText:
    return pack(texts("own", 20), tiny_tokenizer(), sequence_tokens=16, seed=3)


def _train(
    folder: Path | None,
    *,
    recipe: TrainingRecipe = _RECIPE,
    stop_at: int = 0,
    notices: list[Notice] | None = None,
    rule: GradientRule | None = None,
) -> tuple[Expert, RunOutcome]:
    decoder = tiny_decoder()
    expert = upcycle(decoder)
    objective = PairObjective(
        decoder,
        expert,
        logit_z_loss=1e-5,
        router_z_loss=1e-3,
        recompute=recipe.recompute_activations,
    )
    run = TrainingRun(objective, _packed(), recipe, seed=3, folder=folder, rule=rule)
    told: list[Notice] = [] if notices is None else notices
    steps = [0]

    def stop() -> bool:
        steps[0] += 1
        return steps[0] == stop_at

    return expert, run.train(stop=stop, on_notice=told.append)


@dataclass(frozen=True, kw_only=True)
class _HalfPasses(MeanGradients):
    """Refuses passes that are not half of what one process would read."""

    def accumulate(self, accelerator: Accelerator, model: nn.Module, batches: Sequence[Batch]) -> float:
        assert [len(ids_BS) for ids_BS, _ in batches] == [2, 2]
        return super().accumulate(accelerator, model, batches)


def _train_and_keep(folder: str, name: str) -> None:
    expert, outcome = _train(Path(folder) / name, rule=_HalfPasses(clip_norm=_RECIPE.clip_norm))
    if torch.distributed.get_rank() == 0:
        torch.save(expert.state_dict(), Path(folder) / f"{name}.pt")
        (Path(folder) / f"{name}.json").write_text(json.dumps([outcome.final_loss, outcome.data_order]))


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    """Each reads half of every pass: same rows in the same order, same losses and weights to rounding.

    A run that one process began is then finished by two, and the other way round; both are told of it.
    """
    alone, outcome = _train(tmp_path / "one")
    _train(tmp_path / "grown", stop_at=4)
    run_processes(_both_runs, 2, str(tmp_path))
    for name in ("two", "grown"):
        loss, order = json.loads((tmp_path / f"{name}.json").read_text())
        assert order == outcome.data_order
        assert loss == pytest.approx(outcome.final_loss, rel=1e-4)
        for key, tensor in torch.load(tmp_path / f"{name}.pt").items():
            torch.testing.assert_close(tensor, alone.state_dict()[key], rtol=1e-3, atol=2e-4, msg=key)
    shutil.rmtree(tmp_path / "two/checkpoints/step-00000006")
    notices: list[Notice] = []
    _, shrunk = _train(tmp_path / "two", notices=notices)
    assert (shrunk.resumed_from, shrunk.strayed) == (3, ("processes",))
    assert [notice.code for notice in notices] == ["resumed_elsewhere"]
    assert shrunk.final_loss == pytest.approx(outcome.final_loss, rel=ELSEWHERE_TOLERANCE)
    lines = (tmp_path / "two/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def _both_runs(folder: str) -> None:
    _train_and_keep(folder, "two")
    _train_and_keep(folder, "grown")


@settings(max_examples=6, deadline=None)
@given(stop_at=st.integers(1, 5), recompute_first=st.booleans(), recompute_then=st.booleans())
def test_an_expert_stopped_anywhere_resumes_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, stop_at: int, recompute_first: bool, recompute_then: bool
) -> None:
    """Interrupted at a random step and resumed = uninterrupted, with or without recomputed activations."""
    folder = tmp_path_factory.mktemp("runs")
    expert, outcome = _whole_run()
    first = _RECIPE.model_copy(update={"recompute_activations": recompute_first})
    _, cut = _train(folder, recipe=first, stop_at=stop_at)
    assert not cut.finished
    notices: list[Notice] = []
    then = _RECIPE.model_copy(update={"recompute_activations": recompute_then})
    resumed, again = _train(folder, recipe=then, notices=notices)
    assert again.resumed_from == stop_at
    assert same_tensors(expert, resumed)
    assert (again.final_loss, again.data_order, again.strayed) == (
        outcome.final_loss,
        outcome.data_order,
        (),
    )
    assert notices == []


_WHOLE: list[tuple[Expert, RunOutcome]] = []


def _whole_run() -> tuple[Expert, RunOutcome]:
    if not _WHOLE:
        _WHOLE.append(_train(None))
    return _WHOLE[0]


def test_a_run_that_moves_says_so_and_keeps_saying_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another thread count a run goes on within the tolerance, with a notice that names what changed."""
    _, outcome = _whole_run()
    _train(tmp_path, stop_at=2)
    here = machine.machine_of(torch.device("cpu"), 1)
    monkeypatch.setattr(
        "model_core.training.run.machine_of", lambda _device, _count: {**here, "threads": "31"}
    )
    notices: list[Notice] = []
    _, moved = _train(tmp_path, stop_at=2, notices=notices)
    assert [notice.different for notice in notices] == [("threads",)]
    assert "threads" in notices[0].sentence
    assert "is now 31" in notices[0].sentence
    assert (moved.strayed, moved.resumed_from) == (("threads",), 2)
    monkeypatch.setattr("model_core.training.run.machine_of", lambda _device, _count: here)
    _, back = _train(tmp_path)
    assert back.strayed == ("threads",)
    assert back.final_loss == pytest.approx(outcome.final_loss, rel=ELSEWHERE_TOLERANCE)


def test_the_order_of_the_data_has_a_digest() -> None:
    """It covers the rows of every step, in their order, as anyone who has the rows can compute it."""
    _, outcome = _whole_run()
    packed = _packed()
    order = BatchOrder(rows=len(packed.rows_NS1), batch_rows=_RECIPE.batch_rows, seed=3)
    wanted = ""
    for step in range(_RECIPE.steps):
        rows = [order.indices(step * _RECIPE.accumulation + part) for part in range(_RECIPE.accumulation)]
        wanted = digest_bytes(wanted.encode() + np.concatenate(rows).astype("<i8").tobytes())
    assert outcome.data_order == wanted


@given(rows=st.integers(1, 64), processes=st.integers(1, 8))
def test_processes_share_every_row_of_a_pass_once(rows: int, processes: int) -> None:
    """The shares cover the pass in order, or the run is refused with the field's name."""
    if rows % processes:
        with pytest.raises(RecipeRefused) as refusal:
            share_of(rows, 0, processes)
        assert refusal.value.facts["fields"] == ["batch_rows"]
        return
    shares = [list(range(rows))[share_of(rows, process, processes)] for process in range(processes)]
    assert [row for share in shares for row in share] == list(range(rows))


def test_sharding_is_refused_on_cpu_with_the_way_out() -> None:
    """A run that asks for sharding without GPUs is refused before it trains, and told what to do."""
    decoder = tiny_decoder()
    objective = PairObjective(decoder, upcycle(decoder), logit_z_loss=0, router_z_loss=0)
    with pytest.raises(RecipeRefused, match="GPUs"):
        TrainingRun(objective, _packed(), _RECIPE, seed=3, sharding=Sharding()).train()


def test_sharding_becomes_accelerates_settings() -> None:
    """Version 2, fp32 parameters (rounding them would round router rows), modules gathered one by one."""
    plain = fsdp_plugin(Sharding(), torch.device("cuda"))
    assert plain.fsdp_version == 2
    assert plain.reshard_after_forward is True
    assert plain.transformer_cls_names_to_wrap == ["Attention", "SwiGLU"]
    assert plain.mixed_precision_policy is not None
    assert plain.mixed_precision_policy.param_dtype is None
    assert plain.activation_checkpointing is False
    other = fsdp_plugin(Sharding(reshard_after_forward=False, offload_to_cpu=True), torch.device("cuda"))
    assert other.reshard_after_forward is False
    assert type(other.cpu_offload).__name__ == "CPUOffloadPolicy"


def test_whole_tensors_are_copies() -> None:
    """What a checkpoint holds does not change with the parameter that it was taken from."""
    parameter = torch.nn.Parameter(torch.ones(3))
    kept = whole(parameter)
    placed = placed_like(kept, parameter)
    with torch.no_grad():
        parameter.zero_()
    assert kept.tolist() == placed.tolist() == [1.0, 1.0, 1.0]
