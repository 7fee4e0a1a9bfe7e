"""Functions of one value, sums, products, gains, joined values: value by value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from edgeailite.quantization.graph.calls import argument, factors
from edgeailite.quantization.integer.affine import IntegerAffine
from edgeailite.quantization.integer.grid import Dequantize, Grid, Quantize
from edgeailite.quantization.integer.operators import IntegerAdd, IntegerMul
from edgeailite.quantization.integer.table import IntegerTable
from edgeailite.quantization.targets.c.copies import loops_of, nested
from edgeailite.quantization.targets.c.pairs import Pairs, fitted, listed
from edgeailite.quantization.targets.c.program import (
    Argument,
    Array,
    At,
    Order,
    Struct,
    Value,
    bytes_of,
    offset_of,
    stored,
)
from edgeailite.quantization.targets.c.registry import emits, emits_on_reals
from edgeailite.quantization.targets.c.requantization import Problem, of_function, of_layer

if TYPE_CHECKING:
    from edgeailite.quantization.targets.c.reader import Reader


def all_integers(grid: Grid) -> Tensor:
    """Integers that a value may be, float32."""
    return torch.arange(grid.integers.start, grid.integers.stop, dtype=torch.float32)


# ---- tables -------------------------------------------------------------------------------------


def bytewise(results: Tensor, source: Grid, output: Grid) -> Tensor:
    """A table by the bytes of stored integers.

    Args:
        results: Integers of the output, for :func:`all_integers` of the source.
        source: Of 8 bits at most.
        output: Of the results.
    """
    bytes = torch.arange(256)
    integers = torch.where(bytes < 128, bytes, bytes - 256) + offset_of(source)
    index = (integers - source.integers.start).clamp(0, len(source.integers) - 1)
    return stored(results[index], output)


def looked_up(reader: Reader, value: Value, results: Tensor, grid: Grid, order: Order) -> Value:
    """Emit a table: a result for each integer of the source."""
    source = value.grid
    if bytes_of(source) > 1:
        reader.refuse("it is a function of integers with more than 8 bits")
    table = bytewise(results, source, grid)
    bytes = torch.arange(256)
    if bytes_of(grid) == 1 and torch.equal(table, torch.where(bytes < 128, bytes, bytes - 256)):
        return Value(value.buffer, value.shape, grid, index=value.index)
    x, result = reader.contiguous(value, order), reader.made(value.shape, grid, order)
    name, type = ("", "int8_t") if bytes_of(grid) == 1 else ("_wide", "int16_t")
    args: list[Argument] = [Array(type, table), x, x.count, result.buffer]
    reader.emit(f"edgeailite_look_up{name}", args, [x], [result.buffer])
    return result


@emits(IntegerTable)
def emit_table(reader: Reader, node: fx.Node, module: IntegerTable) -> Value:
    """A function of one value."""
    value = reader.operand(node)
    numbers = reader.filled(tuple(node.args[1:]))
    results = module.table(*numbers)
    return looked_up(reader, value, results, module.output_grid, reader.own_order(value))


@emits_on_reals("requantize")
def emit_requantize(reader: Reader, node: fx.Node, source: fx.Node, module: Quantize) -> Value:
    """A value on another grid."""
    value = reader.value(source)
    return _regridded(reader, value, module, reader.own_order(value))


def _regridded(reader: Reader, value: Value, module: Quantize, order: Order) -> Value:
    grid = value.grid
    if (
        bytes_of(grid) > 1
        and (grid.scale, grid.zero_point)
        == (
            module.grid.scale,
            module.grid.zero_point,
        )
        and (grid.quant_min, grid.quant_max) == (module.grid.quant_min, module.grid.quant_max)
    ):
        return value
    results = module.integers(Dequantize(grid).real(all_integers(grid)))
    return looked_up(reader, value, results, module.grid, order)


# ---- of two values ------------------------------------------------------------------------------


@emits(IntegerAdd)
def emit_integer_add(reader: Reader, node: fx.Node, module: IntegerAdd) -> Value:
    """Sum of two values in the arithmetic of ONNX Runtime's kernel."""
    left, right = (reader.operand(node, n) for n in (0, -1))
    a, b = (all_integers(v.grid) for v in (left, right))
    results = module(a[:, None], b[None])
    return _emit_sum(reader, node, (left, right), results, module.output_grid, (1.0, 1.0))


@emits_on_reals("add", "sub")
def emit_add(reader: Reader, node: fx.Node, operation: fx.Node, module: Quantize) -> Value:
    """Sum or difference of real values, then the rounding."""
    read = operation.all_input_nodes
    if len(factors(operation)) != 2 or not all(isinstance(n, fx.Node) for n in factors(operation)):
        reader.refuse("it adds a number that lies on no grid")
    pair = [reader.value(n) for n in factors(operation)]
    real = [Dequantize(v.grid).real(all_integers(v.grid)) for v in pair]

    def computed(a: Tensor, b: Tensor) -> Tensor:
        if len(read) == 1:
            reader.refuse("it adds a value to itself")
        given = dict(zip(factors(operation), (a, b), strict=True))
        return reader.runner.compute(operation, given.__getitem__)

    results = module.integers(computed(real[0][:, None], real[1][None]))
    one = torch.ones(())
    nothing = torch.zeros(())
    weights = float(computed(one, nothing)), float(computed(nothing, one))
    return _emit_sum(reader, node, (pair[0], pair[1]), results, module.grid, weights)


def _emit_sum(
    reader: Reader,
    node: fx.Node,
    pair: tuple[Value, Value],
    results: Tensor,
    grid: Grid,
    weights: tuple[float, float],
) -> Value:
    left, right = pair
    if max(bytes_of(g) for g in (left.grid, right.grid, grid)) > 1:
        reader.refuse("it adds integers of more than 8 bits")
    out = reader.shape(node)
    left, right = (_expanded(v, out) for v in (left, right))
    order = reader.own_order(left if left.buffer.values is None else right)
    a, b = reader.contiguous(left, order), reader.contiguous(right, order)
    result = reader.made(out, grid, order)
    struct = fitted(Pairs(left.grid, right.grid, grid, results.long(), weights))
    args: list[Argument] = [struct, a, b, result.buffer.count, result.buffer]
    reader.emit("edgeailite_add", args, [a, b], [result.buffer])
    return result


def _expanded(value: Value, shape: Sequence[int]) -> Value:
    """A value repeated along axes of size 1."""
    if value.shape == tuple(shape):
        return value
    index = value.numbers()
    if value.buffer.values is not None and index.dim() > len(shape):
        index = index.reshape(index.shape[-len(shape) :])
    return Value(value.buffer, tuple(shape), value.grid, index=index.expand(tuple(shape)))


@emits(IntegerMul)
def emit_integer_product(reader: Reader, node: fx.Node, module: IntegerMul) -> Value:
    """Product of two values in the arithmetic of ONNX Runtime's kernel."""
    left, right = (reader.operand(node, n) for n in (0, -1))
    scale = module.left.scale * module.right.scale / module.output.scale

    def rounded(products: Tensor) -> Tensor:
        q = torch.round(products.float() * scale + module.output_grid.zero_point)
        return module.output.clamp(q).long()

    others = Struct("edgeailite_list", count=0)
    return _emit_product(reader, node, (left, right), module.output_grid, rounded, others)


@emits_on_reals("mul")
def emit_product(reader: Reader, node: fx.Node, operation: fx.Node, module: Quantize) -> Value:
    """Product of real values, then the rounding: nearly a function of the integers' product."""
    if len(operation.all_input_nodes) != 2:
        reader.refuse("it multiplies by itself, or by a number that lies on no grid")
    left, right = (reader.value(n) for n in operation.all_input_nodes)
    if max(bytes_of(v.grid) for v in (left, right)) > 1:
        reader.refuse("it multiplies integers of more than 8 bits")
    a, b = (Dequantize(v.grid).centered(all_integers(v.grid)) for v in (left, right))
    results = module.integers((a * left.grid.scale)[:, None] * (b * right.grid.scale)).long()
    products, scale = (a[:, None] * b).long(), left.grid.scale * right.grid.scale

    def rounded(sums: Tensor) -> Tensor:
        return module.integers((sums.double() * scale).float()).long()

    pairs = Pairs(left.grid, right.grid, module.grid, results, (1.0, 1.0))
    others = listed(pairs, rounded(products))
    return _emit_product(reader, node, (left, right), module.grid, rounded, others)


def _emit_product(
    reader: Reader,
    node: fx.Node,
    pair: tuple[Value, Value],
    grid: Grid,
    rounded: Callable[[Tensor], Tensor],
    others: Struct,
) -> Value:
    """Emit products of integers; one operand may have axes of size 1."""
    out = reader.shape(node)
    whole = next((v for v in pair if v.shape == out), _expanded(pair[0], out))
    order = reader.own_order(whole)
    result = reader.made(out, grid, order)
    held = [reader.contiguous(v, _order_among(order, v)) for v in pair]
    nest = _product_loops(pair, order, out)
    if nest is None:
        held = [reader.contiguous(_expanded(v, out), order) for v in pair]
        nest = [(math.prod(out), 1, 1)]
    grids = [v.grid for v in pair]
    zeros = [g.zero_point - offset_of(g) for g in grids]
    ends = [
        (a - grids[0].zero_point) * (b - grids[1].zero_point)
        for a in (grids[0].integers[0], grids[0].integers[-1])
        for b in (grids[1].integers[0], grids[1].integers[-1])
    ]
    factor = torch.tensor([grids[0].scale * grids[1].scale / grid.scale]).double()
    low, high = torch.tensor([min(ends)]), torch.tensor([max(ends)])
    output = of_function(Problem(rounded, factor, grid, low, high))
    args: list[Argument] = [output, others, loops_of(nest), len(nest), *zeros, *held, result.buffer]
    reader.emit("edgeailite_multiply", args, held, [result.buffer])
    return result


def _order_among(order: Order, value: Value) -> Order:
    """That order for a value with fewer axes in front."""
    missing = len(order) - len(value.shape)
    return tuple(a - missing for a in order if a >= missing)


def _product_loops(
    pair: Sequence[Value], order: Order, out: tuple[int, ...]
) -> list[tuple[int, ...]] | None:
    """Loops over the result, with places in both operands, which lie in that order."""
    places = []
    for value in pair:
        axes = _order_among(order, value)
        numbers = torch.arange(math.prod(value.shape))
        shaped = numbers.reshape([value.shape[a] for a in axes])
        back = shaped.permute(tuple(torch.tensor(axes).argsort().tolist()) if axes else ())
        places.append(back.expand(out).permute(order).reshape(-1))
    nest = nested(*places)
    return nest if nest is not None and len(nest) <= 6 else None


@emits_on_reals("maximum")
def emit_maximum(reader: Reader, node: fx.Node, operation: fx.Node, module: Quantize) -> Value:
    """The larger of two values: rounding keeps their order."""
    out = reader.shape(node)
    values = [_expanded(reader.value(n), out) for n in operation.all_input_nodes]
    order = reader.own_order(values[0])
    if reader.kind(operation) not in ("maximum", "max"):
        reader.refuse("it takes the smaller of two values")
    if bytes_of(module.grid) > 1:
        reader.refuse("it compares integers of more than 8 bits")
    a, b = (reader.contiguous(_regridded(reader, v, module, order), order) for v in values)
    result = reader.made(out, module.grid, order)
    args: list[Argument] = [a, b, result.buffer.count, result.buffer]
    reader.emit("edgeailite_maximum", args, [a, b], [result.buffer])
    return result


# ---- joined values ------------------------------------------------------------------------------


@emits_on_reals("cat")
def emit_cat(reader: Reader, node: fx.Node, operation: fx.Node, module: Quantize) -> Value:
    """Values side by side, each rounded to the grid of all."""
    out, dim = reader.shape(node), int(reader.filled(argument(operation, "dim")))
    axis = dim % (len(out) + 1) - 1
    if axis < 0:
        reader.refuse("it joins images of the batch")
    values = [reader.value(n) for n in argument(operation, "tensors")]
    order = reader.own_order(values[0])
    result = reader.made(out, module.grid, order)
    numbers = torch.arange(math.prod(out)).reshape([out[a] for a in order])
    begin, along = 0, order.index(axis)
    for value in values:
        size = value.shape[axis]
        part = _regridded(reader, value, module, reader.own_order(value))
        x = reader.contiguous(part, order)
        to = numbers.narrow(along, begin, size).reshape(-1)
        nest = nested(torch.arange(len(to)), to)
        assert nest is not None
        place = At(result.buffer, int(to[0]))
        args: list[Argument] = [loops_of(nest), len(nest), bytes_of(module.grid), x, place]
        reader.emit("edgeailite_move", args, [x], [result.buffer])
        begin += size
    return result


# ---- gains of channels --------------------------------------------------------------------------


@emits(IntegerAffine)
def emit_affine(reader: Reader, node: fx.Node, module: IntegerAffine) -> Value:
    """A gain and an offset for each channel, which are multiples of powers of two."""
    value = reader.operand(node)
    order, shape = reader.own_order(value), value.shape
    gain = _spread(module.gain, shape, order, module.offset is not None)
    offset = torch.zeros_like(gain)
    if module.offset is not None:
        offset = _spread(module.offset, shape, order, True)
    return _emit_gains(reader, value, module, order, gain.double(), offset.double())


def _spread(values: Tensor, shape: Sequence[int], order: Order, along_channels: bool) -> Tensor:
    """Values for each element of a value in the order of memory."""
    if along_channels:
        values = values.reshape(-1, *[1] * (len(shape) - 1))
    elif values.dim() > len(shape):
        values = values.reshape(values.shape[-len(shape) :])
    return values.expand(tuple(shape)).permute(order).reshape(-1)


def _emit_gains(
    reader: Reader, value: Value, module: IntegerAffine, order: Order, gain: Tensor, offset: Tensor
) -> Value:
    source = value.grid
    if bytes_of(source) > 1:
        reader.refuse("it scales integers of more than 8 bits")
    period = _period(torch.stack([gain, offset]))
    gain, offset = gain[:period], offset[:period]
    unit = torch.frexp(gain).exponent.clamp(min=-126) - 24
    unit = torch.where(gain == 0, torch.frexp(offset).exponent - 24, unit)
    unit = _coarsest(gain, offset, unit)
    whole, added = (torch.ldexp(v, -unit).long() for v in (gain, offset))
    zero = source.zero_point - offset_of(source)
    ends = [
        (v - source.zero_point) * whole + added for v in (source.integers[0], source.integers[-1])
    ]
    low, high = torch.minimum(*ends), torch.maximum(*ends)

    def rounded(sums: Tensor) -> Tensor:
        return module.output.integers(torch.ldexp(sums.double(), unit[:, None]).float()).long()

    factor = torch.ldexp(torch.ones(period, dtype=torch.double), unit)
    output = of_layer(Problem(rounded, factor, module.output_grid, low, high))
    x, result = reader.contiguous(value, order), reader.made(value.shape, module.output_grid, order)
    tables = [Array("int32_t", v) for v in (whole, added - zero * whole)]
    args: list[Argument] = [output, *tables, period, x.count, x, result.buffer]
    reader.emit("edgeailite_scale_channels", args, [x], [result.buffer])
    return result


def _period(columns: Tensor) -> int:
    """Smallest number of values after which all of them come again."""
    count = columns.shape[1]
    for period in range(1, count):
        if count % period == 0 and torch.equal(
            columns, columns[:, :period].repeat(1, count // period)
        ):
            return period
    return count


def _coarsest(gain: Tensor, offset: Tensor, unit: Tensor) -> Tensor:
    """Largest exponent of which both are multiples, from `unit` on."""
    for _ in range(64):
        more = torch.ones_like(unit, dtype=torch.bool)
        for values in (gain, offset):
            scaled = torch.ldexp(values, -(unit + 1))
            more &= scaled == torch.round(scaled)
        more &= (gain != 0) | (offset != 0)
        if not bool(more.any()):
            break
        unit = torch.where(more, unit + 1, unit)
    return unit
