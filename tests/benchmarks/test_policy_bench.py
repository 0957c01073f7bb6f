# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the policy service measures what it says, on registers small enough for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.marked_page import BEGIN, END, fill
from benchmarks.policy import deciding
from benchmarks.policy.page import markdown
from benchmarks.policy.publishing import publish_rows
from benchmarks.policy.world import World
from benchmarks.report import at_most


@pytest.fixture(autouse=True)
def _no_freezing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciding, "settle_down", lambda: None)
    monkeypatch.setattr("benchmarks.policy.publishing.settle_down", lambda: None)


def test_questions_are_distinct_and_about_all_experts() -> None:
    """No use is asked about twice, and candidates are always everybody."""
    world = World(experts=12, deployments=2)
    asked = world.questions(200)
    uses = {tuple(value for name, value in one if name not in {"at_us", "candidates"}) for one in asked}
    assert len(uses) == 200
    assert all(one.candidates == "*" or len(one.candidates or ()) == 12 for one in asked)


def test_answers_are_compared_before_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is not that of the explaining decision, or not Cedar's, ends the benchmark."""
    explained = deciding.compose

    def without_members(*asked: Any) -> Any:
        return explained(*asked).model_copy(update={"members": ()})

    with monkeypatch.context() as patched:
        patched.setattr(deciding, "compose", without_members)
        with pytest.raises(AssertionError, match="members"):
            deciding.compose_rows(experts=12, questions=20)
    monkeypatch.setattr(deciding.Cedar, "permitted_singly", lambda _self, requests: [False] * len(requests))
    with pytest.raises(AssertionError, match="Cedar decides otherwise"):
        deciding.cedar_rows(experts=24, questions=6, rounds=1)


def test_every_bound_and_peer_has_a_row() -> None:
    """Small registers give all rows: ours against ourselves, Cedar and the bounds."""
    rows = [
        *deciding.compose_rows(experts=12, questions=20),
        *deciding.compile_rows(sizes=((12, 2, 1),)),
        *deciding.reasons_rows(experts=12, questions=3),
        *deciding.cedar_rows(experts=24, questions=6, rounds=1),
        *deciding.replay_rows(experts=12, logged=60),
    ]
    assert sum(row.bar is not None for row in rows) == 5
    assert all(row.ours > 0 for row in rows)


def test_publishing_is_measured_on_a_register_of_its_own(tmp_path: Path) -> None:
    """A small register is filled, published, read anew and narrowed."""
    rows = publish_rows(tmp_path, experts=20, consents=2, grants=2, deployments=2, acts=3)
    assert [row.unit for row in rows] == ["s", "ms", "ms"]


@pytest.mark.parametrize(("share", "value"), [(0.5, 5), (0.99, 10), (0.1, 1), (1.0, 10)])
def test_a_quantile_is_the_least_value_that_a_share_does_not_exceed(share: float, value: int) -> None:
    """Of ten values half are at most the fifth."""
    assert deciding.quantile(list(range(10, 0, -1)), share) == value


def test_the_page_is_filled_between_its_marks() -> None:
    """A missed bar is shown as missed."""
    row = at_most("composing", 3.0, 2.0, unit="ms", bar=1)
    document = {
        "machine": {"processor": "x86_64", "cores": 2, "python": "3.11"},
        "facts": {"versions": {"cedarpy": "4"}, "load": 0.5, "whole": True},
        "rows": [{name: getattr(row, name) for name in type(row).__slots__}],
    }
    page = fill(f"before {BEGIN} old {END} after", markdown(document))
    assert "| composing | 3 | 2 | 1.5 | ms | <= 1 | **no** |" in page
    assert page.startswith("before")
    assert page.endswith("after")
    with pytest.raises(ValueError, match="marks"):
        fill("no marks", "")
