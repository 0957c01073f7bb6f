# SPDX-License-Identifier: Apache-2.0
"""Rows of benchmarks say truly whether their bar holds, and come back from their file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.report import Row, all_hold, at_least, at_most, print_table, write_report


@pytest.mark.parametrize(("ours", "holds"), [(1.4, False), (1.5, True), (2.0, True)])
def test_at_least_holds_from_the_bar_on(ours: float, *, holds: bool) -> None:
    """A ratio below the bar fails, the bar itself passes."""
    row = at_least("speed", ours, 1.0, unit="tokens/s", bar=1.5)
    assert row.holds is holds
    assert all_hold([row]) is holds


@pytest.mark.parametrize(("ours", "holds"), [(0.9, True), (1.0, True), (1.1, False)])
def test_at_most_holds_up_to_the_bar(ours: float, *, holds: bool) -> None:
    """A ratio above the bar fails, the bar itself passes."""
    assert at_most("memory", ours, 1.0, unit="bytes", bar=1.0).holds is holds


def test_a_row_without_a_bar_fails_nothing() -> None:
    """What only informs cannot miss a bar."""
    assert all_hold([Row(name="layers 4", ours=1.0, unit="s")])


def test_rows_are_written_and_printed(tmp_path: Path) -> None:
    """The file holds every field of every row, and the table says NO where a bar is missed."""
    rows = [at_least("speed", 1.0, 2.0, unit="tokens/s", bar=1.5), Row(name="depth", ours=3.0, unit="s")]
    document = json.loads(write_report("x", rows, facts={"seed": 1}, folder=tmp_path).read_text())
    assert [row["name"] for row in document["rows"]] == ["speed", "depth"]
    assert document["rows"][0]["holds"] is False
    assert document["facts"] == {"seed": 1}
    console = Console(record=True, width=120, file=(tmp_path / "out").open("w"))
    print_table("X", rows, console)
    assert "NO" in console.export_text()
