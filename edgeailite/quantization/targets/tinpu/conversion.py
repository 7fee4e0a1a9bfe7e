"""Conversion rules of the NPU: every layer an integer sum, an offset, a factor and a floor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from edgeailite.quantization.arithmetic.fixed_point import (
    MAX_SHIFT,
    MULTIPLIER_BITS,
    Requantization,
    multiplier_and_shift,
)
from edgeailite.quantization.arithmetic.weights import quantize_bias
from edgeailite.quantization.graph.calls import argument, operands
from edgeailite.quantization.graph.model import module_of
from edgeailite.quantization.graph.operations import LAYERS
from edgeailite.quantization.graph.patterns import call_name, quantizer_of
from edgeailite.quantization.integer.common_rules import COMMON, has_8_bits, has_integer_input
from edgeailite.quantization.integer.conversion import Converter, grid_of
from edgeailite.quantization.integer.layer import integer_weight, without_parameters
from edgeailite.quantization.integer.rules import Rules
from edgeailite.quantization.modules.bias import float_offset
from edgeailite.quantization.modules.layer_calls import LayerCall, layer_call
from edgeailite.quantization.targets.tinpu.modules import (
    OffsetScaleShiftAverage,
    OffsetScaleShiftBatchNorm,
)
from edgeailite.quantization.targets.tinpu.operators import (
    ExactSoftmax,
    OffsetScaleShift,
    OffsetScaleShiftLayer,
    OffsetScaleShiftProduct,
    Saturate,
    WindowAverage,
)

if TYPE_CHECKING:
    from edgeailite.quantization.integer.grid import Grid

RULES = Rules(COMMON)


@RULES.places("quantizer")
def place_quantizer(converter: Converter, node: fx.Node) -> None:
    """Bring a real value, or a value of another grid, to this grid."""
    (operand,) = node.all_input_nodes
    grid = grid_of(converter.quantizer(node))
    module = _rescale(converter.grids[operand], grid)
    converter.set(node, converter.call(str(node.target), module, converter.values[operand]), grid)


@RULES.places_moves
def place_move(converter: Converter, node: fx.Node) -> None:
    """An operation that moves values works on the integers as they are."""
    source = node.all_input_nodes[0]
    converter.set(node, converter.copy(node, converter.value), converter.grids[source])


@RULES.converts(*LAYERS, when=has_integer_input)
def convert_layer(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Sum in integers, then offset, multiplier and shift."""
    call = layer_call(converter.model, node)
    assert call is not None
    layer = _integer_layer(call, converter.grid(call.input_node), grid)
    value = converter.call_layer(call.path, layer, call.input_node, call.output_size)
    converter.set(quantizer, value, grid)


@RULES.converts("add", "cat", "stack", "maximum")
def convert_joining(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """All operands are multiples of the result's scale already."""
    assert all(converter.grid(a).scale == grid.scale for a in operands(node))
    integers = converter.copy(node, converter.value)
    value = converter.call(str(quantizer.target), Saturate(grid), integers)
    converter.set(quantizer, value, grid)


@RULES.converts("mul")
def convert_product(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Multiply integers, then offset, multiplier and shift."""
    left, right = operands(node)[0], operands(node)[-1]
    factor = converter.grid(left).scale * converter.grid(right).scale / grid.scale
    try:
        product = OffsetScaleShiftProduct(_half_up(factor, grid))
    except ValueError as error:
        raise ValueError(f"Product '{call_name(node)}': {error}") from error
    values = converter.values[left], converter.values[right]
    converter.set(quantizer, converter.call(str(quantizer.target), product, *values), grid)


@RULES.converts("softmax", "functional_softmax", when=has_8_bits)
def convert_softmax(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Exponentials by a table, then one division of integers."""
    (operand,) = operands(node)
    softmax = ExactSoftmax(converter.grid(operand), grid, argument(node, "dim"))
    value = converter.call(str(quantizer.target), softmax, converter.values[operand])
    converter.set(quantizer, value, grid)


def _half_up(factor: float, grid: Grid) -> OffsetScaleShift:
    """Multiples of a scale to a grid whose scale is ``1 / factor`` of it."""
    exact = torch.tensor(factor, dtype=torch.float64)
    numbers = multiplier_and_shift(exact, MULTIPLIER_BITS)
    found = Requantization(torch.floor(0.5 / exact).float(), *numbers)
    return OffsetScaleShift(_checked(found, exact), grid)


def _is_average(converter: Converter, node: fx.Node) -> bool:
    return isinstance(module_of(converter.model, node), OffsetScaleShiftAverage)


@RULES.converts("avg_pool", "adaptive_avg_pool", "mean", "sum", when=_is_average)
def convert_average(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Sum over windows, then offset, multiplier and shift."""
    module, (operand,) = module_of(converter.model, node), operands(node)
    assert isinstance(module, OffsetScaleShiftAverage)
    made = WindowAverage(module.sums, converter.grid(operand), grid)
    value = converter.call(str(node.target), made, converter.values[operand])
    converter.set(quantizer, value, grid)


def _is_batch_norm(converter: Converter, node: fx.Node) -> bool:
    return isinstance(module_of(converter.model, node), OffsetScaleShiftBatchNorm)


@RULES.converts("batch_norm", when=_is_batch_norm)
def convert_batch_norm(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Offset, multiplier and shift for each channel."""
    module, operand = module_of(converter.model, node), operands(node)[0]
    assert isinstance(module, OffsetScaleShiftBatchNorm)
    source = quantizer_of(operand)
    given = None if source is None else converter.quantizer(source)
    found, _ = module.requantization(converter.quantizer(quantizer), given)
    if given is not None and bool((found.multiplier.abs() >= 1 << MULTIPLIER_BITS).any()):
        largest = float(found.factor.abs().max())
        raise ValueError(
            f"Batch norm '{node.target}' multiplies with up to {largest:.4g}, more than "
            f"{MULTIPLIER_BITS} bits hold. Is its variance right (calibrate on real data)?"
        )
    made = OffsetScaleShift(found, grid, module.multiplier_bits)
    value = converter.call(str(node.target), made, converter.values[operand])
    converter.set(quantizer, value, grid)


def _rescale(source: Grid | None, grid: Grid) -> OffsetScaleShift:
    """From another grid, or from real values (None), to `grid`; all scales are powers of two."""
    scale = 1.0 if source is None else source.scale
    factor = torch.tensor(scale / grid.scale, dtype=torch.float64)
    half = 0.5 / factor if source is None else torch.floor(0.5 / factor)
    if grid.rounding == "floor":  # what made the value has added half of the scale
        half = torch.zeros_like(half)
    lowest = -MAX_SHIFT if source is None else 0  # what quantizes real values may shift left
    found = Requantization(
        half.float(), *multiplier_and_shift(factor, MULTIPLIER_BITS, min_shift=lowest)
    )
    return OffsetScaleShift(_checked(found, factor), grid)


def _checked(found: Requantization, factor: torch.Tensor) -> Requantization:
    """Return the numbers, if multiplier and shift are exactly the wanted factor.

    Raises:
        ValueError: They are not.
    """
    wrong = (found.factor.double() != factor) | (found.multiplier >= 1 << MULTIPLIER_BITS)
    if bool(wrong.any()):
        value = float(factor.reshape(-1)[wrong.reshape(-1)][0])
        raise ValueError(
            f"The factor {value:.4g} between accumulator and output has no multiplier of "
            f"{MULTIPLIER_BITS} bits with a right shift of 0 to 31. Is the output's range right "
            f"(calibrate on real data), or the layer dead (all outputs zero)?"
        )
    return found


def _integer_layer(call: LayerCall, source: Grid, grid: Grid) -> OffsetScaleShiftLayer:
    """The integer layer of a call whose input lies on `source` and whose output on `grid`."""
    layer, bias_spec = call.layer, call.layer.bias_spec
    weight, bias, scale = call.folded()
    integers = integer_weight(layer, weight, scale)
    accumulator = source.scale * scale.double()
    factor = accumulator / grid.scale
    if bias_spec.is_float:
        offset = float_offset(bias, scale, call.output_quantizer).double() / source.scale
    else:
        offset = torch.floor(0.5 / factor)
        if bias is not None:
            limit, rounding = bias_spec.limit, bias_spec.rounding
            offset = offset + quantize_bias(bias, accumulator, limit, rounding)
    try:
        found = _checked(
            Requantization(offset.float(), *multiplier_and_shift(factor, MULTIPLIER_BITS)), factor
        )
        output = OffsetScaleShift(found, grid, channels_last=call.channel_axis == -1)
        made = OffsetScaleShiftLayer(without_parameters(layer), integers, output, source)
    except ValueError as error:
        raise ValueError(f"Layer '{call.path}': {error}") from error
    made.layer_path = call.path
    return made
