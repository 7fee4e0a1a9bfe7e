"""Functions of one value, sums, products, gains, joined values: value by value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from edgeailite.quantization.graph.calls import argument, factors, operation_of
from edgeailite.quantization.integer.grid import Dequantize, Grid, Quantize
from edgeailite.quantization.integer.operators import IntegerAdd, IntegerMul
from edgeailite.quantization.integer.table import IntegerTable
from edgeailite.quantization.targets.c.copies import loops_of, nested
from edgeailite.quantization.targets.c.pairs import Pairs, exact_sum, fitted, listed
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
from edgeailite.quantization.targets.c.requantization import Problem, of_function

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
    if bytes_of(grid) > 1:
        return _rescaled(reader, value, module.grid, order)
    results = module.integers(Dequantize(grid).real(all_integers(grid)))
    return looked_up(reader, value, results, module.grid, order)


def _rescaled(reader: Reader, value: Value, grid: Grid, order: Order) -> Value:
    """Integers of more than 8 bits on another grid: a sum with nothing."""
    x, result = reader.contiguous(value, order), reader.made(value.shape, grid, order)
    struct = exact_sum(value.grid, value.grid, grid, (1.0, 0.0))
    sizes = bytes_of(value.grid), bytes_of(grid)
    args: list[Argument] = [struct, x, sizes[0], x, sizes[0], x.count, result.buffer, sizes[1]]
    reader.emit("edgeailite_add_wide", args, [x], [result.buffer])
    return result


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
    if max(bytes_of(g) for g in (pair[0].grid, pair[1].grid, module.grid)) > 1:
        return _emit_wide_sum(reader, node, operation, (pair[0], pair[1]), module.grid)
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


def _emit_wide_sum(
    reader: Reader, node: fx.Node, operation: fx.Node, pair: tuple[Value, Value], grid: Grid
) -> Value:
    """Sum of integers of up to 16 bits, which is exact between powers of two."""
    out = reader.shape(node)
    left, right = (_expanded(v, out) for v in pair)
    order = reader.own_order(left if left.buffer.values is None else right)
    a, b = reader.contiguous(left, order), reader.contiguous(right, order)
    result, one, nothing = reader.made(out, grid, order), torch.ones(()), torch.zeros(())
    first, second = factors(operation)
    weights = [
        float(reader.runner.compute(operation, {first: x, second: y}.__getitem__))
        for x, y in ((one, nothing), (nothing, one))
    ]
    struct = exact_sum(left.grid, right.grid, grid, (weights[0], weights[1]))
    sizes = [bytes_of(g) for g in (left.grid, right.grid, grid)]
    args: list[Argument] = [struct, a, sizes[0], b, sizes[1], a.count, result.buffer, sizes[2]]
    reader.emit("edgeailite_add_wide", args, [a, b], [result.buffer])
    return result


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
    """The larger, or the smaller, of two values: rounding keeps their order."""
    out = reader.shape(node)
    read = operation.all_input_nodes
    values = [_expanded(reader.value(n), out) for n in (read[0], read[-1])]
    order = reader.own_order(values[0])
    smallest = int(reader.kind(operation) in ("minimum", "min", "fmin"))
    if bytes_of(module.grid) > 1:
        reader.refuse("it compares integers of more than 8 bits")
    a, b = (reader.contiguous(_regridded(reader, v, module, order), order) for v in values)
    result = reader.made(out, module.grid, order)
    args: list[Argument] = [smallest, a, b, result.buffer.count, result.buffer]
    reader.emit("edgeailite_choose", args, [a, b], [result.buffer])
    return result


# ---- joined values ------------------------------------------------------------------------------


@emits_on_reals("cat", "stack")
def emit_cat(reader: Reader, node: fx.Node, operation: fx.Node, module: Quantize) -> Value:
    """Values side by side, each rounded to the grid of all."""
    out, dim = reader.shape(node), int(reader.filled(argument(operation, "dim")))
    axis = dim % (len(out) + 1) - 1
    if axis < 0:
        reader.refuse("it joins images of the batch")
    values = [reader.value(n) for n in argument(operation, "tensors")]
    if operation_of(operation).name == "stack":
        values = [replace(v, index=v.numbers().unsqueeze(axis)) for v in values]
        values = [replace(v, shape=tuple(v.numbers().shape)) for v in values]
    order = reader.own_order(values[0])
    result = reader.made(out, module.grid, order)
    numbers = torch.arange(math.prod(out)).reshape([out[a] for a in order])
    begin, along = 0, order.index(axis)
    for value in values:
        size = value.shape[axis]
        part = _regridded(reader, value, module, reader.own_order(value))
        x = reader.contiguous(part, order)
        to = numbers.narrow(along, begin, size).reshape(-1)
        if len(to) == 0:
            continue
        nest = nested(torch.arange(len(to)), to)
        assert nest is not None
        place = At(result.buffer, int(to[0]))
        args: list[Argument] = [loops_of(nest), len(nest), bytes_of(module.grid), x, place]
        reader.emit("edgeailite_move", args, [x], [result.buffer])
        begin += size
    return result


def _held(reader: Reader, value: Value) -> Value:
    """A value whose zeros, where it was padded, lie in memory as well."""
    if value.index is None or int(value.index.min()) >= 0:
        return value
    buffer = reader.contiguous(value, tuple(range(len(value.shape))))
    index = torch.arange(buffer.count).reshape(value.shape)
    return replace(value, buffer=buffer, index=index)


@emits_on_reals("pad_with_value", "pad")
def emit_pad(reader: Reader, node: fx.Node, operation: fx.Node, module: Quantize) -> Value:
    """A value with a constant around it."""
    (source,) = operation.all_input_nodes[:1]
    given = reader.value(source)
    value = _held(reader, _regridded(reader, given, module, reader.own_order(given)))
    marks, one = (value.numbers() + 1).double()[None], torch.ones((1, *value.shape))
    padded = reader.runner.compute(operation, lambda n: marks if n is source else reader.known[n])
    constant = reader.runner.compute(operation, lambda n: one if n is source else reader.known[n])
    inside = (
        reader.runner.compute(operation, lambda n: 2 * one if n is source else reader.known[n])
        != constant
    )
    out, order = reader.shape(node), reader.own_order(value)
    index = torch.where(inside, padded, 0.0)[0].long() - 1
    outside = constant[~inside]
    fill = int(module.integers(outside[:1])) if outside.numel() else module.grid.zero_point
    moved = Value(value.buffer, out, module.grid, index=index)
    buffer = reader.contiguous(moved, order, fill - offset_of(module.grid))
    buffer.shape, buffer.order = out, order
    return Value(buffer, out, module.grid)
