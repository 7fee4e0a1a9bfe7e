"""Conversion rules for targets that requantize in float32, in ONNX Runtime's arithmetic."""

from __future__ import annotations

import math

from torch import fx, nn

from edgeailite.quantization.arithmetic.fixed_point import EXACT_BITS
from edgeailite.quantization.graph.average_calls import (
    average_module,
    global_average,
    unknown_arguments,
)
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
from edgeailite.quantization.graph.operations import EINSUM, LAYERS
from edgeailite.quantization.graph.running import parameter_value
from edgeailite.quantization.integer.affine import IntegerAffine, IntegerPReLU
from edgeailite.quantization.integer.common_rules import (
    COMMON,
    has_8_bits,
    has_integer_input,
    place_layer_call,
)
from edgeailite.quantization.integer.conversion import Converter, grid_of
from edgeailite.quantization.integer.exact_sums import (
    IntegerAverage,
    IntegerFold,
    IntegerResize,
    PowerOfTwoAverage,
)
from edgeailite.quantization.integer.grid import (
    ApplyScale,
    Grid,
    Quantize,
    Requantize,
    has_kernel,
)
from edgeailite.quantization.integer.operators import (
    IntegerAdd,
    IntegerAveragePool,
    IntegerDiv,
    IntegerGlobalAverage,
    IntegerMatMul,
    IntegerMul,
)
from edgeailite.quantization.integer.rules import Rules
from edgeailite.quantization.modules.normalization import gain_and_offset
from edgeailite.quantization.targets.onnx_runtime.normalizations import (
    convert_norm_along,
    convert_norm_of_images,
    convert_norm_of_last_axes,
    convert_normalize,
    convert_softmax,
    convert_vector_norm,
)

RULES = Rules(COMMON)
RULES.converts("softmax", "functional_softmax")(convert_softmax)
RULES.converts("layer_norm", "rms_norm")(convert_norm_of_last_axes)
RULES.converts("group_norm", "instance_norm")(convert_norm_of_images)
RULES.converts("norm_along")(convert_norm_along)
RULES.converts("normalize")(convert_normalize)
RULES.converts("vector_norm", "norm")(convert_vector_norm)


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


@RULES.converts("sub", "cat", "stack", "maximum", "pad_with_value")
def convert_on_reals(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Compute on real values, then round."""
    result = converter.copy(node, converter.real)
    converter.set(quantizer, converter.call(str(quantizer.target), Quantize(grid), result), grid)


@RULES.converts("mul")
def convert_product(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Product of integers; with a constant factor it is a gain."""
    read = operands(node)
    for value, constant in (read, read[::-1]) if len(read) == 2 else ():
        gain = converter.constant_value(constant)
        if gain is not None and converter.grid(value).bit_width <= 8:
            affine = IntegerAffine(converter.grid(value), grid, gain)
            _place(converter, affine, value, quantizer)
            return
    convert_elementwise(converter, node, quantizer, grid)


@RULES.converts("add")
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


@RULES.converts("div")
def convert_quotient(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Quotient of integers."""
    left, right = operands(node)[0], operands(node)[-1]
    module = IntegerDiv(converter.grid(left), converter.grid(right), grid)
    values = converter.values[left], converter.values[right]
    converter.set(quantizer, converter.call(str(quantizer.target), module, *values), grid)


@RULES.converts("batch_norm", when=has_8_bits)
def convert_batch_norm(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """A gain and an offset for each channel."""
    (operand,), module = operands(node), module_of(converter.model, node)
    assert module is not None
    affine = IntegerAffine(converter.grid(operand), grid, *gain_and_offset(module))
    _place(converter, affine, operand, quantizer)


@RULES.converts("prelu", when=has_8_bits)
def convert_prelu(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """A gain for positive values, and one for negative ones of each channel."""
    (operand,), slopes = operands(node), argument(node, "weight")
    if isinstance(slopes, fx.Node):
        slopes = parameter_value(converter.model, slopes)
    prelu = IntegerPReLU(converter.grid(operand), grid, slopes)
    _place(converter, prelu, operand, quantizer)


def _place(converter: Converter, module: nn.Module, operand: fx.Node, quantizer: fx.Node) -> None:
    """Call an operator of one operand in the place of an operation and its quantizer."""
    value = converter.call(str(quantizer.target), module, converter.values[operand])
    converter.set(quantizer, value, grid_of(converter.quantizer(quantizer)))


@RULES.converts("matmul", "einsum")
def convert_matmul(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Product of two matrices of integers."""
    equation = str(argument(node, "equation")) if operation_of(node) is EINSUM else None
    left, right = (factor for factor in factors(node) if isinstance(factor, fx.Node))
    product = IntegerMatMul(converter.grid(left), converter.grid(right), grid, equation)
    values = converter.values[left], converter.values[right]
    converter.set(quantizer, converter.call(str(quantizer.target), product, *values), grid)


@RULES.converts("resize", "resize_cubic")
def convert_resize(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Sum products of integers and dyadic weights."""
    _place_sized(converter, IntegerResize, node, quantizer, grid, ("size", "scale_factor"))


@RULES.converts("fold")
def convert_fold(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Sum overlapping windows of integers."""
    _place_sized(converter, IntegerFold, node, quantizer, grid, ("output_size",))


def _place_sized(
    converter: Converter,
    operator: type[IntegerResize | IntegerFold],
    node: fx.Node,
    quantizer: fx.Node,
    grid: Grid,
    names: tuple[str, ...],
) -> None:
    """Call an operator on a value and on sizes, the arguments of these names."""
    options = arguments(node)
    source, *sizes = (options.pop(name) for name in ("input", *names))
    module = operator(converter.grid(source), grid, options)
    value = converter.call(str(quantizer.target), module, converter.values[source])
    value.args = (*value.args, *fx.map_arg(tuple(sizes), converter.value))
    converter.set(quantizer, value, grid)


@RULES.converts("avg_pool", "adaptive_avg_pool", "mean", "sum")
def convert_average(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Average between free scales as ONNX Runtime's kernel does, or by exact sums.

    On power-of-two grids the exact sum, divided by the count, is what every level computes.
    """
    (operand,) = operands(node)
    module = _average(converter, node, converter.grid(operand), grid)
    if module is None:
        _convert_on_one_grid(converter, node, quantizer, grid)
        return
    value = converter.call(str(quantizer.target), module, converter.values[operand])
    converter.set(quantizer, value, grid)


def _convert_on_one_grid(
    converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid
) -> None:
    """Sum values of a single grid on its integers, where sums are exact."""
    source = operands(node)[0]
    centered = converter.centered(source)
    sums = converter.copy(node, lambda a: centered if a is source else converter.values[a])
    result = converter.call(f"{node.name}_real", ApplyScale(converter.grid(source)), sums)
    converter.set(quantizer, converter.call(str(quantizer.target), Quantize(grid), result), grid)


def _average(
    converter: Converter, node: fx.Node, source: Grid, output: Grid
) -> IntegerGlobalAverage | IntegerAveragePool | IntegerAverage | None:
    module = module_of(converter.model, node)
    keepdim = global_average(node, module)
    is_exact = source.is_power_of_two and output.is_power_of_two
    kernel = has_kernel(source, output=output) and not is_exact
    if kernel and keepdim is not None:
        return IntegerGlobalAverage(source, output, keepdim)
    if unknown_arguments(node, module):
        return None
    average = average_module(node, module)
    if is_exact:
        return PowerOfTwoAverage(average, source, output)
    if kernel and _has_kernel(average, source):
        return IntegerAveragePool(average, source, output)
    return IntegerAverage(average, source, output)


def _has_kernel(average: nn.Module, source: Grid) -> bool:
    """Return True for a pool whose short sums ONNX Runtime's kernel takes in torch's order.

    It counts windows that end outside of the image in its own way.
    """
    if not isinstance(average, nn.AvgPool2d) or average.ceil_mode:
        return False
    sides = average.kernel_size
    count = math.prod(sides) if isinstance(sides, tuple) else sides**2
    is_short = count * source.max_magnitude <= 1 << EXACT_BITS
    return is_short and average.divisor_override is None


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
