# SPDX-License-Identifier: Apache-2.0
"""The runner that a machine offers: compiled where it can be, torch elsewhere, and it says which."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tensor_builders import bank_of, copy_of, drain, prompt, random_world, request, tokens

from model_core.engine import runners
from model_core.engine.engine import Engine
from model_core.engine.native import step
from model_core.engine.native.compiler import NoLibrary
from model_core.engine.native.step import NativeRunner
from model_core.engine.runners import open_runner, pages_within
from model_core.engine.torch_runner import TorchRunner
from model_core.network.bank import ExpertBank


@pytest.fixture(scope="module")
def bank() -> ExpertBank:
    """Two gated experts; tests do not change it."""
    return bank_of(*random_world(25, 2))


def test_what_is_opened_computes_the_same_and_says_what_it_is(
    bank: ExpertBank, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    """Compiled kernels if there is a compiler (exact then), with shared weights or without; else torch."""
    asked = [request(bank, f"r{i}", prompt(i, 9 + 9 * i), bank.digests[:i], 2) for i in range(3)]
    plain = drain(Engine(bank, max_sequences=3, max_context=64), asked)
    for weights in (None, tmp_path / "weights"):
        opened = open_runner(
            bank, n_pages=12, n_tails=3, kernels=pytestconfig.rootpath / "build" / "kernels", weights=weights
        )
        engine = Engine(bank, max_sequences=3, max_context=64, runner=opened.runner)
        assert engine.exact == isinstance(opened.runner, NativeRunner)
        assert opened.said.startswith("compiled kernels (" if engine.exact else "torch (")
        said = drain(engine, asked)
        assert {name: tokens(events) for name, events in said.items()} == {
            name: tokens(events) for name, events in plain.items()
        }


def test_torch_computes_where_nothing_is_compiled(
    bank: ExpertBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder, another dtype, no compiler: torch, with the reason."""
    reasons = [open_runner(bank, n_pages=4, n_tails=1, kernels=None)]
    half = bank_of(*random_world(26, 1))
    half.decoder.double()
    reasons.append(open_runner(half, n_pages=4, n_tails=1, kernels=tmp_path))
    monkeypatch.setattr(runners, "load_library", lambda _: NoLibrary(reason="No compiler was found."))
    reasons.append(open_runner(bank, n_pages=4, n_tails=1, kernels=tmp_path))
    for opened, part in zip(reasons, ("no folder", "float64", "No compiler"), strict=True):
        assert isinstance(opened.runner, TorchRunner)
        assert part in opened.said
        assert not opened.runner.row_exact


def test_a_device_that_is_not_there_is_missed_aloud(
    bank: ExpertBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for CUDA where there is none: CPU computes, and says that it was not what was asked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    opened = open_runner(bank, n_pages=4, n_tails=1, kernels=None, wanted_device="cuda")
    assert isinstance(opened.runner, TorchRunner)
    assert "sees no CUDA device" in opened.said


def test_a_memory_budget_becomes_pages_and_never_too_few(bank: ExpertBank) -> None:
    """What the pages take is the budget within a page; one sequence always fits."""
    budget = 400_000
    n_pages = pages_within(bank, size_bytes=budget, max_context=64)
    runner = TorchRunner(bank, n_pages=n_pages, n_tails=1)
    engine = Engine(bank, max_sequences=1, max_context=64, runner=runner)
    drain(engine, [request(bank, "r", prompt(1, 40), bank.digests, 2)])
    taken = runner.size_bytes() - runner.tail_sums_LND.nbytes
    assert taken <= budget < taken + taken // n_pages + 1
    assert pages_within(bank, size_bytes=0, max_context=64) == 4
    assert torch.is_tensor(runner.page_sums[0])


def test_a_prepared_expert_is_neither_read_nor_packed_again(
    bank: ExpertBank, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared on another thread, installed between two steps: what that takes does not grow with weights."""
    twin = bank_of(*random_world(25, 2))
    low, high = twin.digests
    expert = copy_of(twin.expert(high))
    kernels = pytestconfig.rootpath / "build" / "kernels"
    opened = open_runner(twin, n_pages=8, n_tails=2, kernels=kernels)
    engine = Engine(twin, max_sequences=2, max_context=64, runner=opened.runner)
    engine.drop_expert(high, poison=False)
    engine.submit(request(twin, "r", prompt(1, 9), (low,), 2, max_tokens=9))
    engine.step()
    with ThreadPoolExecutor(1) as threads:
        checked = threads.submit(engine.prepare_expert, high, expert).result()
    engine.commit()
    for module, name in ((torch, "isfinite"), (step, "pack_expert")):
        monkeypatch.setattr(module, name, None)
    engine.add_expert(checked)
    monkeypatch.undo()
    asked = [
        request(bank, "r", prompt(1, 9), (low,), 2, max_tokens=9),
        request(bank, "s", prompt(2, 9), (high,), 2),
    ]
    engine.submit(asked[1])
    said, plain = drain(engine), drain(Engine(bank, max_sequences=2, max_context=64), asked)
    assert tokens(said["r"]) == tokens(plain["r"])[1:]
    assert tokens(said["s"]) == tokens(plain["s"])
