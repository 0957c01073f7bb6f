# SPDX-License-Identifier: Apache-2.0
"""The measured tables as Markdown and the gap as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.composition.figures import BASE, OWN
from benchmarks.composition.tables import SizeTable
from benchmarks.composition.texts import PUBLIC
from benchmarks.composition.variants import GATES, ROWS, TITLES, TUNED
from model_core.evaluation.intervals import Interval

_COLOURS = {ROWS: "#b0b7c3", TUNED: "#d9a441", GATES: "#2f6f8f"}


def markdown(tables: Sequence[SizeTable]) -> str:
    """One table of losses and one of gaps a size."""
    return "\n\n".join(f"{_losses(table)}\n\n{_gaps(table)}" for table in tables) + "\n"


def _losses(table: SizeTable) -> str:
    models = (BASE, OWN, *table.variants)
    titles = {BASE: "base", OWN: "owner's own model", **TITLES}
    lines = [
        f"**{table.size} parameters, loss** (bits per byte)",
        "",
        "| domain | " + " | ".join(titles[model] for model in models) + " |",
        "|---|" + "--:|" * len(models),
    ]
    for domain in (*table.owners, PUBLIC):
        cells = [
            "-" if (model, domain) == (OWN, PUBLIC) else f"{table.losses[model, domain].value:.3f}"
            for model in models
        ]
        lines.append(f"| {domain} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _gaps(table: SizeTable) -> str:
    lines = [
        f"**{table.size} parameters, gap** (bits per byte over the owner's own model, 95 % intervals)",
        "",
        "| domain | " + " | ".join(TITLES[variant] for variant in table.variants) + " |",
        "|---|" + "--:|" * len(table.variants),
    ]
    for owner in (*table.owners, ""):
        cells = [_figure(table.gaps[variant, owner], signed=True) for variant in table.variants]
        lines.append(f"| {owner or 'mean'} | " + " | ".join(cells) + " |")
    closed = ["-" if variant == ROWS else _percent(table.closed[variant]) for variant in table.variants]
    public = [_figure(table.public[variant]) for variant in table.variants]
    lines.append("| share of the gap closed | " + " | ".join(closed) + " |")
    lines.append("| public text, loss over the base's | " + " | ".join(public) + " |")
    return "\n".join(lines)


def _figure(figure: Interval, *, signed: bool = False) -> str:
    value = f"{figure.value:+.3f}" if signed else f"{figure.value:.3f}"
    return f"{value} [{figure.low:.3f}, {figure.high:.3f}]"


def _percent(figure: Interval) -> str:
    return f"{figure.value:.0%} [{figure.low:.0%}, {figure.high:.0%}]"


def plot(tables: Sequence[SizeTable], path: Path) -> None:
    """Draws every domain's gap under every variant, one panel a size, as SVG without dates."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "composition"
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        1, len(tables), figsize=(4.2 * len(tables), 3.0), sharey=True, squeeze=False
    )
    for panel, table in zip(panels[0], tables, strict=True):
        names = [*table.owners, ""]
        width = 0.8 / len(table.variants)
        for turn, variant in enumerate(table.variants):
            gaps = [table.gaps[variant, name] for name in names]
            values = [gap.value for gap in gaps]
            ends = [
                [max(0.0, gap.value - gap.low) for gap in gaps],
                [max(0.0, gap.high - gap.value) for gap in gaps],
            ]
            places = [place + (turn + 0.5) * width - 0.4 for place in range(len(names))]
            panel.bar(
                places,
                values,
                width,
                yerr=ends,
                color=_COLOURS[variant],
                label=TITLES[variant],
                error_kw={"lw": 0.7},
            )
        panel.set_xticks(range(len(names)), [name or "mean" for name in names], fontsize=8)
        panel.set_title(f"{table.size} parameters", fontsize=9)
        panel.axhline(0, color="black", lw=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("bits per byte over\nthe owner's own model", fontsize=8)
    panels[0][0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
