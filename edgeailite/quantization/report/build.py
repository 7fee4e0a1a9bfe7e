"""A prepared model, looked at: what became of it, and with data how well that went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.arithmetic.spec import QuantSpec
from edgeailite.quantization.arithmetic.sqnr import sqnr
from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.integer.conversion import COMPUTES_INTEGERS, convert, grid_of
from edgeailite.quantization.integer.memory import estimate_memory
from edgeailite.quantization.integer.operators import Grid
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer_calls import LayerCall, layer_calls
from edgeailite.quantization.report.entries import (
    ActivationEntry,
    LayerEntry,
    ModelSize,
    Report,
)
from edgeailite.quantization.report.findings import find_warnings
from edgeailite.quantization.report.measure import Statistics, histogram, measure
from edgeailite.quantization.report.reasons import float_operations, operation_name
from edgeailite.quantization.targets.tinpu.conversion import convert_fixed_point


def spec_words(spec: QuantSpec) -> str:
    """A spec in a few words."""
    sign = {True: "int", False: "uint", None: "int?"}[spec.signed]
    parts = [f"{sign}{spec.bit_width}", spec.granularity.replace("per_", "per-")]
    parts += ["affine"] if not spec.symmetric else []
    parts += ["power-of-two"] if spec.power_of_two else ["free scale"]
    return " ".join(parts)


def describe(model: GraphModel) -> str:
    """:func:`build_report` without data, as text."""
    return str(build_report(model))


@torch.no_grad()
def build_report(wrapper: nn.Module, batches: Iterable[Tensor | tuple[Tensor, ...]] = ()) -> Report:
    """Look at a prepared model; it stays as it is.

    Args:
        wrapper: A wrapper, or the prepared model in it.
        batches: Inputs of the model, a tuple for several; with some, the values at each place are
            measured too: SQNR, histograms, what is clipped. They are read one by one, and memory
            does not grow with their number.

    Returns:
        The report.

    Raises:
        TypeError: `wrapper` holds no prepared model, or one that is converted to integers already.
        ValueError: A value is NaN or infinite on `batches`.
    """
    model = _prepared(wrapper)
    model.classify()
    units = {unit.node: unit for unit in layer_calls(model)}
    quantizers = _quantizer_nodes(model)
    grids = {node: grid_of(quantizer) for node, quantizer in quantizers.items()}
    limits = {node: _limits(grid) for node, grid in grids.items()}
    places = [node for node in model.graph.nodes if node in units or node in quantizers]
    batches = iter(batches)
    first = next(batches, None)
    shown = () if first is None else chain([first], batches)
    measured, num_inputs = measure(model, places, limits, shown)
    calls: Counter[str] = Counter()
    entries: dict[fx.Node, LayerEntry | ActivationEntry] = {}
    report = Report(
        size=_model_size(model, list(units.values())),
        num_inputs=num_inputs,
        post_training=list(getattr(wrapper, "post_training", ())),
    )
    for position, node in enumerate(places, start=1):
        calls[str(node.target)] += 1
        call = calls[str(node.target)]
        if node in units:
            layer = _layer_entry(model, units[node], position, call)
            layer.output_sqnr = measured[node].sqnr if node in measured else None
            report.layers.append(layer)
            entries[node] = layer
        else:
            activation = _activation_entry(node, quantizers[node], grids[node], position, call)
            if node in measured:
                _add_statistics(activation, measured[node])
            report.activations.append(activation)
            entries[node] = activation
    report.floats = float_operations(model)
    report.warnings = find_warnings(report, list(units.values()), entries)
    if first is not None:
        _add_memory(report, model, first)
    return report


def _add_memory(report: Report, model: GraphModel, batch: Tensor | tuple[Tensor, ...]) -> None:
    try:
        converted = convert_fixed_point(model) if model.fixed_point else convert(model)
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
    if any(isinstance(module, COMPUTES_INTEGERS) for module in model.modules()):
        raise TypeError(
            f"{type(wrapper).__name__} is converted to integers; report on the wrapper that it was "
            "converted from."
        )
    return model


def _quantizer_nodes(model: GraphModel) -> dict[fx.Node, FakeQuantize]:
    found = ((node, model.module_of(node)) for node in model.graph.nodes)
    return {node: module for node, module in found if isinstance(module, FakeQuantize)}


def _limits(grid: Grid) -> tuple[float, float]:
    """The ends of a grid, in real units."""
    low, high = grid.quant_min - grid.zero_point, grid.quant_max - grid.zero_point
    return low * grid.scale, high * grid.scale


def _layer_entry(model: GraphModel, unit: LayerCall, position: int, call: int) -> LayerEntry:
    weight, bias, scale = unit.folded()
    quantized, quantized_bias = unit.quantized_parameters()
    spec = unit.layer.weight_spec
    low, high, step = float(weight.min()), float(weight.max()), float(scale.max())
    limits = spec.quant_min * step, spec.quant_max * step
    has_bias_grid = unit.input_quantizer is not None
    return LayerEntry(
        position=position,
        path=unit.path,
        call=call,
        kind=operation_name(model, unit.node),
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
    node: fx.Node, quantizer: FakeQuantize, grid: Grid, position: int, call: int
) -> ActivationEntry:
    low, high = (float(v) for v in quantizer.clips_act)
    return ActivationEntry(
        position=position,
        path=str(node.target),
        call=call,
        spec=spec_words(replace(quantizer.spec, signed=grid.signed)),
        range=(low, high),
        limits=_limits(grid),
        step=grid.scale,
        batches=int(quantizer.num_batches_tracked) + 1,
        fixed=quantizer.spec.fixed_range is not None,
    )


def _add_statistics(entry: ActivationEntry, seen: Statistics) -> None:
    entry.values = (seen.low, seen.high)
    entry.percentile = seen.percentile
    entry.histogram = seen.histogram(entry.limits)
    entry.clipped = seen.num_clipped / seen.count
    entry.grid_sqnr, entry.sqnr = seen.own_sqnr, seen.sqnr


def _model_size(model: GraphModel, units: list[LayerCall]) -> ModelSize:
    """Batch norms that are folded take nothing; a layer that is used several times counts once."""
    stored: dict[int, int] = {}
    covered: set[int] = set()
    for unit in units:
        folded, spec = unit.folded(), unit.layer.weight_spec
        num_scales = 1 if spec.granularity == "per_tensor" else folded.scale.numel()
        bits = folded.weight.numel() * spec.bit_width + num_scales * 32
        if folded.bias is not None:
            bits += folded.bias.numel() * unit.layer.bias_spec.bit_width
        stored[id(unit.weight)] = -(-bits // 8)
        owners = [unit.batch_norm] if unit.batch_norm is not None else []
        tensors = [t for owner in owners for t in (*owner.parameters(), *owner.buffers())]
        covered |= {id(t) for t in (unit.weight, unit.bias, *tensors)}
    quantizers = _quantizer_nodes(model).values()
    ranges = {id(t) for q in quantizers for t in (*q.parameters(), *q.buffers())}
    ranges |= {id(unit.layer.weight_range) for unit in units}
    sizes = {
        id(t): 4 * t.numel()
        for t in (*model.parameters(), *model.buffers())
        if t.is_floating_point() and id(t) not in ranges
    }
    left = sum(size for key, size in sizes.items() if key not in covered)
    return ModelSize(sum(sizes.values()), sum(stored.values()) + left)
