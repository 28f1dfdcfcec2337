"""Line charts as plain geometry, for the report's template to draw as SVG: scaled points, ticks and
labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 24  # margins
_SMOOTHED = 9  # steps

Number = int | float
Point = tuple[Number, Number]


@dataclass(frozen=True)
class Curve:
    """One curve: the values as they are, and their running mean."""

    name: str
    raw: str
    smooth: str
    last: str


@dataclass(frozen=True)
class Chart:
    """A titled set of curves over steps; ticks are (position, label)."""

    title: str
    lines: list[Curve]
    x_ticks: list[tuple[Number, str]]
    y_ticks: list[tuple[Number, str]]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


def make_chart(title: str, curves: Mapping[str, Sequence[Point]]) -> Chart | None:
    """Curves of (step, value); values that are not finite are left out. None if nothing remains."""
    finite = {
        name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in curves.items()
    }
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return None
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points]
    x_ticks, y_ticks = nice_ticks(min(xs), max(xs)), nice_ticks(min(ys), max(ys))
    x_of = _scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y_of = _scale(min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys)), HEIGHT - BOTTOM, TOP)

    def path(points: Sequence[Point]) -> str:
        return " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)

    return Chart(
        title,
        [
            Curve(name, path(p), path(running_mean(p)), f"{running_mean(p)[-1][1]:.4g}")
            for name, p in finite.items()
        ],
        [(round(x_of(t), 1), f"{t:g}") for t in x_ticks if min(xs) <= t <= max(xs)],
        [(round(y_of(t), 1), f"{t:.6g}") for t in y_ticks],
    )


def nice_ticks(low: Number, high: Number, number: int = 4) -> list[Number]:
    """About so many round values that span ``low`` to ``high``."""
    if high <= low:
        pad = abs(low) * 0.05 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / number
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def running_mean(points: Sequence[Point], window: int = _SMOOTHED) -> list[Point]:
    """Mean over up to ``window`` values around each point, fewer at the ends."""
    half = window // 2
    means = []
    for i, (x, _) in enumerate(points):
        near = points[max(0, i - half) : i + half + 1]
        means.append((x, sum(y for _, y in near) / len(near)))
    return means


def _scale(low: Number, high: Number, start: Number, end: Number) -> Callable[[Number], Number]:
    span = (high - low) or 1.0
    return lambda value: start + (end - start) * (value - low) / span
