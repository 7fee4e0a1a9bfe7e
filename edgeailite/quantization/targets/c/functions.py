"""Softmax, functions of more than 8 bits, and products of matrices in C."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from edgeailite.quantization.arithmetic.fixed_point import EXACT_BITS
from edgeailite.quantization.integer.interpolation import IntegerInterpolation
from edgeailite.quantization.integer.normalizations import IntegerSoftmax
from edgeailite.quantization.integer.operators import IntegerMatMul
from edgeailite.quantization.targets.c.program import (
    Argument,
    Array,
    Struct,
    Value,
    bytes_of,
    offset_of,
)
from edgeailite.quantization.targets.c.registry import emits
from edgeailite.quantization.targets.c.requantization import Problem, of_layer, rounding_of

if TYPE_CHECKING:
    from edgeailite.quantization.integer.grid import Grid
    from edgeailite.quantization.targets.c.reader import Reader


def _ends(grid: Grid) -> dict[str, int]:
    stored = offset_of(grid)
    return {
        "zero": grid.zero_point - stored,
        "low": grid.quant_min - stored,
        "high": grid.quant_max - stored,
        "wide": int(bytes_of(grid) > 1),
    }


@emits(IntegerSoftmax)
def emit_softmax(reader: Reader, node: fx.Node, module: IntegerSoftmax) -> Value:
    """Exponentials by a table, their exact sum, one quotient rounded to 24 bits."""
    value, grid = reader.operand(node), module.output_grid
    if bytes_of(value.grid) > 1:
        reader.refuse("it is a softmax of integers with more than 8 bits")
    axis = module.dim % (len(value.shape) + 1) - 1
    if axis < 0:
        reader.refuse("it is a softmax over the batch")
    order = reader.own_order(value)
    x, result = reader.contiguous(value, order), reader.made(value.shape, grid, order)
    sizes = [value.shape[a] for a in order]
    place, count = order.index(axis), value.shape[axis]
    (table,) = module.tables(count, module.output.scale.device)
    # float32, as the module computes it; a frexp of it is exact.
    mantissa, exponent = torch.frexp(table * (1.0 / module.output.scale))
    rows = Struct(
        "edgeailite_softmax_rows",
        exponentials=Array("int32_t", table.long()),
        numerators=Array("int32_t", torch.ldexp(mantissa, torch.tensor(EXACT_BITS)).long()),
        exponents=Array("int8_t", torch.where(mantissa == 0, 0, exponent - EXACT_BITS)),
        outer=math.prod(sizes[:place]),
        count=count,
        inner=math.prod(sizes[place + 1 :]),
        rounding=rounding_of(grid),
        **_ends(grid),
    )
    reader.emit("edgeailite_softmax", [rows, x, result.buffer], [x], [result.buffer])
    return result


@emits(IntegerInterpolation)
def emit_interpolation(reader: Reader, node: fx.Node, module: IntegerInterpolation) -> Value:
    """A line in each segment of values, or a result for each value."""
    value, source, grid = reader.operand(node), module.input.grid, module.output_grid
    lines = module.lines(*reader.filled(tuple(node.args[1:])))
    order = reader.own_order(value)
    x, result = reader.contiguous(value, order), reader.made(value.shape, grid, order)
    if lines.width == 0:
        first = source.integers[0]
        tables = {"base": Array("int32_t", (lines.base / (1 << 14)).long())}
    else:
        first = ((source.integers[0] - source.zero_point) >> lines.width) << lines.width
        first += source.zero_point
        tables = {"base": Array("int32_t", lines.base), "slope": Array("int32_t", lines.slope)}
    struct = Struct(
        "edgeailite_lines",
        **tables,
        first=first - offset_of(source),
        width=lines.width,
        rounding=rounding_of(grid),
        **_ends(grid),
    )
    args: list[Argument] = [struct, x, x.count, result.buffer]
    reader.emit("edgeailite_interpolate", args, [x], [result.buffer])
    return result


@emits(IntegerMatMul)
def emit_matmul(reader: Reader, node: fx.Node, module: IntegerMatMul) -> Value:
    """Products of matrices, one for each of the axes in front."""
    left, right = reader.operand(node, 0), reader.operand(node, -1)
    grids, out, grid = (left.grid, right.grid), reader.shape(node), module.output_grid
    if module.equation is not None:
        reader.refuse("it is an einsum; torch.matmul is written")
    if len(left.shape) < 2 or left.shape[:-2] != right.shape[:-2]:
        reader.refuse("it multiplies matrices of different numbers of axes")
    if max(map(bytes_of, grids)) > 1:
        reader.refuse("it multiplies integers of more than 8 bits")
    depth = left.shape[-1]
    bound = depth * grids[0].max_magnitude * grids[1].max_magnitude
    if bound > 1 << EXACT_BITS:
        reader.refuse("its sums need more than 24 bits")
    natural = tuple(range(len(out)))
    a, b = reader.contiguous(left, natural), reader.contiguous(right, natural)
    result = reader.made(out, grid, natural)
    scale = module.left.scale * module.right.scale / module.output.scale

    def rounded(sums: Tensor) -> Tensor:
        return module.output.integers(sums.float() * scale).long()

    ends = torch.tensor([-bound]), torch.tensor([bound])
    zeros = [g.zero_point - offset_of(g) for g in grids]
    struct = Struct(
        "edgeailite_matrices",
        output=of_layer(Problem(rounded, scale.double().reshape(1), grid, *ends)),
        count=math.prod(out[:-2]),
        rows=out[-2],
        depth=depth,
        columns=out[-1],
        zero_a=zeros[0],
        zero_b=zeros[1],
    )
    args: list[Argument] = [struct, a, b, result.buffer]
    reader.emit("edgeailite_multiply_matrices", args, [a, b], [result.buffer])
    return result
