# SPDX-License-Identifier: Apache-2.0
"""Prints the three tables that the demo ends with."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from examples.demo.results import Bits, Results


def print_tables(console: Console, results: Results) -> None:
    """Bits per byte, permissions, and money."""
    console.print(_bits(results))
    console.print(_verdicts(results))
    console.print(_money(results))


def _bits(results: Results) -> Table:
    models = list(dict.fromkeys(model for row in results.bits.values() for model in row))
    table = Table(title="Bits per byte on held-out documents (lower is better)", title_justify="left")
    table.add_column("domain")
    for model in models:
        table.add_column(model, justify="right")
    for domain, row in results.bits.items():
        table.add_row(domain, *(_cell(row.get(model)) for model in models))
    return table


def _cell(bits: Bits | None) -> str:
    if bits is None:
        return ""
    if bits.delta_low == bits.delta_high == 0:
        return f"{bits.mean:.3f}"
    colour = "green" if bits.delta_high < 0 else "red" if bits.delta_low > 0 else "default"
    return f"[{colour}]{bits.mean:.3f}[/]\n[dim]{bits.delta_low:+.3f} … {bits.delta_high:+.3f}[/]"


def _verdicts(results: Results) -> Table:
    table = Table(title="Who was permitted, and why not", title_justify="left")
    for name in ("endpoint", "expert", "verdict", "reason"):
        table.add_column(name, overflow="fold")
    for endpoint, experts in results.verdicts.items():
        for expert, (verdict, sentence) in experts.items():
            table.add_row(
                endpoint, expert, "[green]permit[/]" if verdict == "permit" else "[red]deny[/]", sentence
            )
    return table


def _money(results: Results) -> Table:
    table = Table(title="Tokens and money per expert", title_justify="left")
    if results.money:
        for index, name in enumerate(results.money[0]):
            table.add_column(name, justify="right" if index else "left")
        for row in results.money:
            table.add_row(*(str(value) for value in row.values()))
    return table
