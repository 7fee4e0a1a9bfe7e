"""Shapes of the report's charts: numbers for SVG, no markup."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from edgeailite.quantization.report.entries import Histogram, Report

HISTOGRAM_HEIGHT = 24
# What an SQNR axis can show; an exact value stands at its top, one that is worse at its bottom.
LOWEST_DB, HIGHEST_DB = -20.0, 80.0


class HistogramShape(NamedTuple):
    """Histogram, one wide for each bin and :data:`HISTOGRAM_HEIGHT` high.

    Attributes:
        path: Outline of the bars; their heights grow with the logarithm of the counts.
        width: Number of bins.
        grid_start: Start of the grid's range.
        grid_width: Width of the grid's range.
    """

    path: str
    width: int
    grid_start: float
    grid_width: float


def histogram_shape(histogram: Histogram, limits: tuple[float, float]) -> HistogramShape:
    """Make the shape of a histogram with a grid's range in it.

    Args:
        histogram: Covers `limits`.
        limits: Ends of the grid.
    """
    low, high, counts = histogram
    tallest = math.log1p(max(counts))
    heights = [
        max(1, round(HISTOGRAM_HEIGHT * math.log1p(c) / tallest)) if c else 0 for c in counts
    ]
    bars = "".join(f"V{HISTOGRAM_HEIGHT - h}h1" for h in heights)
    start, end = ((v - low) / (high - low) * len(counts) for v in limits)
    path = f"M0 {HISTOGRAM_HEIGHT}{bars}V{HISTOGRAM_HEIGHT}z"
    return HistogramShape(path, len(counts), round(start, 1), round(end - start, 1))


class Point(NamedTuple):
    """Value in a chart: its place, its row in the tables, and its label."""

    x: float
    y: float
    position: int
    words: str


@dataclass(frozen=True)
class DepthChart:
    """SQNR over the order of the graph, in the units of an SVG.

    Attributes:
        width: Width of the drawing.
        height: Height of the drawing.
        ticks: ``(y, dB)`` of the horizontal lines.
        values: Layer outputs and activations against the float model.
        weights: Weights on their grids.
    """

    width: int
    height: int
    ticks: list[tuple[float, int]]
    values: list[Point]
    weights: list[Point]

    @property
    def line(self) -> str:
        """Points of the line that connects the values."""
        return " ".join(f"{p.x:g},{p.y:g}" for p in self.values)


def depth_chart(report: Report, height: int = 240, left: int = 40, margin: int = 14) -> DepthChart:
    """Place every SQNR of a report.

    Args:
        report: With or without data; without, there are only weights.
        height: Height of the drawing.
        left: Room for the axis' labels.
        margin: Room on the other sides.
    """
    values = [(e.position, e.name, e.output_sqnr) for e in report.layers]
    values += [(e.position, e.name, e.sqnr) for e in report.activations]
    measured = sorted((p, n, v) for p, n, v in values if v is not None)
    weights = [(e.position, e.name, e.weight_sqnr) for e in report.layers]
    shown = [max(LOWEST_DB, min(HIGHEST_DB, v)) for _, _, v in (*measured, *weights)]
    bottom = 10 * math.floor(min([0.0, *shown]) / 10)
    top = 10 * math.ceil(max([40.0, *shown]) / 10)
    count = max(len(values), 1)
    spacing = max(5.0, min(40.0, (960 - left - margin) / count))

    def y(value: float) -> float:
        part = (max(bottom, min(top, value)) - bottom) / (top - bottom)
        return round(height - margin - part * (height - 2 * margin), 1)

    def point(position: int, name: str, value: float) -> Point:
        x = round(left + (position - 0.5) * spacing, 1)
        words = "exact" if math.isinf(value) else f"{value:.1f} dB"
        return Point(x, y(value), position, f"{name}: {words}")

    return DepthChart(
        width=max(960, math.ceil(left + count * spacing + margin)),
        height=height,
        ticks=[(y(db), db) for db in range(bottom, top + 1, 10)],
        values=[point(*entry) for entry in measured],
        weights=[point(*entry) for entry in weights],
    )
