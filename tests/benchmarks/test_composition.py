# SPDX-License-Identifier: Apache-2.0
"""The composition benchmark: its arithmetic on made numbers, its texts, and the whole of it at toy size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.composition.figures import DomainScores, Resampled, gather, interval
from benchmarks.composition.page import markdown, plot
from benchmarks.composition.progress import Board
from benchmarks.composition.run import run_cell
from benchmarks.composition.settings import Amounts, Plan, Size
from benchmarks.composition.stages import Cell, scores_path
from benchmarks.composition.tables import report_rows, size_table
from benchmarks.composition.texts import PUBLIC, Texts, passages, read_texts, work_of
from benchmarks.composition.variants import GATES, ROWS, VARIANTS
from model_core.evaluation.bits import DocumentBits
from model_core.text.documents import Document


def _domain(
    name: str, bits: dict[str, float], *, works: int = 40, seeds: int = 3, noise: float = 0.0
) -> DomainScores:
    generator = np.random.Generator(np.random.PCG64(len(name)))
    sizes = generator.integers(500, 1500, works).astype(float)
    return DomainScores(
        domain=name,
        sizes_W=sizes,
        bits_NW={
            model: sizes * (value + noise * generator.standard_normal((seeds, works)))
            for model, value in bits.items()
        },
    )


def test_gap_and_share_closed_are_what_they_say() -> None:
    """Without noise every draw gives the same figures: gaps of 0.4 and 0.2, of which gates leave 0.1 each."""
    domains = [
        _domain("code", {"base": 3.0, "own": 2.0, "rows": 2.4, "gates": 2.1}),
        _domain("math", {"base": 2.5, "own": 2.0, "rows": 2.2, "gates": 2.1}),
    ]
    drawn = Resampled(domains, draws=50)
    assert interval(drawn.gap("rows", "code"), works=40).value == pytest.approx(0.4)
    assert interval(drawn.mean_gap("rows", ("code", "math")), works=80).value == pytest.approx(0.3)
    closed = interval(drawn.share_closed("gates", "rows", ("code", "math")), works=80)
    assert (closed.value, closed.low, closed.high) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert drawn.harm("gates", "rows", "code") == pytest.approx(-0.3)
    assert drawn.ratio("gates", "code") == pytest.approx(0.7)


@settings(max_examples=15, deadline=None)
@given(noise=st.floats(0.001, 0.5), works=st.integers(2, 60), seeds=st.integers(1, 4))
def test_intervals_hold_the_figure_and_shared_noise_cancels(noise: float, works: int, seeds: int) -> None:
    """Works and seeds are drawn alike for all models: what both models share drops out of a difference."""
    made = _domain("code", {"own": 2.0}, works=works, seeds=seeds, noise=noise)
    own_NW = made.bits_NW["own"]
    domain = DomainScores(
        domain="code", sizes_W=made.sizes_W, bits_NW={"own": own_NW, "rows": own_NW + 0.25 * made.sizes_W}
    )
    drawn = Resampled([domain], draws=200)
    loss = interval(drawn.loss("rows", "code"), works=works)
    assert loss.low <= loss.high
    assert drawn.gap("rows", "code") == pytest.approx(0.25)


def test_the_interval_is_about_as_wide_as_theory_says() -> None:
    """For many works and one seed, 3.92 standard errors of the mean."""
    domain = DomainScores(
        domain="code",
        sizes_W=np.ones(400),
        bits_NW={"own": np.random.Generator(np.random.PCG64(5)).standard_normal((1, 400))},
    )
    found = interval(Resampled([domain], draws=2000).loss("own", "code"), works=400)
    assert found.high - found.low == pytest.approx(3.92 / 20, rel=0.15)


def test_seeds_widen_the_interval() -> None:
    """Models of three seeds that differ are less sure than one model scored on the same works."""
    spread = np.array([[1.0], [2.0], [3.0]]) * np.ones((3, 200))
    one = DomainScores(domain="code", sizes_W=np.ones(200), bits_NW={"own": spread[1:2]})
    three = DomainScores(domain="code", sizes_W=np.ones(200), bits_NW={"own": spread})
    narrow, wide = (interval(Resampled([item]).loss("own", "code"), works=200) for item in (one, three))
    assert narrow.high - narrow.low < 1e-9
    assert wide.high - wide.low > 0.5


def test_passages_of_one_work_are_one_unit() -> None:
    """Passages add up by work, and evaluations of different passages are refused."""
    scores = [
        DocumentBits(id=name, bits=bits, size_bytes=10, tokens=3)
        for name, bits in (("a#1#@0", 1.0), ("a#2#@0", 2.0), ("b#@0", 4.0))
    ]
    gathered = gather("code", {"own": [scores]}, work_of)
    assert gathered.sizes_W.tolist() == [20, 10]
    assert gathered.bits_NW["own"].tolist() == [[3.0, 4.0]]
    with pytest.raises(ValueError, match="rows did not score"):
        gather("code", {"own": [scores], "rows": [scores[:2]]}, work_of)


def test_bars_stand_on_the_interval_and_only_on_the_default() -> None:
    """A share whose interval dips below the bar fails; the other variants only inform."""

    def scored(rows: float, gates: float, noise: float) -> dict[str, dict[str, tuple[DocumentBits, ...]]]:
        generator = np.random.Generator(np.random.PCG64(3))
        values = {"base": 3.0, "own": 2.0, "rows": rows, "gates": gates}
        return {
            model: {
                domain: tuple(
                    DocumentBits(
                        id=str(index),
                        bits=100 * (value + noise * generator.standard_normal()),
                        size_bytes=100,
                        tokens=20,
                    )
                    for index in range(12)
                )
                for domain in ("code", PUBLIC)
            }
            for model, value in values.items()
        }

    def verdicts(rows: float, gates: float, noise: float) -> dict[str, bool | None]:
        table = size_table("toy", [scored(rows, gates, noise)], ("code",), (ROWS, GATES))
        return {row.name.split(" [")[0]: row.holds for row in report_rows(table)}

    good = verdicts(2.5, 2.1, 0.0)
    assert good["toy: share of the gap closed, domain gates (default)"] is True
    assert good["toy code: gates less rows"] is True
    assert good["toy public: router rows of the paper over base"] is None
    assert verdicts(2.5, 2.25, 0.4)["toy: share of the gap closed, domain gates (default)"] is False
    assert verdicts(2.1, 2.5, 0.01)["toy code: gates less rows"] is False


def test_held_out_halves_share_no_work_and_calibration_none_with_the_base(tmp_path: Path) -> None:
    """What settings are chosen on, what is reported, and what is trained on come from different works."""
    import zstandard

    for name in ("code", PUBLIC):
        lines = [
            json.dumps(
                {
                    "id": f"{name}-{work}#{part}",
                    "text": f"{name} {work} {part} " * 200,
                    "split": "validation" if work % 3 == 0 else "train",
                }
            )
            for work in range(30)
            for part in range(2)
        ]
        packed = zstandard.ZstdCompressor().compress("\n".join(lines).encode())
        (tmp_path / f"{name}.jsonl.zst").write_bytes(packed)
    amounts = Amounts(calibration_bytes=20_000)
    found = read_texts(tmp_path, ("code",), amounts)

    def works(documents: tuple[Document, ...]) -> set[str]:
        return {work_of(document.id) for document in documents}

    assert found.digest == read_texts(tmp_path, ("code",), amounts).digest
    groups = [
        works(found.base),
        works(found.calibration),
        *(works(half[PUBLIC]) for half in (found.tune, found.report)),
    ]
    assert all(groups)
    assert sum(len(group) for group in groups) == len(set().union(*groups))
    assert not works(found.owners["code"]) & (works(found.tune["code"]) | works(found.report["code"]))


def test_passages_go_round_by_round_over_documents() -> None:
    """Many works are heard before any is heard twice, and a passage is no longer than asked."""
    documents = [Document(id=f"d{index}", text="word " * 2_000) for index in range(5)]
    found = passages(documents, Amounts(passages=7, passage_characters=1_000))
    assert [work_of(item.id) for item in found] == ["d0", "d1", "d2", "d3", "d4", "d0", "d1"]
    assert all(len(item.text) == 1_000 for item in found)


def _made(kind: str, count: int, *, seed: int) -> tuple[Document, ...]:
    """Documents of words that only their kind has."""
    generator = np.random.Generator(np.random.PCG64(seed))
    words = [f"{kind[:3]}{letter}{end}" for letter in "abcdef" for end in ("", "ing", "ed")]
    return tuple(
        Document(id=f"{kind}-{index}", text=" ".join(generator.choice(words, 120))) for index in range(count)
    )


def _toy(tmp_path: Path) -> Cell:
    amounts = Amounts(
        vocabulary=300, max_positions=64, sequence_tokens=32, batch_rows=2, passage_characters=500, passages=6
    )
    owners = ("own", "other")
    size = Size(
        name="toy", n_layers=2, d_model=16, n_heads=2, d_ffn=24, tied=True, base_steps=8, expert_steps=6
    )
    private = {name: _made(name, 24, seed=place) for place, name in enumerate(owners)}
    public = _made("public", 48, seed=9)
    held = {name: private[name][18:] for name in owners} | {PUBLIC: public[40:]}
    texts = Texts(
        digest="sha256:" + "0" * 64,
        base=public[:24],
        calibration=public[24:40],
        owners={name: private[name][:18] for name in owners},
        tune=held,
        report=held,
    )
    plan = Plan(owners=owners, sizes=(size,), seeds=(1,), top_k=2, amounts=amounts, proxies=8, tuning_steps=2)
    return Cell(plan=plan, size=size, seed=1, texts=texts, root=tmp_path)


def test_the_whole_benchmark_runs_at_toy_size_and_trains_nothing_twice(tmp_path: Path) -> None:
    """Every model is scored on every domain, figures and page come out, and a rerun reads the same scores."""
    cell = _toy(tmp_path)
    costs = {"toy seed 1": dict.fromkeys(("base", *cell.plan.owners, "scores"), 1.0)}
    board = Board({}, costs)
    first = run_cell(cell, board)
    assert set(first) == {"base", "own", *VARIANTS}
    assert all(set(by_domain) == {*cell.plan.owners, PUBLIC} for by_domain in first.values())
    assert "100%" in board.line()
    before = {path.name: path.stat().st_mtime_ns for path in cell.folder.iterdir()}
    assert not [name for name in before if name.endswith(("work", "draft"))]
    scores_path(cell, ROWS).unlink()
    assert run_cell(cell, board) == first
    after = {path.name: path.stat().st_mtime_ns for path in cell.folder.iterdir()}
    assert {name: when for name, when in after.items() if "scores-rows" not in name} == {
        name: when for name, when in before.items() if "scores-rows" not in name
    }
    table = size_table("toy", [first], cell.plan.owners, VARIANTS)
    assert "| mean |" in markdown([table])
    plot([table], tmp_path / "gap.svg")
    assert (tmp_path / "gap.svg").read_text().lstrip().startswith("<?xml")
