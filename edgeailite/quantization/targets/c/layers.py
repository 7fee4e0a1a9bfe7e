"""Convolutions and linear layers in C."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from edgeailite.quantization.integer.layer import IntegerLayer
from edgeailite.quantization.targets.c.program import (
    Array,
    Buffer,
    Struct,
    Value,
    bytes_of,
    channels_last,
    offset_of,
    pack,
    two,
)
from edgeailite.quantization.targets.c.registry import emits
from edgeailite.quantization.targets.c.requantization import Problem, by_float32, of_layer

if TYPE_CHECKING:
    from edgeailite.quantization.targets.c.reader import Reader


MAX_TAPS, UNPACKED = 64, 4  # as in edgeailite_kernels.h
_INT32 = 1 << 31


@emits(IntegerLayer)
def emit_layer(reader: Reader, node: fx.Node, module: IntegerLayer) -> Value:
    """A layer: sums of products, then a factor and a rounding."""
    if module.output is None:
        reader.refuse("its result is in float: no quantizer follows it")
    value, grid, is_linear = reader.operand(node), module.output.grid, module.weight.dim() == 2
    axes, out = module.weight.dim() - 2, reader.shape(node)
    if axes > 2:
        reader.refuse("it is 3-d")
    layer: Any = module.operation
    pads_from_inside = getattr(layer, "padding_mode", "zeros") != "zeros"
    if pads_from_inside:
        value = _padded_from_inside(value, layer)
    order = tuple(range(len(value.shape))) if is_linear else channels_last(value.shape)
    x = reader.contiguous(value, order)
    result = reader.made(out, grid, tuple(range(len(out))) if is_linear else channels_last(out))
    options = _sizes(value.shape, out, module) if is_linear or _is_pointwise(module) else None
    if options is None:
        padding = 0 if pads_from_inside else layer.padding
        options = _geometry(module, padding, value.shape, out)
    _emit(reader, module, x, result.buffer, options)
    return result


def _is_pointwise(module: IntegerLayer) -> bool:
    layer: Any = module.operation
    axes = module.weight.dim() - 2
    ones = (layer.stride, module.weight.shape[2:])
    return (
        all(two(v, axes, 1) == (1, 1) for v in ones)
        and layer.padding in ("valid", "same", 0, (0,), (0, 0))
        and not layer.is_transposed
        and layer.num_groups == 1
    )


def _sizes(shape: Sequence[int], out: Sequence[int], module: IntegerLayer) -> dict[str, int]:
    """A layer that computes each pixel, or row, alone."""
    outputs, inputs = module.weight.shape[:2]
    count = math.prod(out) // outputs
    return {
        "in_height": 1,
        "in_width": count,
        "in_channels": inputs,
        "out_height": 1,
        "out_width": count,
        "out_channels": outputs,
        "kernel_height": 1,
        "kernel_width": 1,
        "stride_height": 1,
        "stride_width": 1,
        "dilation_height": 1,
        "dilation_width": 1,
        "groups": 1,
    }


def _padded_from_inside(value: Value, layer: Any) -> Value:
    """A value with copies of its own values around it."""
    mode, sides = layer.padding_mode, layer._reversed_padding_repeated_twice
    index = F.pad(value.numbers().double()[None], sides, mode)[0].long()
    return replace(value, shape=tuple(index.shape), index=index)


def _geometry(
    module: IntegerLayer, padding: Any, shape: Sequence[int], out: Sequence[int]
) -> dict[str, int]:
    layer: Any = module.operation
    axes = module.weight.dim() - 2
    kernel = two(module.weight.shape[2:], axes, 1)
    dilation = two(layer.dilation, axes, 1)
    if padding == "same":
        padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)][-axes:]
    pairs = {
        "in": two(shape[1:], axes, 1),
        "out": two(out[1:], axes, 1),
        "kernel": kernel,
        "stride": two(layer.stride, axes, 1),
        "dilation": dilation,
    }
    top, left = two(0 if padding == "valid" else padding, axes, 0)
    return {
        **{f"{name}_height": pair[0] for name, pair in pairs.items()},
        **{f"{name}_width": pair[1] for name, pair in pairs.items()},
        "in_channels": shape[0],
        "out_channels": out[0],
        "pad_top": top,
        "pad_left": left,
        "groups": layer.num_groups,
        "transposed": int(layer.is_transposed),
    }


def _emit(
    reader: Reader, module: IntegerLayer, x: Buffer, y: Buffer, options: dict[str, int]
) -> None:
    grid = module.input.grid
    rows = weight_rows(module)
    fill = grid.zero_point - offset_of(grid)
    bias = torch.zeros(len(rows)).long() if module.bias is None else module.bias.long()
    bias = bias - fill * rows.flatten(1).sum(1)
    problem, largest = _problem(module, rows.flatten(1), bias)
    if int(bias.abs().max()) >= _INT32:
        reader.refuse("its bias needs more than 32 bits")
    has_long_sums = largest >= _INT32 or module.weight.dtype != torch.int8
    output = by_float32(problem) if has_long_sums else of_layer(problem)
    is_depthwise = not has_long_sums and bytes_of(grid) == 1 and _is_depthwise(options, rows)
    weight = _tap_by_tap(rows) if is_depthwise else _padded(rows)
    kernel, fields, size = _weights(module, options, weight, is_depthwise, has_long_sums)
    room = Buffer((), None, (), size=size)
    struct = Struct(
        "edgeailite_layer",
        **fields,
        bias=Array("int32_t", bias),
        output=output,
        row=weight.shape[1],
        **options,
        fill=fill,
        wide=int(bytes_of(grid) > 1),
    )
    reader.emit(kernel, [struct, x, y, room], [x], [y, room])


def _weights(
    module: IntegerLayer,
    options: dict[str, int],
    weight: Tensor,
    is_depthwise: bool,
    has_long_sums: bool,
) -> tuple[str, dict[str, Any], int]:
    """Kernel of a layer, the fields of its weights, and bytes of its scratch memory."""
    row, bits = weight.shape[1], module.operation.weight_quantizer.spec.bit_width
    patches = 2 if options["out_height"] * options["out_width"] > 1 else 1
    kernel, size = "edgeailite_convolve", 2 * patches * row
    if is_depthwise:
        kernel, size = "edgeailite_convolve_depthwise", options["out_channels"]
    elif has_long_sums:
        kernel, size = "edgeailite_convolve_wide", 2 * row
    if module.weight.dtype != torch.int8:
        return kernel, {"wide_weight": Array("int16_t", weight)}, size
    if bits > 4 or has_long_sums:
        return kernel, {"weight": Array("edgeailite_weight", weight)}, size
    bits = 2 if bits <= 2 else 4
    size += 2 * (weight.numel() if is_depthwise else UNPACKED * row)
    return kernel, {"packed": Array("uint8_t", pack(weight, bits)), "bits": bits}, size


def weight_rows(module: IntegerLayer) -> Tensor:
    """Weights ``(out, height * width, in)`` as the kernels read them, int64."""
    weight, layer = module.weight.long(), module.operation
    if weight.dim() == 2:
        return weight[:, None]
    if layer.is_transposed:
        groups = layer.num_groups
        parts = weight.reshape(groups, -1, *weight.shape[1:])
        weight = parts.transpose(1, 2).flatten(0, 1)
    return weight.flatten(2).transpose(1, 2)


def _is_depthwise(options: dict[str, int], rows: Tensor) -> bool:
    outputs, taps, inputs = rows.shape
    one_each = inputs == 1 and options["groups"] == outputs == options["in_channels"] > 1
    return one_each and not options["transposed"] and taps <= MAX_TAPS


def _tap_by_tap(rows: Tensor) -> Tensor:
    """Weights ``(taps, channels)``."""
    return rows[:, :, 0].T


def _padded(rows: Tensor) -> Tensor:
    """Weights ``(out, taps * in)``, whole words of four."""
    flat = rows.flatten(1)
    return F.pad(flat, (0, -flat.shape[1] % 4))


def _problem(module: IntegerLayer, rows: Tensor, bias: Tensor) -> tuple[Problem, int]:
    """Requantization of a layer, and the largest magnitude that a partial sum may have."""
    assert module.output is not None
    output, grid = module.output, module.input.grid
    factor = module.input.scale * module.weight_scale / output.scale
    factor = factor.expand(len(rows)).clone()
    low, high = (v - offset_of(grid) for v in (grid.integers[0], grid.integers[-1]))
    positive, negative = rows.clamp(min=0).sum(1), rows.clamp(max=0).sum(1)

    def requantized(sums: Tensor) -> Tensor:
        return output.integers(sums.double().float() * factor[:, None]).long()

    problem = Problem(
        requantized,
        factor.double(),
        output.grid,
        positive * low + negative * high + bias,
        positive * high + negative * low + bias,
    )
    largest = rows.abs().sum(1) * max(-low, high) + bias.abs()
    return problem, int(largest.max())
