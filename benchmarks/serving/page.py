# SPDX-License-Identifier: Apache-2.0
"""The measured rows as Markdown and as a picture: ``python -m benchmarks.serving.page``.

Reads ``build/bench-serving.json`` and fills in what stands between the two marks of
``docs/benchmarks/serving.md``; the text around them is written by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.marked_page import fill, table
from benchmarks.report import BUILD, Row

PAGE = Path("docs/benchmarks/serving.md")
PICTURE = Path("docs/benchmarks/serving.svg")
_DECODE = "decode against "
# Heading to what names of its rows begin with; a row stands under the first that fits.
_SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Decoding against peers", (_DECODE,)),
    ("Decoding against memory", ("decode, share",)),
    ("Prefill", ("prefill, share", "prefill against")),
    ("The same texts", ("greedy",)),
    ("Many sets in one batch", ("decode, sixteen", "the same tokens", "experts that a step")),
    ("From 4 to 64 experts", ("prefill of", "decode alone", "decode of")),
    ("Streaming over HTTP", ("streaming",)),
    ("Else", ("",)),
)


def markdown(document: Mapping[str, Any]) -> str:
    """The rows as one table a section, with what they were measured on."""
    rows = [Row(**row) for row in document["rows"]]
    parts = [_measured_on(document), f"![new tokens per second]({PICTURE.name})"]
    for heading, starts in _SECTIONS:
        here = [row for row in rows if _section(row) == heading]
        if here and starts:
            parts.append(f"### {heading}\n\n{table(here)}")
    return "\n\n".join(parts)


def plot(document: Mapping[str, Any], path: Path) -> None:
    """Draws decoding against each peer, one bar a cell, as SVG without dates."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "serving"
    from matplotlib import pyplot as plt

    cells = decode_cells([Row(**row) for row in document["rows"]])
    figure, panel = plt.subplots(figsize=(8.0, 1.2 + 0.36 * len(cells)))
    names = list(dict.fromkeys(side for speeds in cells.values() for side in speeds))
    colours = dict(zip(names, ("#2f6f8f", "#d9a441", "#b0b7c3", "#8c6bb1", "#7fa37f"), strict=False))
    height = 0.8 / len(names)
    for turn, side in enumerate(names):
        places = [place + (turn + 0.5) * height - 0.4 for place, _ in enumerate(cells)]
        speeds = [found.get(side, 0.0) for found in cells.values()]
        panel.barh(places, speeds, height, color=colours[side], label=side)
    panel.set_yticks(range(len(cells)), list(cells), fontsize=7)
    panel.invert_yaxis()
    panel.set_xscale("log")
    panel.set_xlabel("new tokens per second", fontsize=8)
    panel.tick_params(axis="x", labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)


def decode_cells(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Cell to side to tokens per second."""
    cells: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.name.startswith(_DECODE) and row.peer is not None:
            peer, _, label = row.name.removeprefix(_DECODE).partition(", ")
            cells.setdefault(label, {"ours": row.ours})[peer] = row.peer
    return cells


def main() -> int:
    """Fills in the page and draws the picture; returns 1 if nothing was measured yet."""
    path = BUILD / "bench-serving.json"
    if not path.is_file():
        print(f"There is no {path}; run `make bench-serving` first.", file=sys.stderr)
        return 1
    document = json.loads(path.read_text())
    PAGE.write_text(fill(PAGE.read_text(), markdown(document)))
    plot(document, PICTURE)
    return 0


def _section(row: Row) -> str:
    return next(heading for heading, starts in _SECTIONS if row.name.startswith(starts))


def _measured_on(document: Mapping[str, Any]) -> str:
    machine, facts = document["machine"], document["facts"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    whole = "" if facts["whole"] else " Not every cell of the plan was measured."
    return (
        f"{machine['cores']} cores of a {machine['processor']} machine ({facts['capability']}), "
        f"{facts['threads']} threads a side, torch {machine['torch']}, {versions}, Python "
        f"{machine['python']}. Our side: {facts['arithmetic']}. Load at the end: {facts['load']:.1f}.{whole}"
    )


if __name__ == "__main__":
    sys.exit(main())
