# SPDX-License-Identifier: Apache-2.0
"""Geometry of the loss curves: points in, lines and ticks for an inline SVG out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

WIDTH = 640
HEIGHT = 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """A labelled place on an axis, in pixels."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One curve, ready to be drawn.

    Attributes:
        name: what is drawn.
        line: the polyline's points attribute.
        first: value at the first step.
        last: value at the last step.
        lowest: smallest value.
        last_step: where it ends.
        x_ticks: steps.
        y_ticks: values.
        table: a few (step, value) rows that say the same in numbers.
    """

    name: str
    line: str
    first: float
    last: float
    lowest: float
    last_step: int
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    table: tuple[tuple[int, float], ...]


def curve_chart(points: Iterable[Mapping[str, Any]]) -> list[Chart]:
    """One chart per curve name, in the order of names; curves without two finite points are left out."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        value = float(point["value"])
        if math.isfinite(value):
            curves.setdefault(str(point["name"]), []).append((int(point["step"]), value))
    return [_chart(name, sorted(curve)) for name, curve in sorted(curves.items()) if len(curve) > 1]


def _chart(name: str, curve: list[tuple[int, float]]) -> Chart:
    steps = [step for step, _ in curve]
    values = [value for _, value in curve]
    low, high = min(values), max(values)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    first_step, last_step = steps[0], max(steps[-1], steps[0] + 1)

    def x(step: float) -> float:
        return _LEFT + (step - first_step) / (last_step - first_step) * (WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    stride = max(1, len(curve) // 8)
    return Chart(
        name=name,
        line=" ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in curve),
        first=values[0],
        last=values[-1],
        lowest=min(values),
        last_step=steps[-1],
        x_ticks=tuple(_tick(x, step) for step in _round_ticks(first_step, last_step)),
        y_ticks=tuple(_tick(y, value) for value in _round_ticks(low, high)),
        table=tuple(curve[place] for place in sorted({*range(0, len(curve), stride), len(curve) - 1})),
    )


def _tick(place: Callable[[float], float], value: float) -> Tick:
    return Tick(at=round(place(value), 1), label=f"{value:g}")


def _round_ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two bounds."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step) * step
    count = math.floor((high - first) / step + 1e-9) + 1
    return [round(first + place * step, 12) for place in range(count)]
