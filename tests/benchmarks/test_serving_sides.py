# SPDX-License-Identifier: Apache-2.0
"""The serving benchmark's worlds and sides at toy size: same weights everywhere, and what a step reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.serving.agreement import compare
from benchmarks.serving.arithmetic import Arithmetic, choose
from benchmarks.serving.bandwidth import ReadMeter
from benchmarks.serving.case import SMALL, SMALL_OLMOE, Cell
from benchmarks.serving.cells import measure_cell
from benchmarks.serving.gguf_file import tensors
from benchmarks.serving.growth import measure_growth, rows_of_growth
from benchmarks.serving.huggingface import open_folder
from benchmarks.serving.llama import why_missing
from benchmarks.serving.measured import BATCH, GENERATE, LLAMA, OURS, Measured, rows_of
from benchmarks.serving.routes import mean_touched, routes_of
from benchmarks.serving.sets import SEQUENCES, measure_sets, sets_that_differ, silent_world, sixteen_sets
from benchmarks.serving.stage import Stage
from benchmarks.serving.touched import expert_bytes, fixed_bytes, step_bytes
from benchmarks.serving.trace import Trace
from benchmarks.serving.worlds import make_world
from model_core.network.bank import forward_logits

_SIZES = {"layers": 2, "width": 32, "inner": 48, "heads": 2, "vocabulary": 97, "experts": 4}
_TOY = SMALL.with_sizes(name="toy", **_SIZES)
_TOY_OLMOE = SMALL_OLMOE.with_sizes(name="toy OLMoE", **_SIZES)


@pytest.fixture(scope="module")
def by_torch(tmp_path_factory: pytest.TempPathFactory) -> Arithmetic:
    """Torch computes our side."""
    return choose(tmp_path_factory.mktemp("kernels"), threads=1, torch_only=True)


@pytest.mark.parametrize("number_format", ["fp32", "bf16"])
def test_the_peer_holds_the_very_same_weights(tmp_path: Path, number_format: str) -> None:
    """Every number of the folder is one of ours, unrounded, and in fp32 the logits are equal."""
    world = make_world(_TOY, number_format)  # type: ignore[arg-type]
    assert (
        sum(t.numel() for t in world.decoder.parameters() if t.dim() == 2)
        + sum(t.numel() for expert in world.experts.values() for t in expert.parameters() if t.dim() == 2)
        == _TOY.parameters - _TOY.layers * _TOY.experts * _TOY.width
    )
    world.write_folder(tmp_path / "folder")
    model = open_folder(tmp_path / "folder")
    assert {parameter.dtype for parameter in model.parameters()} == {world.decoder.embed.weight.dtype}
    gate_ED = model.model.layers[1].mlp.gate.weight
    expert = next(iter(world.experts.values()))
    assert torch.equal(gate_ED[1].float(), expert.layer(1).router.row)
    assert torch.equal(model.model.layers[0].mlp.experts.down_proj[1], expert.layer(0).ffn.down.weight)
    if number_format == "fp32":
        ids = list(range(20))
        bank = world.bank()
        ours = forward_logits(bank, ids, bank.digests, _TOY.top_k)
        with torch.inference_mode():
            theirs = model(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_step_reads_what_its_tokens_take_and_the_trunk() -> None:
    """With every expert touched that is all weights but the embedding; alone it is k experts a layer."""
    world = make_world(_TOY)
    bank = world.bank()
    whole = torch.ones(_TOY.layers, _TOY.experts)
    matrices = _TOY.parameters - _TOY.vocabulary * _TOY.width
    norms = sum(t.numel() for name, t in world.decoder.named_parameters() if "norm" in name)
    assert fixed_bytes(bank) + expert_bytes(bank, whole) == 4 * (matrices + norms)
    route = routes_of(bank, list(range(40)), bank.digests, _TOY.top_k)
    alone_LE = mean_touched([route], begin=10, end=40)
    torch.testing.assert_close(alone_LE.sum(1), torch.full((_TOY.layers,), 2.0, dtype=torch.float64))
    ffn = 3 * 4 * _TOY.width * _TOY.inner
    assert expert_bytes(bank, alone_LE) == pytest.approx(_TOY.layers * 2 * ffn)
    cell = Cell(sizes=_TOY, concurrency=3, prompt_tokens=20, new_tokens=8)
    cache = 3 * 24 * 2 * _TOY.layers * _TOY.width * 4
    assert step_bytes(bank, cell, alone_LE) == pytest.approx(
        fixed_bytes(bank) + expert_bytes(bank, alone_LE) + cache
    )


def test_integers_are_read_as_such() -> None:
    """An expert in 8-bit integers counts a byte a weight and four a scale; the public one stays fp32."""
    bank = make_world(_TOY, "int8").bank()
    one = torch.zeros(_TOY.layers, _TOY.experts)
    one[0, 1] = 1.0
    weights, scales = 3 * _TOY.width * _TOY.inner, 2 * _TOY.inner + _TOY.width
    assert expert_bytes(bank, one) == weights + 4 * scales
    public = torch.zeros(_TOY.layers, _TOY.experts)
    public[1, 0] = 1.0
    assert expert_bytes(bank, public) == 4 * weights


def test_batches_touch_what_any_of_their_rows_takes() -> None:
    """The shares are those counted by hand from the routes of the sequences."""
    bank = make_world(_TOY).bank()
    routes = [
        routes_of(bank, list(range(start, start + 20)), bank.digests, _TOY.top_k) for start in (0, 30, 60)
    ]
    counted = torch.zeros(_TOY.layers, _TOY.experts)
    for position in range(5, 20):
        for layer in range(_TOY.layers):
            taken = {
                column
                for route in routes
                for column in route.chosen_SLE[position, layer].nonzero().flatten().tolist()
            }
            for column in taken:
                counted[layer, column] += 1 / 15
    torch.testing.assert_close(mean_touched(routes, begin=5, end=20).float(), counted)


def test_a_wrong_token_is_told_from_a_level_choice() -> None:
    """The likeliest token against the least likely one is wrong; a token against itself is compared whole."""
    bank = make_world(_TOY).bank()
    prompt = list(range(12))
    logits_V = forward_logits(bank, prompt, bank.digests, _TOY.top_k)[-1]
    best, worst = int(logits_V.argmax()), int(logits_V.argmin())
    ours = Trace(began_s=0.0, moments_s=(), tokens=((best, 5, 6),))
    same = compare(bank, [prompt], ours, ours, top_k=_TOY.top_k)
    assert (same.compared, same.level, same.wrong) == (3, 0, 0)
    theirs = Trace(began_s=0.0, moments_s=(), tokens=((worst, 5, 6),))
    other = compare(bank, [prompt], ours, theirs, top_k=_TOY.top_k)
    assert (other.compared, other.level, other.wrong) == (1, 0, 1)


def test_a_cell_is_measured_with_both_ways_of_hugging_face(by_torch: Arithmetic) -> None:
    """All sides give the same greedy texts and figures above zero, and everything goes through JSON."""
    stage = Stage(_TOY, "fp32", arithmetic=by_torch, threads=1)
    cell = Cell(sizes=_TOY, concurrency=3, prompt_tokens=24, new_tokens=6, rounds=2)
    found = measure_cell(stage, cell, peers=(GENERATE, BATCH), meter=ReadMeter(1 << 24), native=False)
    stage.close()
    assert set(found.turns) == {OURS, GENERATE, BATCH}
    assert all(len(turns) == 2 and min(t.decode for t in turns) > 0 for turns in found.turns.values())
    assert found.compared >= 2 * 2 * 3 * 6 - 3
    assert found.wrong == 0
    assert found.touched <= _TOY.experts
    assert Measured.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert {row.name.partition(",")[0] for row in rows_of(found)} >= {"decode against generate", "decode"}


@pytest.mark.skipif(why_missing() is not None, reason="llama.cpp is not installed")
@pytest.mark.parametrize("number_format", ["fp32", "bf16"])
def test_llama_cpp_reads_the_file_and_says_the_same(by_torch: Arithmetic, number_format: str) -> None:
    """In fp32 its greedy texts are ours; in bf16 the file opens and both generate."""
    stage = Stage(_TOY_OLMOE, number_format, arithmetic=by_torch, threads=1)  # type: ignore[arg-type]
    cell = Cell(
        sizes=_TOY_OLMOE, number_format=number_format, concurrency=2, prompt_tokens=24, new_tokens=6, rounds=1
    )  # type: ignore[arg-type]
    found = measure_cell(stage, cell, peers=(LLAMA,), meter=ReadMeter(1 << 24), native=False)
    stage.close()
    assert found.compared > 0
    assert number_format != "fp32" or found.wrong == 0


def test_llama_cpp_gets_every_tensor_once() -> None:
    """All numbers of the world are in what is written, stacked as its layout wants them."""
    world = make_world(_TOY_OLMOE)
    found = tensors(world)
    assert found["blk.0.ffn_up_exps.weight"].shape == (_TOY.experts, _TOY.inner, _TOY.width)
    ours = sum(t.numel() for t in world.decoder.parameters())
    ours += sum(t.numel() for expert in world.experts.values() for t in expert.parameters())
    assert sum(t.numel() for t in found.values()) == ours
    with pytest.raises(ValueError, match="OLMoE"):
        _write(make_world(_TOY))


def _write(world: object) -> None:
    pytest.importorskip("gguf")
    from benchmarks.serving.gguf_file import write_gguf

    write_gguf(world, Path("never.gguf"))  # type: ignore[arg-type]


def test_sixteen_sets_and_their_union_choose_the_same_experts(by_torch: Arithmetic) -> None:
    """Experts that never weigh anything make sixteen different sets with the same tokens and experts."""
    sizes = _TOY.with_sizes(experts=8)
    world, silent = silent_world(sizes)
    bank = world.bank()
    sets = sixteen_sets(bank, silent)
    assert len({frozenset(one) for one in sets}) == SEQUENCES
    assert frozenset(digest for one in sets for digest in one) == frozenset(bank.digests)
    assert len({frozenset(one) for one in sets_that_differ(bank, silent)}) == SEQUENCES
    columns = [bank.columns([digest])[1] for digest in silent]
    route = routes_of(bank, list(range(50)), bank.digests, sizes.top_k)
    assert not route.chosen_SLE[:, :, columns].any()
    found = measure_sets(sizes, arithmetic=by_torch, new_tokens=4, rounds=1)
    assert found.same_tokens
    assert found.touched["sixteen sets"] == found.touched["their union"]


def test_growth_is_measured_over_banks_of_every_size(by_torch: Arithmetic) -> None:
    """More experts touch more bytes in a batch and, a token alone, no more than their router rows."""
    found = measure_growth(
        arithmetic=by_torch,
        meter=ReadMeter(1 << 24),
        sizes=_TOY,
        counts=(4, 12),
        batches=(1, 8),
        long=64,
        rounds=1,
        new_tokens=4,
    )
    few, many = found.step_bytes["8"]
    assert many > 1.3 * few
    rows_of_router = 8 * _TOY.layers * _TOY.width * 4
    alone = found.step_bytes["1"]
    assert alone[1] - alone[0] == pytest.approx(rows_of_router)
    assert len(rows_of_growth(found)) == 3


def test_reading_memory_gives_a_speed() -> None:
    """Every measurement is kept."""
    meter = ReadMeter(1 << 24)
    assert meter.measure() > 1e8
    assert meter.measure() > 1e8
    assert len(meter.seen) == 2
