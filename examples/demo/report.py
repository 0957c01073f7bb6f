# SPDX-License-Identifier: Apache-2.0
"""Draws the demo's results as one self-contained HTML page (inline SVG, no script, no request)."""

from __future__ import annotations

import html
import io
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.demo.results import Bits, Results

_INK = "#22303c"
_COLOURS = ("#2a6f97", "#c8553d", "#588157", "#8e6c8a", "#b08900", "#4a4e69", "#7f5539")
_STYLE = """
:root{color-scheme:light;--ink:#22303c;--soft:#5f6f7a;--line:#dfe5e8;--paper:#fbfaf7}
body{margin:0 auto;max-width:68rem;padding:2.5rem 1.5rem 5rem;background:var(--paper);color:var(--ink);
font:16px/1.55 Georgia,'Times New Roman',serif}
h1{font-size:2rem;margin:0 0 .3rem}h2{font-size:1.3rem;margin:2.6rem 0 .4rem}
p{max-width:44rem}table{border-collapse:collapse;width:100%;font:14px/1.4 system-ui,sans-serif;margin:.6rem 0}
caption{text-align:left;color:var(--soft);padding:.2rem 0}th,td{border-bottom:1px solid var(--line);
padding:.35rem .6rem;text-align:left;vertical-align:top}td.n,th.n{text-align:right;
font-variant-numeric:tabular-nums}
tr.yes td:first-child::before{content:"✓ ";color:#3a7d44}svg{max-width:100%;height:auto}
.lead{font-size:1.1rem;color:var(--soft)}.better{color:#2d6a3e}.worse{color:#a4371f}
"""
_LEAD = (
    "<p class='lead'>Four owners trained experts alone on their own text. Permissions said who may answer. "
    "One owner left while requests ran. Everybody was paid for what was used.</p>"
)
_WITHDRAWAL = (
    "<p>Every line is one open stream; a mark is a chunk of tokens. At the vertical line the owner of "
    "<b>{name}</b> withdrew consent with one request.</p>"
)
_CAPTION = (
    "<caption>Mean over all bytes; in brackets the 95 % interval of the difference to the base "
    "(bootstrap over documents).</caption>"
)


def write_report(results: Results, path: Path) -> None:
    """Writes the page to ``path``."""
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<title>Expert marketplace: what the demo did</title>",
        f"<style>{_STYLE}</style><h1>What the demo did</h1>",
        _LEAD,
        "<h2>Training, each owner alone</h2>",
        _figure(lambda axes: _losses(axes, results)),
        "<h2>Bits per byte on held-out documents (lower is better)</h2>",
        _figure(lambda axes: _bars(axes, results), height=4.2),
        bits_table(results),
        "<h2>Who may answer, and why not</h2>",
        _verdicts(results),
        "<h2>A withdrawal while requests run</h2>",
        _WITHDRAWAL.format(name=html.escape(results.withdrawn)),
        _figure(lambda axes: _streams(axes, results), height=4.6),
        "<h2>Tokens and money per expert</h2>",
        _money(results),
        "<h2>What was checked</h2>",
        _proofs(results),
        "<h2>Where the time went</h2>",
        _times(results),
        "</html>",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts), encoding="utf-8")


def bits_table(results: Results) -> str:
    """The table of bits per byte as HTML."""
    models = list(dict.fromkeys(model for row in results.bits.values() for model in row))
    head = "".join(f"<th class='n' scope='col'>{html.escape(model)}</th>" for model in models)
    rows = [
        f"<tr><th scope='row'>{html.escape(domain)}</th>"
        + "".join(f"<td class='n'>{_bits_cell(row.get(model))}</td>" for model in models)
        + "</tr>"
        for domain, row in results.bits.items()
    ]
    return f"<table>{_CAPTION}<tr><th scope='col'>domain</th>{head}</tr>{''.join(rows)}</table>"


def _bits_cell(bits: Bits | None) -> str:
    if bits is None:
        return ""
    if bits.delta_low == bits.delta_high == 0.0:
        return f"{bits.mean:.3f}"
    kind = "better" if bits.delta_high < 0 else "worse" if bits.delta_low > 0 else ""
    interval = f"[{bits.delta_low:+.3f}, {bits.delta_high:+.3f}]"
    return f"<span class='{kind}'>{bits.mean:.3f}</span><br><small>{interval}</small>"


def _figure(draw: Callable[[Axes], None], *, height: float = 3.4) -> str:
    figure = Figure(figsize=(10, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=9)
    draw(axes)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _losses(axes: Axes, results: Results) -> None:
    for colour, (name, points) in zip(_COLOURS, results.losses.items(), strict=False):
        steps, losses = zip(*points, strict=True) if points else ((), ())
        axes.plot(steps, _smooth(losses), color=colour, label=name, linewidth=1.6)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss (nats per token)")
    axes.legend(frameon=False, fontsize=9)


def _smooth(values: tuple[float, ...], weight: float = 0.85) -> list[float]:
    smoothed: list[float] = []
    for value in values:
        smoothed.append(value if not smoothed else weight * smoothed[-1] + (1 - weight) * value)
    return smoothed


def _bars(axes: Axes, results: Results) -> None:
    chosen = ("base", "composition", "after withdrawal")
    domains = list(results.bits)
    width = 0.8 / len(chosen)
    for index, (model, colour) in enumerate(zip(chosen, ("#9aa5ad", "#2a6f97", "#c8553d"), strict=True)):
        found = [results.bits[domain].get(model) for domain in domains]
        places = [place + (index - 1) * width for place in range(len(domains))]
        axes.bar(places, [bits.mean if bits else 0.0 for bits in found], width, color=colour, label=model)
    axes.set_xticks(range(len(domains)), domains)
    axes.set_ylabel("bits per byte")
    axes.legend(frameon=False, fontsize=9, ncols=3)


def _streams(axes: Axes, results: Results) -> None:
    for trace in results.streams:
        before = [at for at in trace.arrivals_s if at <= results.withdrawn_at_s]
        after = [at for at in trace.arrivals_s if at > results.withdrawn_at_s]
        axes.plot(before, [trace.index] * len(before), "|", color="#2a6f97", markersize=5)
        axes.plot(after, [trace.index] * len(after), "|", color="#c8553d", markersize=5)
    axes.axvline(results.withdrawn_at_s, color=_INK, linewidth=1)
    axes.set_xlabel("seconds since the first stream was opened")
    axes.set_ylabel("stream")


def _verdicts(results: Results) -> str:
    rows = [
        f"<tr class='{'yes' if verdict == 'permit' else 'no'}'><td>{html.escape(expert)}</td>"
        f"<td>{html.escape(deployment)}</td><td>{html.escape(verdict)}</td><td>{html.escape(sentence)}</td></tr>"
        for deployment, experts in results.verdicts.items()
        for expert, (verdict, sentence) in experts.items()
    ]
    return (
        "<table><tr><th>expert</th><th>deployment</th><th>verdict</th><th>reason</th></tr>"
        f"{''.join(rows)}</table>"
    )


def _money(results: Results) -> str:
    if not results.money:
        return ""
    columns = list(results.money[0])
    head = "".join(
        f"<th class='{'n' if index else ''}'>{html.escape(name)}</th>" for index, name in enumerate(columns)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td class='{'n' if index else ''}'>{html.escape(str(row[name]))}</td>"
            for index, name in enumerate(columns)
        )
        + "</tr>"
        for row in results.money
    )
    return f"<table><tr>{head}</tr>{rows}</table>"


def _proofs(results: Results) -> str:
    rows = "".join(
        f"<tr class='yes'><td>{html.escape(claim)}</td><td>{html.escape(evidence)}</td></tr>"
        for claim, evidence in results.proofs
    )
    return f"<table><tr><th>claim</th><th>evidence</th></tr>{rows}</table>"


def _times(results: Results) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(phase)}</td><td class='n'>{seconds:.1f} s</td></tr>"
        for phase, seconds in results.timings_s.items()
    )
    return f"<table><tr><th>phase</th><th class='n'>time</th></tr>{rows}</table>"
