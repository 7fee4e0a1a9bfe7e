"""Gains of channels in C: batch norms that no layer folds, constant factors, PReLU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from edgeailite.quantization.integer.affine import IntegerAffine, IntegerPReLU
from edgeailite.quantization.targets.c.program import (
    Argument,
    Array,
    Order,
    Struct,
    Value,
    bytes_of,
    offset_of,
)
from edgeailite.quantization.targets.c.registry import emits
from edgeailite.quantization.targets.c.requantization import Problem, of_layer

if TYPE_CHECKING:
    from edgeailite.quantization.targets.c.reader import Reader

_MOST = 1 << 30


@emits(IntegerAffine)
def emit_affine(reader: Reader, node: fx.Node, module: IntegerAffine) -> Value:
    """A gain and an offset for each channel, which are multiples of powers of two."""
    value = reader.operand(node)
    order, shape = reader.own_order(value), value.shape
    gain = _spread(module.gain, shape, order, module.offset is not None)
    offset = torch.zeros_like(gain)
    if module.offset is not None:
        offset = _spread(module.offset, shape, order, True)
    return _emit_gains(reader, value, module, order, torch.stack([gain, gain, offset]).double())


def _spread(values: Tensor, shape: Sequence[int], order: Order, along_channels: bool) -> Tensor:
    """Values for each element of a value in the order of memory."""
    if along_channels:
        values = values.reshape(-1, *[1] * (len(shape) - 1))
    elif values.dim() > len(shape):
        values = values.reshape(values.shape[-len(shape) :])
    return values.expand(tuple(shape)).permute(order).reshape(-1)


@emits(IntegerPReLU)
def emit_prelu(reader: Reader, node: fx.Node, module: IntegerPReLU) -> Value:
    """A gain for positive values, and one for negative ones of each channel."""
    value = reader.operand(node)
    order = reader.own_order(value)
    negative = _spread(module.slope, value.shape, order, True)
    columns = [module.gain.expand_as(negative), negative, torch.zeros_like(negative)]
    return _emit_gains(reader, value, module, order, torch.stack(columns).double())


def _emit_gains(
    reader: Reader,
    value: Value,
    module: IntegerAffine | IntegerPReLU,
    order: Order,
    columns: Tensor,
) -> Value:
    """Emit gains, gains of negative values, and offsets, which are multiples of powers of two."""
    source = value.grid
    if bytes_of(source) > 1:
        reader.refuse("it scales integers of more than 8 bits")
    period = _period(columns)
    columns = columns[:, :period]
    unit = _coarsest(columns)
    gain, negative, offset = torch.ldexp(columns, -unit).long()
    centered = [v - source.zero_point for v in (source.integers[0], source.integers[-1], 0)]
    if source.zero_point not in source.integers:
        centered = centered[:2]
    ends = torch.stack([u * (negative if u < 0 else gain) + offset for u in centered])
    if int(ends.abs().max()) >= _MOST:
        reader.refuse("its gains are too far apart")

    def rounded(sums: Tensor) -> Tensor:
        return module.output.integers(torch.ldexp(sums.double(), unit[:, None]).float()).long()

    factor = torch.ldexp(torch.ones(period, dtype=torch.double), unit)
    low, high = ends.amin(0), ends.amax(0)
    output = of_layer(Problem(rounded, factor, module.output_grid, low, high))
    x, result = reader.contiguous(value, order), reader.made(value.shape, module.output_grid, order)
    tables = {"gain": gain, "negative": negative, "offset": offset}
    struct = Struct(
        "edgeailite_gains",
        output=output,
        **{name: Array("int32_t", column) for name, column in tables.items()},
        channels=period,
        zero=source.zero_point - offset_of(source),
    )
    args: list[Argument] = [struct, x, x.count, result.buffer]
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


def _coarsest(columns: Tensor) -> Tensor:
    """Exponent of the largest power of two of which each column holds multiples."""
    exponent = torch.where(columns == 0, 1 << 20, torch.frexp(columns).exponent)
    unit = exponent.amin(0).clamp(max=0) - 24
    whole = torch.ldexp(columns, -unit)
    for _ in range(64):
        is_even = (whole % 2 == 0).all(0) & (whole != 0).any(0)
        unit, whole = unit + is_even, torch.where(is_even, whole / 2, whole)
    return unit
