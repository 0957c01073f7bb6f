# SPDX-License-Identifier: Apache-2.0
"""Holds budgets against usage and ledger: nothing is overspent, and three books name one sum."""

from __future__ import annotations

from examples.chaos.evidence import Rows
from examples.storm.judge import Verdict


def judge_money(rows: Rows, verdict: Verdict, *, lowered: frozenset[str] = frozenset()) -> None:
    """Nobody's spending and holds exceed the limit, and budget, usage and ledger agree by tenant.

    Args:
        rows: of the database.
        verdict: receives what was found.
        lowered: tenants whose limit was lowered below what was spent; only their sums are compared.
    """
    charged = _sums(
        rows.all(
            "SELECT r.tenant, SUM(s.amount_micro) FROM usage_records r "
            "JOIN usage_shares s USING (server_id, sequence, n) GROUP BY r.tenant"
        )
    )
    booked = _sums(
        rows.all(
            "SELECT a.tenant, -SUM(e.amount_micro) FROM ledger_entries e "
            "JOIN ledger_accounts a ON a.id = e.account_id WHERE a.kind = 'consumer' GROUP BY a.tenant"
        )
    )
    held = _sums(rows.all("SELECT tenant, SUM(held_micro) FROM reservations GROUP BY tenant"))
    budgets = rows.all("SELECT tenant, limit_micro, spent_micro, held_micro FROM budgets")
    over, wrong = [], []
    for tenant, limit, spent, on_hold in budgets:
        if spent + on_hold > limit and tenant not in lowered:
            over.append(f"{tenant}: {spent} spent and {on_hold} on hold of {limit}")
        books = {"budget": spent, "usage": charged.get(tenant, 0), "ledger": booked.get(tenant, 0)}
        if len(set(books.values())) > 1:
            wrong.append(f"{tenant}: {books}")
        if on_hold != held.get(tenant, 0):
            wrong.append(f"{tenant}: {on_hold} on hold, {held.get(tenant, 0)} of requests")
    if absent := (charged.keys() | booked.keys()) - {tenant for tenant, *_ in budgets}:
        wrong.append(f"charged without a budget: {sorted(absent)}")
    verdict.say(over, "overspent budgets")
    verdict.say(wrong, "budgets against usage and ledger")
    verdict.figures["spent, micro-credits"] = sum(charged.values())


def _sums(rows: list[tuple[object, ...]]) -> dict[str, int]:
    return {str(tenant): int(str(total or 0)) for tenant, total in rows}
