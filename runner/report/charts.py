"""Curves of a problem over its steps, laid out for a drawing in the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from classifier_lens.runner.report.wording import format_number


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, in the drawing's units, and its text."""

    position: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A curve over steps, laid out for a drawing of `TABLE_WIDTH` x `HEIGHT` units."""

    title: str
    summary: str
    points: str
    x: list[Tick]
    y: list[Tick]
    best: Tick | None
    best_point: tuple[float, float] | None

    WIDTH = 340
    HEIGHT = 168
    LEFT, RIGHT, TOP, BOTTOM = 42, 330, 30, 134


def charts(record: Mapping[str, Any], target: str) -> list[Chart]:
    """The loss and the target's confidence over steps, where the record kept two steps or more."""
    best = record.get("best_step")
    loss = _series(record, "total")
    confidence = _series(record, "confidence")
    result = []
    if len(loss) > 1:
        low, high = min(y for _, y in loss), max(y for _, y in loss)
        margin = 0.06 * (high - low) or 0.5
        base = 0.0 if 0 <= low < 0.25 * high else low - margin
        result.append(make_chart("Total loss", loss, (base, high + margin), best))
    if len(confidence) > 1:
        title = f"Confidence in {target}" if target else "Confidence"
        result.append(make_chart(title, confidence, (0.0, 1.0), best))
    return result


def _series(record: Mapping[str, Any], key: str) -> list[tuple[float, float]]:
    """(step, value) for the steps whose value is a finite number."""
    rows = [(row.get("step"), row.get(key)) for row in record.get("history") or []]
    return [
        (float(x), float(y))
        for x, y in rows
        if isinstance(x, (int, float)) and isinstance(y, (int, float)) and math.isfinite(y)
    ]


def make_chart(title: str, points: Sequence[tuple[float, float]], y_range: tuple[float, float], best: Any) -> Chart:
    """Lay out a curve of two points or more, (step, value) in order.

    `y_range` is what the value's axis covers, `best` a step to mark.
    """
    first, last = points[0][0], points[-1][0]
    low, high = y_range
    width, height = Chart.RIGHT - Chart.LEFT, Chart.BOTTOM - Chart.TOP

    def across(x: float) -> float:
        return round(Chart.LEFT + width * (x - first) / (last - first), 1)

    def down(y: float) -> float:
        return round(Chart.BOTTOM - height * (y - low) / (high - low), 1)

    ends = [format_number(y) for _, y in (points[0], points[-1])]
    marked = next(((x, y) for x, y in points if x == best), None)
    return Chart(
        title=title,
        summary=f"{title} over {len(points)} steps, from {ends[0]} to {ends[1]}",
        points=" ".join(f"{across(x)},{down(y)}" for x, y in points),
        x=[Tick(across(x), f"{x:g}") for x in ticks(first, last, 6) if x == round(x)],
        y=[Tick(down(y), f"{y:.4g}") for y in ticks(low, high, 5)],
        best=Tick(across(marked[0]), f"{marked[0]:g}") if marked else None,
        best_point=(across(marked[0]), down(marked[1])) if marked else None,
    )


def ticks(low: float, high: float, max_ticks: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high], at most `max_ticks` of them."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / max_ticks))
    for spacing in (power * factor for factor in (1, 2, 5, 10, 20)):
        first, last = math.ceil(low / spacing - 1e-9), math.floor(high / spacing + 1e-9)
        if last - first < max_ticks:
            return [i * spacing for i in range(first, last + 1)]
    raise AssertionError((low, high, max_ticks))
