"""Conversion rules for targets that requantize in float32, in ONNX Runtime's arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import fx, nn

from edgeailite.quantization.graph.average_calls import global_average
from edgeailite.quantization.graph.calls import (
    argument,
    arguments,
    factors,
    operands,
    operation_of,
    traits_of,
)
from edgeailite.quantization.graph.model import module_of
from edgeailite.quantization.graph.moves import INDEX
from edgeailite.quantization.graph.operations import AVG_POOL, EINSUM, LAYERS
from edgeailite.quantization.graph.running import parameter_value
from edgeailite.quantization.integer.common_rules import (
    COMMON,
    has_8_bits,
    has_integer_input,
    place_layer_call,
)
from edgeailite.quantization.integer.conversion import Converter, Rules, grid_of
from edgeailite.quantization.integer.grid import (
    ApplyScale,
    Grid,
    Quantize,
    Requantize,
    has_kernel,
)
from edgeailite.quantization.integer.normalizations import IntegerLayerNorm, IntegerSoftmax
from edgeailite.quantization.integer.operators import (
    IntegerAdd,
    IntegerAveragePool,
    IntegerGlobalAverage,
    IntegerMatMul,
    IntegerMul,
)

RULES = Rules(COMMON)


@RULES.places("quantizer")
def place_quantizer(converter: Converter, node: fx.Node) -> None:
    """Quantize a real value, or a value of another grid."""
    grid = grid_of(converter.quantizer(node))
    value = converter.call(
        str(node.target), Quantize(grid), converter.real(node.all_input_nodes[0])
    )
    converter.set(node, value, grid)


@RULES.converts(*LAYERS, when=has_integer_input)
def convert_layer(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Sum in integers, then requantize."""
    place_layer_call(converter, node, quantizer, grid)


# ---- between grids ------------------------------------------------------------------------------


@RULES.converts("sub", "cat", "stack")
def convert_on_reals(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Compute on real values, then round."""
    result = converter.copy(node, converter.real)
    converter.set(quantizer, converter.call(str(quantizer.target), Quantize(grid), result), grid)


@RULES.converts("add", "mul")
def convert_elementwise(
    converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid
) -> None:
    """Sum or product of integers, where ONNX Runtime has a kernel for it."""
    read = operands(node)
    left, right = converter.grid(read[0]), converter.grid(read[-1])
    if not has_kernel(left, right, output=grid):
        convert_on_reals(converter, node, quantizer, grid)
        return
    operator = {"add": IntegerAdd, "mul": IntegerMul}[operation_of(node).name]
    values = converter.values[read[0]], converter.values[read[-1]]
    module = operator(left, right, grid)
    converter.set(quantizer, converter.call(str(quantizer.target), module, *values), grid)


@RULES.converts("softmax", "functional_softmax", when=has_8_bits)
def convert_softmax(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Exponentials by a table, then one division."""
    (operand,) = operands(node)
    softmax = IntegerSoftmax(converter.grid(operand), grid, argument(node, "dim"))
    value = converter.call(str(quantizer.target), softmax, converter.values[operand])
    converter.set(quantizer, value, grid)


@RULES.converts("layer_norm")
def convert_layer_norm(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Exact sums of integers, then operations that round alike everywhere."""
    (operand,) = operands(node)
    weight, bias = (
        parameter_value(converter.model, value) if isinstance(value, fx.Node) else value
        for value in (argument(node, "weight"), argument(node, "bias"))
    )
    shape = argument(node, "normalized_shape")
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    norm = IntegerLayerNorm(
        converter.grid(operand), grid, sizes, weight, bias, float(argument(node, "eps"))
    )
    value = converter.call(str(quantizer.target), norm, converter.values[operand])
    converter.set(quantizer, value, grid)


@RULES.converts("matmul", "einsum")
def convert_matmul(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Product of two matrices of integers."""
    equation = str(argument(node, "equation")) if operation_of(node) is EINSUM else None
    left, right = (factor for factor in factors(node) if isinstance(factor, fx.Node))
    product = IntegerMatMul(converter.grid(left), converter.grid(right), grid, equation)
    values = converter.values[left], converter.values[right]
    converter.set(quantizer, converter.call(str(quantizer.target), product, *values), grid)


@RULES.converts("resize", "resize_cubic")
def convert_on_one_grid(
    converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid
) -> None:
    """Sum values of a single grid on its integers, where sums are exact."""
    source = operands(node)[0]
    centered = converter.centered(source)
    sums = converter.copy(node, lambda a: centered if a is source else converter.values[a])
    result = converter.call(f"{node.name}_real", ApplyScale(converter.grid(source)), sums)
    converter.set(quantizer, converter.call(str(quantizer.target), Quantize(grid), result), grid)


@RULES.converts("avg_pool", "adaptive_avg_pool", "mean")
def convert_average(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Average between free scales in the arithmetic of ONNX Runtime's kernel, if it has one.

    On power-of-two grids the exact sum, divided by the count, is what every level computes.
    """
    (operand,) = operands(node)
    source = converter.grid(operand)
    module: nn.Module | None = None
    is_exact = source.is_power_of_two and grid.is_power_of_two
    if not is_exact and has_kernel(source, output=grid):
        module = _average(converter, node, source, grid)
    if module is None:
        convert_on_one_grid(converter, node, quantizer, grid)
        return
    value = converter.call(str(quantizer.target), module, converter.values[operand])
    converter.set(quantizer, value, grid)


def _average(
    converter: Converter, node: fx.Node, source: Grid, output: Grid
) -> IntegerGlobalAverage | IntegerAveragePool | None:
    module = module_of(converter.model, node)
    keepdim = global_average(node, module)
    if keepdim is not None:
        return IntegerGlobalAverage(source, output, keepdim)
    pool = _average_pool(node, module)
    return None if pool is None else IntegerAveragePool(pool, source, output)


def _average_pool(
    node: fx.Node, module: nn.Module | None
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return a local 2-d average as a function of its input alone; None for any other operation."""
    if operation_of(node) is not AVG_POOL:
        return None
    if module is not None:
        return module if isinstance(module, nn.AvgPool2d) else None
    if node.target is not F.avg_pool2d or node.all_input_nodes[1:]:
        return None
    options = arguments(node)
    del options["input"]
    return functools.partial(F.avg_pool2d, **options)


# ---- moves --------------------------------------------------------------------------------------


@RULES.places_moves
def place_move(converter: Converter, node: fx.Node) -> None:
    """An operation that moves values: the same integers, elsewhere."""
    source = node.all_input_nodes[0]
    grid = converter.grid(source)
    if traits_of(node).splits:
        moved = _copy_on_centered(converter, node, source)
        converter.set(node, moved, grid)
        return
    if operation_of(node) is INDEX and traits_of(source).splits:
        moved = converter.copy(node, converter.value)
    else:
        moved = _copy_on_centered(converter, node, source)
    value = converter.call(f"{node.name}_move", Requantize(grid, moved=True), moved)
    converter.set(node, value, grid)


def _copy_on_centered(converter: Converter, node: fx.Node, source: fx.Node) -> fx.Node:
    centered = converter.centered(source)
    return converter.copy(node, lambda a: centered if a is source else converter.values[a])
