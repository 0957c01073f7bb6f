# SPDX-License-Identifier: Apache-2.0
"""What a storm says of money and of where time goes: wrong books are noticed, phases are told apart."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cluster.home import Home
from examples.chaos.evidence import Rows
from examples.storm import judge
from examples.storm.money import judge_money
from examples.storm.phases import phase_figures
from examples.storm.publisher import Act

_BOOKS = """
CREATE TABLE usage_records (server_id, sequence, n, tenant);
CREATE TABLE usage_shares (server_id, sequence, n, amount_micro);
CREATE TABLE ledger_accounts (id, tenant, kind);
CREATE TABLE ledger_entries (n, account_id, amount_micro);
CREATE TABLE reservations (tenant, held_micro);
CREATE TABLE budgets (tenant, limit_micro, spent_micro, held_micro);
INSERT INTO usage_records VALUES ('srv', 1, 0, 'apps'), ('srv', 1, 1, 'apps');
INSERT INTO usage_shares VALUES ('srv', 1, 0, 30), ('srv', 1, 1, 12);
INSERT INTO ledger_accounts VALUES ('consumer:apps', 'apps', 'consumer'), ('owner:acme', 'acme', 'owner');
INSERT INTO ledger_entries VALUES (0, 'consumer:apps', -42), (1, 'owner:acme', 42);
INSERT INTO reservations VALUES ('apps', 5), ('apps', 0);
INSERT INTO budgets VALUES ('apps', 47, 42, 5), ('labs', 0, 0, 0);
"""


def _judged(folder: Path, change: str) -> judge.Verdict:
    with closing(sqlite3.connect(folder / "marketplace.sqlite")) as books, books:
        books.executescript(_BOOKS + change)
    verdict = judge.Verdict()
    judge_money(Rows(Home(folder)), verdict)
    return verdict


def test_books_that_agree_pass(tmp_path: Path) -> None:
    """Budget, usage and ledger with one sum, and no more spent and held than the limit."""
    verdict = _judged(tmp_path, "")
    assert verdict.broken == []
    assert verdict.figures["spent, micro-credits"] == 42


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("UPDATE budgets SET limit_micro = 46 WHERE tenant = 'apps'", "overspent budgets"),
        ("UPDATE budgets SET spent_micro = 41 WHERE tenant = 'apps'", "budgets against usage and ledger"),
        ("UPDATE usage_shares SET amount_micro = 13 WHERE n = 1", "budgets against usage and ledger"),
        ("UPDATE ledger_entries SET amount_micro = -43 WHERE n = 0", "budgets against usage and ledger"),
        ("UPDATE reservations SET held_micro = 6 WHERE held_micro", "budgets against usage and ledger"),
        ("DELETE FROM budgets WHERE tenant = 'apps'", "budgets against usage and ledger"),
    ],
)  # fmt: skip
def test_each_wrong_sum_is_noticed(tmp_path: Path, change: str, what: str) -> None:
    """One changed figure breaks exactly the promise that it belongs to."""
    verdict = _judged(tmp_path, change)
    assert verdict.figures[what] == 1
    assert len(verdict.broken) == 1


def test_phases_run_to_the_last_host_and_its_first_time(tmp_path: Path) -> None:
    """News that arrives twice counts once, the slower host counts, and a torn line is left out."""
    first = [("heard", 5, 2_000), ("applied", 5, 3_000), ("heard", 5, 90_000), ("acknowledged", 5, 4_000)]
    second = [("heard", 5, 1_500), ("applied", 5, 6_000), ("acknowledged", 5, 7_000)]
    for name, told in (("one", first), ("two", second)):
        lines = [json.dumps({"kind": kind, "epoch": epoch, "at_us": at_us}, separators=(",", ":"))
                 for kind, epoch, at_us in told]  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text(
            '{"kind":"step"}\n' + "\n".join(lines) + '\n{"kind":"heard","ep'
        )
    act = Act(kind="withdraw", name="e", epoch=5, sent_us=900, told_us=2_500)
    figures = phase_figures(tmp_path, {5: 1_000}, [act])
    assert {name: ms for name, ms in figures.items() if "p50" in name} == {
        "withdrawal until owner was told p50, ms": 1.5,
        "withdrawal until last host heard p50, ms": 1.0,
        "withdrawal until last host masked p50, ms": 5.0,
        "withdrawal until last host sent word p50, ms": 6.0,
    }
