"""Resizing in C: weighted sums along one axis after the other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import fx

from edgeailite.quantization.integer import exact_sums
from edgeailite.quantization.integer.exact_sums import IntegerResize
from edgeailite.quantization.targets.c.program import (
    Argument,
    Array,
    Buffer,
    Struct,
    Value,
    bytes_of,
    channels_last,
    offset_of,
)
from edgeailite.quantization.targets.c.registry import emits
from edgeailite.quantization.targets.c.requantization import Problem, of_function

if TYPE_CHECKING:
    from edgeailite.quantization.targets.c.reader import Reader

_MOST_BITS = 30


@emits(IntegerResize)
def emit_resize(reader: Reader, node: fx.Node, module: IntegerResize) -> Value:
    """Sums of products with the module's own integer weights, then a factor and a rounding."""
    value, out, grid = reader.operand(node), reader.shape(node), module.output_grid
    if len(out) > 3:
        reader.refuse("it is 3-d")
    size, factor = (*reader.filled(tuple(node.args[1:])), None, None)[:2]
    weights = module.weights((1, *value.shape), size, factor)
    source = module.input.grid
    bound = float(source.max_magnitude)
    for step in weights.steps:
        bound = bound * float(step.matrix.abs().sum(1).max())
        if bound >= 1 << _MOST_BITS:
            reader.refuse("its sums need more than 30 bits")
        bound = bound / 2.0**step.shift + 1
    x = reader.contiguous(value, channels_last(value.shape))
    result = reader.made(out, grid, channels_last(out))
    sizes = [*value.shape[1:], value.shape[0]]
    ends = torch.tensor([-math.ceil(bound)]), torch.tensor([math.ceil(bound)])
    real = torch.tensor([float(module.multiplier) * 2.0**-weights.bits]).double()
    output = of_function(Problem(lambda u: module.of_sums(u, weights).long(), real, grid, *ends))
    steps = weights.steps or [exact_sums.unchanged(value.shape[1])]
    for i, step in enumerate(steps):
        is_last = i == len(steps) - 1
        axis = _axis(step, sizes, x, source.zero_point - offset_of(source) if i == 0 else 0)
        sizes[step.axis - 2] = step.matrix.shape[0]
        y = result.buffer if is_last else Buffer((), None, (), size=4 * math.prod(sizes))
        args: list[Argument] = [axis, output if is_last else "(void *)0", x, y]
        reader.emit("edgeailite_resize", args, [x], [y])
        x = y
    return result


def _axis(step: exact_sums.Step, sizes: list[int], x: Buffer, zero: int) -> Struct:
    place = step.axis - 2
    matrix = step.matrix.long()
    used = (matrix != 0).int()
    count = matrix.shape[1]
    first = used.argmax(1)
    last = count - 1 - used.flip(1).argmax(1)
    taps = int((last - first).max()) + 1
    starts = first.clamp(max=count - taps)
    columns = starts[:, None] + torch.arange(taps)
    return Struct(
        "edgeailite_axis",
        outer=math.prod(sizes[:place]),
        out=matrix.shape[0],
        inner=math.prod(sizes[place + 1 :]),
        taps=taps,
        weights=Array("int32_t", matrix.gather(1, columns)),
        starts=Array("int32_t", starts),
        zero=zero,
        bytes=4 if x.grid is None else bytes_of(x.grid),
        shift=step.shift,
        **{"in": count},
    )
