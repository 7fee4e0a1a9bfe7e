"""Report as one HTML file that needs no other file and no network."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeailite._extras import needs_extra
from edgeailite.files.atomic import write_atomically
from edgeailite.quantization.report.findings import BREAK_BELOW, POOR_SQNR
from edgeailite.quantization.report.svg import HISTOGRAM_HEIGHT, depth_chart, histogram_shape

if TYPE_CHECKING:
    from edgeailite.quantization.report.entries import ActivationEntry, LayerEntry, Report

TEMPLATE = "report.html.jinja"
NUM_WORST = 5


class Card(NamedTuple):
    """One number of the summary with its label and a remark."""

    label: str
    value: str
    note: str = ""


class Worst(NamedTuple):
    """Entries with the lowest SQNR."""

    title: str
    entries: list[tuple[LayerEntry | ActivationEntry, float]]


def write_html(
    report: Report, path: str | os.PathLike[str], title: str = "Quantization report"
) -> Path:
    """Write a report as a self-contained HTML file; it appears whole or not at all.

    Args:
        report: From :func:`build_report`.
        path: File to write; folders that are missing are made.
        title: Title of the page, the model's name for example.

    Returns:
        `path`.
    """
    with write_atomically(path) as temporary:
        temporary.write_text(render_html(report, title), encoding="utf-8")
    return Path(path)


def render_html(report: Report, title: str = "Quantization report") -> str:
    """Render the content of the file that :func:`write_html` writes."""
    with needs_extra("report", "The HTML report"):
        import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgeailite.quantization.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        db=decibel_words, quality=quality, percent=percent_words, number=number_words
    )
    return environment.get_template(TEMPLATE).render(
        title=title,
        report=report,
        cards=summary(report),
        worst=worst(report),
        chart=depth_chart(report),
        shape=histogram_shape,
        histogram_height=HISTOGRAM_HEIGHT,
        poor=POOR_SQNR,
        fair=BREAK_BELOW,
    )


def number_words(value: float | None) -> str:
    """Render a number in four digits; a dash for None."""
    return "\N{EN DASH}" if value is None else f"{value:.4g}"


def decibel_words(value: float | None) -> str:
    """Render an SQNR in dB; a dash for None."""
    if value is None:
        return "\N{EN DASH}"
    return "exact" if value == math.inf else f"{value:.1f}"


def percent_words(value: float | None) -> str:
    """Render a share in percent; a dash for None."""
    if value is None:
        return "\N{EN DASH}"
    return "0" if value == 0 else f"{100 * value:.2g}"


def quality(value: float | None) -> str:
    """Return the class of a table cell for an SQNR: ``poor``, ``fair`` or nothing."""
    if value is None or value >= BREAK_BELOW:
        return ""
    return "poor" if value < POOR_SQNR else "fair"


def size_words(num_bytes: int) -> str:
    """Render a size in the unit that keeps it short."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1000  # type: ignore[assignment]
    return f"{num_bytes:.4g} GB"


def summary(report: Report) -> list[Card]:
    """Return the numbers at the top."""
    layers, (float_bytes, quantized_bytes) = report.layers, report.size
    kinds = Counter(e.kind for e in layers)
    times = f"{float_bytes / quantized_bytes:.1f} times less than " if quantized_bytes else ""
    saving = f"{times}{size_words(float_bytes)} in float32"
    cards = [
        Card("Quantized layers", str(len(layers)), ", ".join(f"{n} {k}" for k, n in kinds.items())),
        Card("Weights", *_most_common(e.weight_spec for e in layers)),
        Card("Activations", *_most_common(e.spec for e in report.activations)),
        Card("Parameters", size_words(quantized_bytes), saving),
        Card("Stays in float", str(len(report.floats)), "operations"),
        Card("Warnings", str(len(report.warnings))),
    ]
    if report.memory is not None:
        note = f"RAM {size_words(report.memory.ram)} at '{report.memory.peak}', for one input"
        cards.insert(4, Card("Flash", size_words(report.memory.flash), note))
    if report.num_inputs:
        measured = [(e.position, e.output_sqnr) for e in layers]
        measured += [(e.position, e.sqnr) for e in report.activations]
        last = max(measured, default=(0, None))[1]
        note = f"last value against float, on {report.num_inputs} inputs"
        cards.insert(4, Card("SQNR at the end", f"{decibel_words(last)} dB", note))
    return cards


def _most_common(specs: Iterable[str]) -> tuple[str, str]:
    """Bits of the most common grid, and a remark with its other words and the other grids."""
    counts = Counter(specs).most_common()
    if not counts:
        return "none", ""
    bits, _, rest = counts[0][0].partition(" ")
    others = [f"{spec} ({count})" for spec, count in counts[1:]]
    return bits, "; ".join([f"{rest} ({counts[0][1]})", *others])


def worst(report: Report) -> list[Worst]:
    """List the worst places; lists without entries are left out."""
    weights = [(e, e.weight_sqnr) for e in report.layers]
    grids = [(e, e.grid_sqnr) for e in report.activations if e.grid_sqnr is not None]
    outputs = [(e, e.output_sqnr) for e in report.layers if e.output_sqnr is not None]
    lists: dict[str, list[Any]] = {
        "Layer outputs farthest from float": outputs,
        "Weights with the coarsest grids": weights,
        "Activation grids that add most noise": grids,
    }
    return [
        Worst(title, sorted(found, key=lambda pair: pair[1])[:NUM_WORST])
        for title, found in lists.items()
        if found
    ]
