"""Report on a prepared model: its grids, and with data their errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.arithmetic.sqnr import sqnr
from edgeailite.quantization.graph.model import (
    GraphModel,
    graph_of,
    module_of,
    program_of,
    target_of,
)
from edgeailite.quantization.integer.conversion import grid_of
from edgeailite.quantization.integer.memory import estimate_memory
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer_calls import LayerCall, layer_calls
from edgeailite.quantization.report.entries import ActivationEntry, LayerEntry, Report
from edgeailite.quantization.report.findings import find_warnings
from edgeailite.quantization.report.measure import measure
from edgeailite.quantization.report.reasons import float_operations, operation_name
from edgeailite.quantization.report.size import model_size
from edgeailite.quantization.report.statistics import Statistics, histogram

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import QuantSpec
    from edgeailite.quantization.integer.grid import Grid

Entry = LayerEntry | ActivationEntry


def spec_words(spec: QuantSpec) -> str:
    """Describe a spec in a few words."""
    sign = {True: "int", False: "uint", None: "int?"}[spec.signed]
    parts = [f"{sign}{spec.bit_width}", spec.granularity.replace("per_", "per-")]
    parts += ["affine"] if not spec.symmetric else []
    parts += ["power-of-two"] if spec.power_of_two else ["free scale"]
    return " ".join(parts)


def describe(model: GraphModel) -> str:
    """Return :func:`build_report` without data, as text."""
    return str(build_report(model))


@torch.no_grad()
def build_report(wrapper: nn.Module, batches: Iterable[Tensor | tuple[Tensor, ...]] = ()) -> Report:
    """Report on a prepared model; it stays as it is.

    Args:
        wrapper: A wrapper, or the prepared model in it.
        batches: Inputs of the model, a tuple for several. With some, the values at each place are
            measured too: SQNR, histograms, clipping. They are read one by one, and memory does not
            grow with their number.

    Returns:
        The report.

    Raises:
        TypeError: `wrapper` holds no prepared model, or one that is converted to integers already.
        ValueError: A value is NaN or infinite on `batches`.
    """
    model = _prepared(wrapper)
    calls = {call.node: call for call in layer_calls(model)}
    quantizers = _quantizer_nodes(model)
    places = [node for node in graph_of(model).nodes if node in calls or node in quantizers]
    limits = {node: _limits(grid_of(quantizer)) for node, quantizer in quantizers.items()}
    batches = iter(batches)
    first = next(batches, None)
    shown = () if first is None else chain([first], batches)
    measured, num_inputs = measure(model, places, limits, shown)
    entries = _make_entries(model, places, calls, quantizers)
    for node, statistics in measured.items():
        _add_statistics(entries[node], statistics)
    report = Report(
        layers=[entry for entry in entries.values() if isinstance(entry, LayerEntry)],
        activations=[entry for entry in entries.values() if isinstance(entry, ActivationEntry)],
        floats=float_operations(model),
        size=model_size(model, list(calls.values()), quantizers.values()),
        num_inputs=num_inputs,
        post_training=list(getattr(wrapper, "post_training", ())),
    )
    report.warnings = find_warnings(report, list(calls.values()), entries)
    if first is not None:
        _add_memory(report, model, first)
    return report


def _add_memory(report: Report, model: GraphModel, batch: Tensor | tuple[Tensor, ...]) -> None:
    try:
        converted = target_of(model).convert(model)
        report.warnings += target_of(model).remarks(converted)
        report.memory = estimate_memory(converted, batch)
    except ValueError as error:
        report.warnings.append(f"the model has no integer graph: {error}")


def _prepared(wrapper: nn.Module) -> GraphModel:
    model = wrapper if isinstance(wrapper, GraphModel) else getattr(wrapper, "module", None)
    if not isinstance(model, GraphModel):
        raise TypeError(
            f"{type(wrapper).__name__} holds no quantized model. Give a wrapper (QuantTrainModule, "
            "QATFxModule, ...), or its .module."
        )
    if program_of(model).stage == "integer":
        raise TypeError(
            f"{type(wrapper).__name__} is converted to integers; report on the wrapper that it was "
            "converted from."
        )
    return model


def _quantizer_nodes(model: GraphModel) -> dict[fx.Node, FakeQuantize]:
    found = ((node, module_of(model, node)) for node in graph_of(model).nodes)
    return {node: module for node, module in found if isinstance(module, FakeQuantize)}


def _limits(grid: Grid) -> tuple[float, float]:
    """Ends of a grid as real values."""
    low, high = grid.quant_min - grid.zero_point, grid.quant_max - grid.zero_point
    return low * grid.scale, high * grid.scale


def _make_entries(
    model: GraphModel,
    places: list[fx.Node],
    calls: dict[fx.Node, LayerCall],
    quantizers: dict[fx.Node, FakeQuantize],
) -> dict[fx.Node, Entry]:
    """Entries of layers and quantizers in the order of the graph, without data."""
    counts: Counter[str] = Counter()
    entries: dict[fx.Node, Entry] = {}
    for position, node in enumerate(places, start=1):
        counts[str(node.target)] += 1
        number = counts[str(node.target)]
        if node in calls:
            entries[node] = _layer_entry(model, calls[node], position, number)
        else:
            entries[node] = _activation_entry(node, quantizers[node], position, number)
    return entries


def _layer_entry(model: GraphModel, call: LayerCall, position: int, number: int) -> LayerEntry:
    weight, bias, scales = call.folded()
    quantized, quantized_bias = call.quantized_parameters()
    spec = call.layer.weight_quantizer.spec
    low, high, scale = float(weight.min()), float(weight.max()), float(scales.max())
    limits = spec.quant_min * scale, spec.quant_max * scale
    has_bias_grid = call.input_quantizer is not None
    return LayerEntry(
        position=position,
        path=call.path,
        call=number,
        kind=operation_name(model, call.node),
        weight_spec=spec_words(replace(spec, signed=True)),
        weight_max=float(weight.abs().max()),
        weight_sqnr=sqnr(weight, quantized),
        weight_range=(low, high),
        weight_limits=limits,
        weight_histogram=histogram(weight, min(low, limits[0]), max(high, limits[1])),
        num_weights=weight.numel(),
        bias_sqnr=_bias_sqnr(bias, quantized_bias) if has_bias_grid else None,
    )


def _bias_sqnr(bias: Tensor | None, quantized: Tensor | None) -> float | None:
    return None if bias is None or quantized is None else sqnr(bias, quantized)


def _activation_entry(
    node: fx.Node, quantizer: FakeQuantize, position: int, number: int
) -> ActivationEntry:
    low, high = (float(v) for v in quantizer.clips_act)
    grid = grid_of(quantizer)
    return ActivationEntry(
        position=position,
        path=str(node.target),
        call=number,
        spec=spec_words(replace(quantizer.spec, signed=grid.signed)),
        range=(low, high),
        limits=_limits(grid),
        scale=grid.scale,
        batches=int(quantizer.num_batches_tracked) + 1,
        fixed=quantizer.spec.fixed_range is not None,
    )


def _add_statistics(entry: Entry, seen: Statistics) -> None:
    if isinstance(entry, LayerEntry):
        entry.output_sqnr = seen.sqnr
        return
    entry.values = (seen.low, seen.high)
    entry.percentile = seen.percentile
    entry.histogram = seen.histogram(entry.limits)
    entry.clipped = seen.num_clipped / seen.count
    entry.grid_sqnr, entry.sqnr = seen.own_sqnr, seen.sqnr
