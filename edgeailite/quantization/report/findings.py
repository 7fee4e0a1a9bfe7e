"""Warnings: ranges without data, outliers, the first place where the error shows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import fx

from edgeailite.quantization.modules.bias_fit import bias_fit
from edgeailite.quantization.report.entries import ActivationEntry, LayerEntry, Report

if TYPE_CHECKING:
    from edgeailite.quantization.modules.layer_calls import LayerCall

WEIGHT_OUTLIER_RATIO = 64.0
ACTIVATION_OUTLIER_RATIO = 8.0
CLIPPED_SHARE = 0.01
# Two bits of the weight.
COARSER = 4.0
MAX_ALIKE = 5
BREAK_DROP = 10.0
BREAK_BELOW = 20.0
POOR_SQNR = 10.0
# More than this cannot be told apart by what comes behind: a float input has no error at all.
_GOOD_SQNR = 40.0


def find_warnings(
    report: Report, calls: list[LayerCall], entries: dict[fx.Node, LayerEntry | ActivationEntry]
) -> list[str]:
    """Find all warnings, the ones that explain others first.

    Args:
        report: Its layers and activations are read.
        calls: Calls of the layers in the order of the graph.
        entries: The report's entry of each node that has one.
    """
    texts = [
        f"'{a.name}' has never seen data"
        for a in report.activations
        if not a.fixed and a.batches == 0
    ]
    broken = _first_break(entries)
    texts += [broken] if broken else []
    texts += _worst(map(_bias_warning, calls))
    texts += _worst(map(_coarse_weight_warning, calls))
    texts += _worst(map(_outlier_warning, report.activations))
    texts += _worst(map(_clipping_warning, report.activations))
    return texts + _worst(map(_weight_warning, calls))


def _worst(found: Iterable[tuple[float, str] | None]) -> list[str]:
    """Return the gravest warnings of one kind, and the number of the others."""
    texts = [text for _, text in sorted((f for f in found if f is not None), reverse=True)]
    more = len(texts) - MAX_ALIKE
    rest = [f"{more} more places like the {MAX_ALIKE} before: see the tables."] if more > 0 else []
    return texts[:MAX_ALIKE] + rest


def _outlier_warning(entry: ActivationEntry) -> tuple[float, str] | None:
    """Warn of a range that is much wider than nearly all values need."""
    limit = max(abs(v) for v in entry.limits)
    if not entry.percentile or limit <= ACTIVATION_OUTLIER_RATIO * entry.percentile:
        return None
    cause = "most of its fixed range is unused" if entry.fixed else "outliers set the scale"
    advice = (
        "a preset that finds ranges by statistics helps."
        if entry.fixed
        else "a range rule that leaves some values outside (range_shrink_activations, 'percentile' "
        "or 'mse') helps."
    )
    return limit / entry.percentile, (
        f"'{entry.name}': its range reaches {limit:.4g}, but 99.9 % of the values stay below "
        f"{entry.percentile:.4g}: {cause}; {advice}"
    )


def _clipping_warning(entry: ActivationEntry) -> tuple[float, str] | None:
    if entry.clipped is None or entry.clipped <= CLIPPED_SHARE:
        return None
    low, high = entry.limits
    return entry.clipped, (
        f"'{entry.name}': {100 * entry.clipped:.1f} % of the values lie outside of its range "
        f"[{low:.4g}, {high:.4g}]. Calibrate with data like this, or let the range leave less "
        "outside (range_shrink_activations)."
    )


def _bias_warning(call: LayerCall) -> tuple[float, str] | None:
    """Warn of biases that do not fit into their integers, which are cut at the largest ones."""
    fit = bias_fit(call)
    if fit is None or fit.num_cut == 0:
        return None
    return fit.num_cut / fit.num_biases, (
        f"'{fit.path}': {fit.num_cut} of {fit.num_biases} biases (up to {fit.largest:.4g}) do not "
        f"fit into {fit.bit_width} bits and are cut. Coarser weight scales (constrain_bias "
        "REDUCE_WEIGHT_SCALE) or wider biases help."
    )


def _coarse_weight_warning(call: LayerCall) -> tuple[float, str] | None:
    """Warn of a weight scale that is much coarser for the sake of the biases."""
    fit = bias_fit(call)
    if fit is None or fit.factor < COARSER:
        return None
    return fit.factor, (
        f"'{fit.path}': its weight scale is {fit.factor:.3g} times coarser, so that its biases (up "
        f"to {fit.largest:.4g}) fit into {fit.bit_width} bits. Wider biases help, where the target "
        "has them (constrain_bias NONE)."
    )


def _weight_warning(call: LayerCall) -> tuple[float, str] | None:
    """Warn of one scale for all channels that a few large weights make too coarse."""
    magnitudes = call.folded().weight.abs()
    largest, median = float(magnitudes.max()), float(magnitudes.median())
    if call.layer.weight_quantizer.spec.granularity != "per_tensor":
        return None
    if largest <= WEIGHT_OUTLIER_RATIO * median:
        return None
    ratio = largest / max(median, 1e-30)
    return ratio, (
        f"'{call.path}': its largest weight is {ratio:.0f} times the median: outliers set "
        "the scale. Per-channel weights (per_channel_q) or weight clipping help."
    )


def _first_break(entries: dict[fx.Node, LayerEntry | ActivationEntry]) -> str | None:
    """Find the first place with values far worse than those they are made from, or simply bad."""
    for node, entry in entries.items():
        found = _sqnr(entry)
        if found is None:
            continue
        before = [v for e in _predecessors(node, entries) if (v := _sqnr(e)) is not None]
        good = min([_GOOD_SQNR, *before])
        if found < BREAK_BELOW and good - found >= BREAK_DROP:
            more = " or more" if good == _GOOD_SQNR else ""
            return (
                f"'{entry.name}' is the first place where the error breaks in: {found:.1f} dB "
                f"against the float model, {good:.1f}{more} dB before it."
            )
        if found < POOR_SQNR:
            return (
                f"'{entry.name}' is the first place below {POOR_SQNR:.0f} dB against the float "
                f"model ({found:.1f} dB); the error grew step by step ({good:.1f} dB before it)."
            )
    return None


def _sqnr(entry: LayerEntry | ActivationEntry) -> float | None:
    return entry.output_sqnr if isinstance(entry, LayerEntry) else entry.sqnr


def _predecessors(
    node: fx.Node, entries: dict[fx.Node, LayerEntry | ActivationEntry]
) -> list[LayerEntry | ActivationEntry]:
    """Return the nearest measured places that a node's value is made from."""
    found, pending, seen = [], list(node.all_input_nodes), set()
    while pending:
        source = pending.pop()
        if source in seen:
            continue
        seen.add(source)
        if source in entries:
            found.append(entries[source])
        else:
            pending.extend(source.all_input_nodes)
    return found
