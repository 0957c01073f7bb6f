# SPDX-License-Identifier: Apache-2.0
"""The serving benchmark's arithmetic on made numbers: rates, bounds, bars, kept results, the page."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.marked_page import BEGIN, END, fill
from benchmarks.report import Row, all_hold, write_report
from benchmarks.serving.agreement import first_difference
from benchmarks.serving.arithmetic import choose
from benchmarks.serving.case import LARGER, SMALL, SMALL_OLMOE, Cell
from benchmarks.serving.clients import tokens_told
from benchmarks.serving.growth import Growth, expected_step_s, rows_of_growth
from benchmarks.serving.kept import Kept, source_digest
from benchmarks.serving.measured import BATCH, GENERATE, LLAMA, OURS, Measured, rows_of
from benchmarks.serving.page import decode_cells, markdown, plot
from benchmarks.serving.peak import PeakMeter, Product, products
from benchmarks.serving.plan import full_jobs, quick_jobs
from benchmarks.serving.processes import ELSE, Meter, part_of, per_thousand, this_process
from benchmarks.serving.prompts import prompts_of
from benchmarks.serving.run import Runner
from benchmarks.serving.sets import SETS, UNION, MixedSets, rows_of_sets
from benchmarks.serving.streaming import Streaming, Way, rows_of_streaming
from benchmarks.serving.trace import Trace, Turn, figures, median_ratio, take_turns, window

_TOY = SMALL.with_sizes(name="toy", layers=2, width=16, inner=24, heads=2, vocabulary=64)


def _measured(**changes: Any) -> Measured:
    turn = {OURS: 300.0, GENERATE: 100.0, BATCH: 60.0}
    fields: dict[str, Any] = {
        "label": "toy",
        "number_format": "fp32",
        "concurrency": 1,
        "prompt_tokens": 64,
        "native": True,
        "turns": {
            side: [Turn(decode=speed, prefill=10 * speed, first_s=1.0)] * 3 for side, speed in turn.items()
        },
        "step_bytes": 2e8,
        "touched": 2.0,
        "bandwidth": [8e10, 1e11],
    }
    return Measured(**(fields | changes))


def _row(rows: list[Row], start: str) -> Row:
    return next(row for row in rows if row.name.startswith(start))


def test_decoding_is_looked_at_only_while_all_decode() -> None:
    """Tokens before the last sequence's first one, or after the first one's last, count for nothing."""
    trace = Trace(
        began_s=10.0,
        moments_s=((11.0, 12.0, 13.0, 14.0, 15.0), (13.0, 13.5, 14.0, 15.5, 16.5)),
        tokens=((1,) * 5, (2,) * 5),
    )
    assert window(trace) == (13.0, 15.0)
    turn = figures(trace, prompt_tokens=30)
    assert turn.decode == pytest.approx(4 / 2.0)
    assert turn.prefill == pytest.approx(60 / 3.0)
    assert turn.first_s == 3.0


def test_a_batch_that_never_decodes_together_is_refused() -> None:
    """A rate is never taken from no time at all."""
    trace = Trace(began_s=0.0, moments_s=((1.0, 2.0), (2.0, 3.0)), tokens=((1, 1), (1, 1)))
    with pytest.raises(ValueError, match="more new tokens"):
        figures(trace, prompt_tokens=1)


@given(st.integers(1, 8), st.integers(2, 20), st.floats(0.01, 10.0))
def test_steady_batches_have_the_speed_of_their_steps(sequences: int, tokens: int, step_s: float) -> None:
    """So many sequences, a token each a step: that many tokens a step's time."""
    moments = tuple(5.0 + step_s * place for place in range(tokens))
    trace = Trace(began_s=4.0, moments_s=(moments,) * sequences, tokens=((0,) * tokens,) * sequences)
    assert figures(trace, prompt_tokens=7).decode == pytest.approx(sequences / step_s)


def test_sides_take_turns_and_the_first_round_does_not_count() -> None:
    """Each round has every side once, the first place moves on, and round 0 leaves no result."""
    seen: list[tuple[str, int]] = []

    def side(name: str) -> Any:
        return lambda number: seen.append((name, number)) or number

    taken = take_turns({name: side(name) for name in "abc"}, rounds=2)
    assert [name for name, _ in seen] == [*"abc", *"bca", *"cab"]
    assert [number for _, number in seen] == [0] * 3 + [1] * 3 + [2] * 3
    assert taken == {name: [1, 2] for name in "abc"}


def test_ratios_are_taken_round_by_round() -> None:
    """A round in which the machine was slow changes both of its sides and not the ratio."""
    assert median_ratio([10.0, 1.0, 12.0], [5.0, 0.5, 4.0]) == 2.0


def test_prompts_are_equal_for_all_sides_and_new_in_every_round() -> None:
    """The same round gives the same prompts; no two sequences or rounds share one."""
    cell = Cell(sizes=_TOY, concurrency=4, prompt_tokens=32)
    first = prompts_of(cell, 1)
    assert first == prompts_of(cell, 1)
    assert {(len(prompt), max(prompt) < 64) for prompt in first} == {(32, True)}
    assert len({tuple(prompt) for number in range(3) for prompt in prompts_of(cell, number)}) == 12


def test_sizes_are_those_that_the_bars_speak_of() -> None:
    """About 155 million parameters, and four times as many."""
    assert SMALL.parameters == pytest.approx(155e6, rel=0.01)
    assert SMALL_OLMOE.parameters == SMALL.parameters
    assert LARGER.parameters / SMALL.parameters == pytest.approx(4, rel=0.01)
    assert (SMALL.width, SMALL.layers, SMALL.experts, SMALL.top_k) == (512, 8, 8, 2)


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, (True, True, False)),
        ({"bandwidth": [1.01e11]}, (True, True, False)),
        ({"bandwidth": [0.99e11]}, (True, True, True)),
        ({"number_format": "bf16", "bandwidth": [1.4e11]}, (True, True, True)),
        ({"number_format": "int8", "bandwidth": [1.6e11]}, (True, True, False)),
        ({"native": False}, (True, True, None)),
        ({"concurrency": 8}, (True, True, None)),
    ],
)
def test_bars_of_decoding_follow_format_and_compiler(changes: dict[str, Any], holds: tuple[Any, ...]) -> None:
    """Three times each Hugging Face path; 60 % of bandwidth alone in fp32, 40 % otherwise, natively."""
    if not changes:
        changes = {"step_bytes": 1.9e8}
    rows = rows_of(_measured(**changes))
    names = ("decode against generate,", "decode against generate_batch,", "decode, share")
    assert tuple(_row(rows, name).holds for name in names) == holds


def test_the_better_peer_decides() -> None:
    """Three times the slower path alone is not enough, and llama.cpp is only shown."""
    turns = _measured().turns | {
        GENERATE: [Turn(decode=101.0, prefill=1.0, first_s=1.0)] * 3,
        LLAMA: [Turn(decode=900.0, prefill=1.0, first_s=1.0)] * 3,
    }
    rows = rows_of(_measured(turns=turns))
    assert _row(rows, "decode against generate,").holds is False
    assert _row(rows, "decode against generate_batch,").holds is True
    assert _row(rows, "decode against llama.cpp").holds is None
    assert not all_hold(rows)
    relaxed = rows_of(_measured(turns=turns, native=False))
    assert _row(relaxed, "decode against generate,").holds is True


@pytest.mark.parametrize(("peak_s", "holds"), [(1024 / 3000 * 0.84, False), (1024 / 3000 * 0.86, True)])
def test_prefill_is_held_against_its_products(peak_s: float, *, holds: bool) -> None:
    """85 % of the bound in fp32: the bound's seconds are at least that share of ours."""
    rows = rows_of(_measured(prompt_tokens=1024, peak_s=peak_s, torch_peak_s=2 * peak_s))
    row = _row(rows, "prefill, share")
    assert row.holds is holds
    assert row.ours == 3000
    alone = _row(rows, "prefill against torch's products")
    assert row.ratio is not None
    assert alone.ratio == pytest.approx(2 * row.ratio)


def test_texts_that_part_fail_in_fp32_alone() -> None:
    """A first difference that no level choice explains misses the bar; in bf16 it is only shown."""
    fields = {"compared": 10, "level": 1, "wrong": 1}
    assert _row(rows_of(_measured(**fields)), "greedy").holds is False
    assert _row(rows_of(_measured(**fields | {"wrong": 0})), "greedy").holds is True
    assert _row(rows_of(_measured(**fields, number_format="bf16")), "greedy").holds is None


def test_cells_come_back_from_their_files(tmp_path: Path) -> None:
    """What was measured is the same after JSON; other settings, sources or a torn file find nothing."""
    found = _measured(peak_s=0.5, chosen={GENERATE: "eager"})
    kept = Kept(tmp_path, {"source": "a"})
    assert kept.find({"cell": 1}) is None
    kept.keep({"cell": 1}, found.to_json())
    back = kept.find({"cell": 1})
    assert back is not None
    assert Measured.from_json(back) == found
    assert kept.find({"cell": 2}) is None
    assert Kept(tmp_path, {"source": "b"}).find({"cell": 1}) is None
    path = next(tmp_path.glob("*.json"))
    path.write_text(path.read_text()[:-20])
    assert kept.find({"cell": 1}) is None


def test_kept_results_know_the_code_they_were_measured_with(tmp_path: Path) -> None:
    """A changed kernel or step is another source; a note beside them is not."""
    (tmp_path / "engine" / "native").mkdir(parents=True)
    kernel = tmp_path / "engine" / "native" / "step.cpp"
    kernel.write_text("one")
    before = source_digest(tmp_path)
    (tmp_path / "engine" / "notes.txt").write_text("x")
    assert source_digest(tmp_path) == before
    kernel.write_text("two")
    assert source_digest(tmp_path) != before


def test_the_peak_counts_every_product_of_a_prompt() -> None:
    """Its flops are those of the written formula, with each expert's own rows, idle experts left out."""
    rows_LE = torch.tensor([[10, 22, 0], [0, 16, 16]])
    found = products(_TOY, "fp32", 32, rows_LE)
    width, inner = 16, 24
    wanted = 4 * 2 * 2 * 32 * width * width + 2 * width * 64
    wanted += 3 * 2 * width * inner * int(rows_LE.sum())
    wanted += 2 * 2 * width * 32**2
    meter = PeakMeter(found)
    assert meter.flops == wanted
    assert meter.seconds == float("inf")
    meter.measure(1)
    assert 0 < meter.seconds < 10
    assert meter.seconds == meter.torch_seconds


def test_the_faster_routine_counts_for_each_product() -> None:
    """Where ours never ran the bound is torch's; where it is faster the bound is ours."""
    slow = Product(count=3, flops=1.0, ways=(lambda: time.sleep(0.02),), own=(lambda: None,))
    quick = Product(count=1, flops=1.0, ways=(lambda: None,), own=(lambda: time.sleep(0.02),))
    meter = PeakMeter([slow, quick])
    meter.measure(1)
    assert meter.torch_seconds >= 3 * 0.02
    assert meter.seconds < meter.torch_seconds


def test_the_first_difference_of_two_texts() -> None:
    """Only what both sides said is compared."""
    assert first_difference([1, 2, 3], [1, 2, 3, 4]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1


def test_more_experts_may_take_as_long_as_reading_them() -> None:
    """A batch that is slower by just the further bytes holds; one slower by a fifth does not.

    What slows a whole round down, its reads too, changes nothing.
    """
    assert expected_step_s(0.01, 1e8, 3e8, 1e10) == pytest.approx(0.03)
    fields: dict[str, Any] = {
        "counts": [4, 64],
        "step_bytes": {"1": [1e8, 1e8], "8": [1e8, 3e8]},
        "bandwidth": {"1": [1e10] * 3, "8": [1e10, 1e9, 1e10]},
    }

    def rows(prefill: float, alone_s: float, batch_s: float) -> list[bool | None]:
        slowed = (1, 10, 1)
        decode_s = {
            "1": [[0.01 * slow for slow in slowed], [alone_s * slow for slow in slowed]],
            "8": [[0.01 * slow for slow in slowed], [batch_s * slow for slow in slowed]],
        }
        growth = Growth(decode_s=decode_s, prefill=[[1000.0] * 3, [prefill] * 3], **fields)
        return [row.holds for row in rows_of_growth(growth)]

    assert rows(851.0, 0.0117, 0.035) == [True] * 3
    assert rows(849.0, 0.0119, 0.036) == [False] * 3


def test_sets_may_cost_a_tenth_and_change_no_token() -> None:
    """Eleven percent slower than the union, or one other token, misses its bar."""
    decode = {SETS: [91.0] * 3, UNION: [100.0] * 3, "sixteen sets that choose differently": [80.0] * 3}
    fields: dict[str, Any] = {"label": "toy", "touched": dict.fromkeys(decode, 7.0)}
    fine = rows_of_sets(MixedSets(decode=decode, same_tokens=True, **fields))
    assert all_hold(fine)
    slow = rows_of_sets(MixedSets(decode=decode | {SETS: [89.0] * 3}, same_tokens=True, **fields))
    other = rows_of_sets(MixedSets(decode=decode, same_tokens=False, **fields))
    assert not all_hold(slow)
    assert not all_hold(other)


def test_the_full_plan_holds_the_quick_one_and_every_cell_once() -> None:
    """Both shapes, formats, prompts and all concurrencies that the bars name."""
    quick, full = quick_jobs(), full_jobs()
    assert set(quick) < set(full)
    assert len(set(full)) == len(full)
    cells = {
        (job.cell.sizes.name, job.cell.number_format, job.cell.concurrency, job.cell.prompt_tokens)
        for job in full
        if job.cell is not None
    }
    for number_format in ("fp32", "bf16"):
        for prompt in (64, 1024):
            wanted = {(SMALL.name, number_format, batch, prompt) for batch in (1, 8, 32)}
            assert wanted | {(LARGER.name, number_format, batch, prompt) for batch in (1, 8)} <= cells


def test_the_page_shows_every_row_between_its_marks(tmp_path: Path) -> None:
    """All rows stand in the page once, missed bars in bold, and the text around them stays."""
    rows = rows_of(_measured(bandwidth=[1e12], prompt_tokens=1024, peak_s=0.5, compared=5))
    rows.append(Row(name="compiling the kernels, once a machine", ours=12.0, unit="s"))
    facts = {
        "versions": {"transformers": "5", "gguf": None},
        "whole": False,
        "capability": "AVX",
        "threads": 2,
        "arithmetic": "torch (as asked)",
        "load": 1.0,
    }
    document = json.loads(write_report("serving", rows, facts=facts, folder=tmp_path).read_text())
    page = fill(f"before {BEGIN} outdated {END} after", markdown(document))
    assert page.startswith("before")
    assert page.endswith("after")
    assert "outdated" not in page
    for row in rows:
        assert page.count(f"| {row.name} |") == 1
    assert "**no**" in page
    with pytest.raises(ValueError, match="marks"):
        fill("nothing", "")
    plot(document, tmp_path / "serving.svg")
    assert "<svg" in (tmp_path / "serving.svg").read_text()
    assert decode_cells(rows) == {"toy": {"ours": 300.0, GENERATE: 100.0, BATCH: 60.0}}


def test_streams_may_lose_a_stated_share_of_the_engines_speed() -> None:
    """65 % with a routing hop and 80 % without one hold, less misses; the median of the rounds decides."""
    hop = Way(inside=[100.0, 50.0, 200.0], over_http=[66.0, 33.0, 130.0])
    one = Way(inside=[100.0, 50.0, 200.0], over_http=[81.0, 41.0, 159.0])
    measured = Streaming(hop=hop, one=one)
    assert Streaming.from_json(json.loads(json.dumps(measured.to_json()))) == measured
    assert [row.holds for row in rows_of_streaming(measured)] == [True, True]
    slow = Way(inside=[100.0, 50.0, 200.0], over_http=[64.0, 32.0, 190.0])
    assert [row.holds for row in rows_of_streaming(Streaming(hop=slow, one=hop))] == [False, False]


def test_streaming_tells_what_each_part_of_the_service_costs() -> None:
    """Processor time is shown by part, the dearest first, under the sum of all against the engine alone."""
    names = [
        "ray::ServeReplica:gateway:Gateway",
        "ray::OfficeActor.ask",
        "ray::ServeReplica:host-1:ModelHost",
    ]
    assert [part_of(name) for name in [*names, "raylet"]] == ["gateway", "office", "model host", ELSE]
    way = Way(inside=[1.0], over_http=[1.0], cpu_s={"office": 0.5, "model host": 2.0}, inside_cpu_s=2.0)
    speed, whole, *parts = rows_of_streaming(Streaming(hop=way, one=way))[:4]
    assert speed.unit == "tokens/s"
    assert (whole.ours, whole.ratio, [row.ours for row in parts]) == (2.5, 1.25, [2.0, 0.5])
    assert all(row.holds is None for row in (whole, *parts))


def test_meter_counts_what_was_spent_meanwhile() -> None:
    """Processor time of work counts, and what the work answers is passed on."""
    meter = Meter(this_process)

    def work() -> float:
        began = time.process_time()
        while time.process_time() - began < 0.05:
            pass
        return 7.0

    assert meter.run(work) == 7.0
    assert 0.02 < meter.spent_s[ELSE] == meter.spent_s.total()
    assert per_thousand({"a": 2.0}, 4000) == {"a": 0.5}


def test_clients_learn_the_number_of_tokens_from_the_last_event() -> None:
    """Whatever is cut off before it, the last event with usage counts."""
    tail = (
        b'oken"}],"usage":{"completion_tokens":3}}\n\n'
        b'data: {"choices":[],"usage":null}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":17}}\n\ndata: [DONE]\n\n'
    )
    assert tokens_told(tail) == 17
    assert tokens_told(b"HTTP/1.1 429 Too Many Requests\r\n") is None


def test_a_runner_knows_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job is known once its result is kept, for as long as the same peers are missing."""
    monkeypatch.setattr("benchmarks.serving.run.ReadMeter", lambda: None)
    kept, job = Kept(tmp_path, {}), quick_jobs()[0]
    arithmetic = choose(tmp_path, threads=1, torch_only=True)

    def runner(missing: frozenset[str]) -> Runner:
        return Runner(kept, arithmetic=arithmetic, threads=1, resume=True, missing=missing)

    assert not runner(frozenset()).has(job)
    kept.keep(job.settings() | {"missing": []}, _measured().to_json())
    assert runner(frozenset()).has(job)
    assert runner(frozenset()).rows(job)
    assert not runner(frozenset({GENERATE})).has(job)
