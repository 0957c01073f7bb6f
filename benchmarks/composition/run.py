# SPDX-License-Identifier: Apache-2.0
"""Runs the cells of a plan, some processes side by side with one thread each, and collects their scores."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.composition import stages
from benchmarks.composition.figures import BASE, OWN
from benchmarks.composition.progress import Board, shares
from benchmarks.composition.scoring import Scores, kept_scores, score_cell
from benchmarks.composition.settings import Plan, Size
from benchmarks.composition.stages import Cell
from benchmarks.composition.texts import Texts
from benchmarks.composition.variants import VARIANTS, Trained
from model_core.training.run import Progress

SAY_EVERY_S = 20.0


def run_plan(plan: Plan, texts: Texts, root: Path, *, processes: int) -> dict[tuple[str, int], Scores]:
    """Scores every cell of a plan; what an earlier run has kept is read.

    Args:
        plan: what to run.
        texts: what is read.
        root: where results are kept.
        processes: how many cells run at the same time.

    Returns:
        Size and seed to scores.
    """
    # The costly cells first, so that no process ends long after the others.
    cells = [
        Cell(plan=plan, size=size, seed=seed, texts=texts, root=root)
        for seed in plan.seeds
        for size in sorted(plan.sizes, key=lambda size: -size.d_model)
    ]
    stages.tokenizer(cells[0])
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        costs = {_name(cell): shares(plan, cell.size) for cell in cells}
        board = Board(manager.dict(), costs)
        for cell in cells:
            board.found(_name(cell), _kept(cell))
        with ProcessPoolExecutor(processes, mp_context=context, initializer=_one_thread) as pool:
            jobs = {(cell.size.name, cell.seed): pool.submit(run_cell, cell, board) for cell in cells}
            return {key: job.result() for key, job in jobs.items()}


def run_cell(cell: Cell, board: Board) -> Scores:
    """Trains, composes and scores one size and seed."""
    said_at = 0.0

    def step(stage: str, progress: Progress) -> None:
        nonlocal said_at
        board.mark(_name(cell), stage, progress.metric.step / progress.steps)
        if time.monotonic() - said_at > SAY_EVERY_S:
            said_at = time.monotonic()
            _print(
                cell,
                f"{stage} step {progress.metric.step}/{progress.steps}, loss {progress.metric.loss:.2f}, "
                f"{progress.tokens_per_s:,.0f} tokens/s; {board.line()}",
            )

    decoder = stages.base(cell, step)
    experts = {owner: stages.expert(cell, decoder, owner, step) for owner in cell.plan.owners}
    for stage in ("base", *cell.plan.owners):
        board.mark(_name(cell), stage, 1.0)
    trained = Trained(decoder=decoder, experts=experts)
    scores = score_cell(
        cell,
        trained,
        cell.texts.report,
        VARIANTS,
        say=lambda what: _print(cell, f"fits and scores: {what}; {board.line()}"),
    )
    board.mark(_name(cell), "scores", 1.0)
    _print(cell, f"done; {board.line()}")
    return scores


def describe(size: Size) -> str:
    """A size in one line."""
    return f"{size.n_layers} layers of width {size.d_model}, inner width {size.d_ffn}"


def _kept(cell: Cell) -> list[str]:
    """Stages of a cell that need no work."""
    if kept_scores(cell, (BASE, OWN, *VARIANTS)):
        return ["base", *cell.plan.owners, "scores"]
    found = ["base"] if stages.base_path(cell).exists() else []
    return found + [owner for owner in cell.plan.owners if stages.expert_path(cell, owner).exists()]


def _one_thread() -> None:
    torch.set_num_threads(1)


def _name(cell: Cell) -> str:
    return f"{cell.size.name} seed {cell.seed}"


def _print(cell: Cell, line: str) -> None:
    print(f"[{_name(cell)}] {line}", flush=True)
