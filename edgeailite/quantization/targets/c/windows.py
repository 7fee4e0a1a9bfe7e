"""Pooling in C: the largest value, or the average, of windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from edgeailite.quantization.graph.window_sums import AdaptiveSum, Mean, Sum, Windows, WindowSum
from edgeailite.quantization.integer.exact_sums import IntegerAverage, PowerOfTwoAverage
from edgeailite.quantization.integer.grid import Grid
from edgeailite.quantization.integer.operators import IntegerAveragePool, IntegerGlobalAverage
from edgeailite.quantization.targets.c.program import (
    Argument,
    Array,
    Struct,
    Value,
    bytes_of,
    channels_last,
    offset_of,
    two,
)
from edgeailite.quantization.targets.c.registry import emits, emits_call
from edgeailite.quantization.targets.c.requantization import Problem, of_function

if TYPE_CHECKING:
    from edgeailite.quantization.targets.c.reader import Reader


Pairs = dict[str, tuple[int, int]]
_ONES = ("out", "stride", "dilation")


def _window(value: Value, pairs: Pairs, channels: int, **more: Any) -> Struct:
    pad_top, pad_left = pairs.pop("pad", (0, 0))
    names = {f"{n}_height": p[0] for n, p in pairs.items()}
    names |= {f"{n}_width": p[1] for n, p in pairs.items()}
    return Struct(
        "edgeailite_window",
        **names,
        channels=channels,
        pad_top=pad_top,
        pad_left=pad_left,
        zero=value.grid.zero_point - offset_of(value.grid),
        wide=int(bytes_of(value.grid) > 1),
        **more,
    )


# ---- the largest --------------------------------------------------------------------------------


@emits_call("max_pool")
def emit_max_pool(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Value:
    """Largest value of each window."""
    value, out = reader.operand(node), reader.shape(node)
    axes = len(out) - 1
    if axes > 2:
        reader.refuse("it is 3-d")
    stride = given["stride"] if given["stride"] not in (None, (), []) else given["kernel_size"]
    return _emit_max(
        reader,
        value,
        out,
        {
            "kernel": two(given["kernel_size"], axes, 1),
            "stride": two(stride, axes, 1),
            "pad": two(given["padding"], axes, 0),
            "dilation": two(given["dilation"], axes, 1),
        },
    )


@emits_call("adaptive_max_pool")
def emit_adaptive_max_pool(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Value:
    """Largest value of each of so many windows."""
    value, out = reader.operand(node), reader.shape(node)
    if len(out) > 3:
        reader.refuse("it is 3-d")
    size, spans, _ = _spans(value.shape, out)
    return _emit_max(reader, value, out, {"kernel": size, "stride": (1, 1)}, spans=spans)


def _spans(
    shape: Sequence[int], out: Sequence[int]
) -> tuple[tuple[int, int], Array, list[list[int]]]:
    """Windows of adaptive pools: the largest size, begin and end of each, and their sizes."""
    axes = len(out) - 1
    sides = zip(two(shape[1:], axes, 1), two(out[1:], axes, 1), strict=True)
    spans = [
        [(i * size // wanted, -(-(i + 1) * size // wanted)) for i in range(wanted)]
        for size, wanted in sides
    ]
    lengths = [[end - begin for begin, end in side] for side in spans]
    flat = [n for side in spans for span in side for n in span]
    return (max(lengths[0]), max(lengths[1])), Array("int16_t", flat), lengths


@emits_call("extreme")
def emit_extreme(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Value:
    """Largest or smallest value along axes."""
    dims = given["dim"] if isinstance(given["dim"], tuple | list) else [given["dim"]]
    return _emit_extreme(reader, node, dims, reader.shape(node))


@emits_call("max_with_indices")
def emit_extreme_with_places(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Any:
    """Largest or smallest value along an axis; its place is left out."""
    values, _ = reader.known[node]
    return [_emit_extreme(reader, node, [given["other"]], tuple(values.shape[1:])), None]


def _emit_extreme(
    reader: Reader, node: fx.Node, dims: Sequence[int], out: tuple[int, ...]
) -> Value:
    """One window over all axes."""
    value = reader.operand(node)
    axes = [d % (len(value.shape) + 1) - 1 for d in dims]
    if not axes or -1 in axes:
        reader.refuse("it takes the largest value of several images of the batch")
    kept = [axis for axis in range(len(value.shape)) if axis not in axes]
    x = reader.contiguous(value, (*axes, *kept))
    result = reader.made(out, value.grid, tuple(range(len(out))))
    line = (1, math.prod(value.shape[axis] for axis in axes))
    pairs: Pairs = {"in": line, "kernel": line, **dict.fromkeys(_ONES, (1, 1))}
    smallest = int(reader.kind(node) in ("amin", "min"))
    channels = math.prod(value.shape[axis] for axis in kept)
    window = _window(value, pairs, channels, smallest=smallest)
    reader.emit("edgeailite_max_pool", [window, x, result.buffer], [x], [result.buffer])
    return result


def _emit_max(
    reader: Reader, value: Value, out: Sequence[int], pairs: Pairs, **more: Array
) -> Value:
    x = reader.contiguous(value, channels_last(value.shape))
    result = reader.made(out, value.grid, channels_last(out))
    axes = len(out) - 1
    pairs = {
        "dilation": (1, 1),
        "in": two(value.shape[1:], axes, 1),
        "out": two(out[1:], axes, 1),
        **pairs,
    }
    window = _window(value, pairs, out[0], **more)
    reader.emit("edgeailite_max_pool", [window, x, result.buffer], [x], [result.buffer])
    return result


# ---- averages -----------------------------------------------------------------------------------


@emits(IntegerGlobalAverage)
def emit_global_average(reader: Reader, node: fx.Node, module: IntegerGlobalAverage) -> Value:
    """Average of each channel."""
    count = math.prod(reader.operand(node).shape[1:])
    multiplier = module.input.scale / (module.output.scale * count)

    def average(sums: Tensor) -> Tensor:
        return module.output.integers(sums.float() * multiplier)

    axes = list(range(1, len(reader.operand(node).shape)))
    return _emit_mean(reader, node, axes, module.output.grid, average, float(multiplier))


@emits(IntegerAverage)
def emit_average(reader: Reader, node: fx.Node, module: IntegerAverage) -> Value:
    """Averages of windows, or along axes."""
    value, average = reader.operand(node), module.sums.average
    grid, real = module.output.grid, module.input.grid.scale / module.output.grid.scale
    shape = torch.Size((1, *value.shape))
    if isinstance(average, Mean):
        dims = [d % len(shape) for d in average.dims or range(1, len(shape))]
        if 0 in dims:
            reader.refuse("it averages over the batch")
        area = 1 if isinstance(average, Sum) else math.prod(shape[d] for d in dims)
        function = _average(module, shape, area)
        return _emit_mean(reader, node, [d - 1 for d in dims], grid, function, real / area)
    if len(shape) > 4:
        reader.refuse("it is 3-d")
    if isinstance(module.sums, AdaptiveSum):
        return _emit_adaptive(reader, node, module)
    windows = [window for window, _ in module.sums.windows(shape)]
    areas = module.sums.areas(shape)
    if len(windows) == 1:
        windows.insert(0, Windows(1, 1, 0, 0, [1]))
    sizes, which = torch.unique(areas, return_inverse=True)
    outputs = [
        _requantization(value, grid, _average(module, shape, n), real / n, windows)
        for n in sizes.tolist()
    ]
    return _emit_windows(reader, node, grid, windows, outputs, which if len(sizes) > 1 else None)


@emits(IntegerAveragePool)
def emit_float_average(reader: Reader, node: fx.Node, module: IntegerAveragePool) -> Value:
    """Averages whose values and sums are rounded to float32 one by one, as ONNX Runtime's are."""
    value, out, grid = reader.operand(node), reader.shape(node), module.output_grid
    average: Any = module.operation
    sums = WindowSum(average)
    shape = torch.Size((1, *value.shape))
    windows = [window for window, _ in sums.windows(shape)]
    sizes, which = torch.unique(sums.areas(shape), return_inverse=True)
    x = reader.contiguous(value, channels_last(value.shape))
    result = reader.made(out, grid, channels_last(out))
    numbers = [math.frexp(g.scale) for g in (value.grid, grid)]
    stored = offset_of(grid)
    mean = Struct(
        "edgeailite_float_mean",
        multiplier=int(numbers[0][0] * (1 << 24)),
        divisor=int(numbers[1][0] * (1 << 24)),
        exponent=numbers[0][1] - numbers[1][1],
        areas=Array("int32_t", sizes),
        zero=grid.zero_point,
        stored=stored,
        low=grid.quant_min - stored,
        high=grid.quant_max - stored,
    )
    more = {"which": Array("uint8_t", which)} if len(sizes) > 1 else {}
    window = _window(value, _of_windows(value, out, windows), out[0], **more)
    args: list[Argument] = [window, mean, x, result.buffer]
    reader.emit("edgeailite_average_float32", args, [x], [result.buffer])
    return result


def _of_windows(value: Value, out: Sequence[int], windows: list[Windows]) -> Pairs:
    rows, columns = windows
    axes = len(out) - 1
    return {
        "in": two(value.shape[1:], axes, 1),
        "out": two(out[1:], axes, 1),
        "kernel": (rows.kernel, columns.kernel),
        "stride": (rows.stride, columns.stride),
        "pad": (rows.padding, columns.padding),
        "dilation": (1, 1),
    }


def _emit_adaptive(reader: Reader, node: fx.Node, module: IntegerAverage) -> Value:
    """Averages of so many windows, which may differ in size and overlap."""
    value, out, grid = reader.operand(node), reader.shape(node), module.output.grid
    shape, factor = torch.Size((1, *value.shape)), module.input.grid.scale / grid.scale
    size, spans, (rows, columns) = _spans(value.shape, out)
    sizes = sorted({(r, c) for r in rows for c in columns})
    which = [sizes.index((r, c)) for r in rows for c in columns]
    line = Windows(1, 1, 0, 0, [1])
    outputs = []
    for sides in sizes:
        area, divisors = math.prod(sides), sides if shape[2:] != torch.Size(sides) else ()
        function = _average(module, shape, area, divisors)
        windows = [line, line._replace(kernel=area)]
        outputs.append(_requantization(value, grid, function, factor / area, windows))
    x = reader.contiguous(value, channels_last(value.shape))
    result = reader.made(out, grid, channels_last(out))
    pairs = _of_windows(value, out, [line, line])
    pairs["kernel"] = size
    more = {"which": Array("uint8_t", which)} if len(sizes) > 1 else {}
    window = _window(value, pairs, out[0], outputs=outputs, spans=spans, **more)
    reader.emit("edgeailite_average", [window, x, result.buffer], [x], [result.buffer])
    return result


def _average(
    module: IntegerAverage, shape: torch.Size, area: float, sides: Sequence[float] = ()
) -> Callable[[Tensor], Tensor]:
    """Integers of sums, as the module computes them; adaptive pools divide by a side at a time."""
    is_wide = module.is_wide(shape)
    if isinstance(module, PowerOfTwoAverage) and not is_wide:

        def of_reals(sums: Tensor) -> Tensor:
            real = sums.float() * module.input.grid.scale
            for side in sides or (area,):
                real = real / side
            return module.quantize.integers(real)

        return of_reals

    def of_integers(sums: Tensor) -> Tensor:
        mean = (sums.double() / area).float() if is_wide else sums.float() / area
        return module.output.integers(mean * module.multiplier)

    return of_integers


def _requantization(
    value: Value,
    grid: Grid,
    function: Callable[[Tensor], Tensor],
    factor: float,
    windows: list[Windows],
) -> Struct:
    source = value.grid
    count = math.prod(w.kernel for w in windows)
    ends = [torch.tensor([count * (v - source.zero_point)]) for v in _ends(source)]
    problem = Problem(
        lambda sums: function(sums).long(), torch.tensor([factor], dtype=torch.double), grid, *ends
    )
    return of_function(problem)


def _ends(grid: Grid) -> tuple[int, int]:
    return grid.integers[0], grid.integers[-1]


def _emit_mean(
    reader: Reader,
    node: fx.Node,
    axes: list[int],
    grid: Grid,
    function: Callable[[Tensor], Tensor],
    factor: float,
) -> Value:
    """Averages along axes: one window over all of them, the other axes are channels."""
    value, out = reader.operand(node), reader.shape(node)
    kept = [axis for axis in range(len(value.shape)) if axis not in axes]
    x = reader.contiguous(value, (*axes, *kept))
    count = math.prod(value.shape[axis] for axis in axes)
    result = reader.made(out, grid, tuple(range(len(out))))
    windows = [Windows(1, 1, 0, 0, [1]), Windows(count, count, 0, 0, [count])]
    output = _requantization(value, grid, function, factor, windows)
    line = (1, count)
    pairs: Pairs = {"in": line, "kernel": line, **dict.fromkeys(_ONES, (1, 1))}
    window = _window(value, pairs, math.prod(value.shape[a] for a in kept), outputs=[output])
    reader.emit("edgeailite_average", [window, x, result.buffer], [x], [result.buffer])
    return result


def _emit_windows(
    reader: Reader,
    node: fx.Node,
    grid: Grid,
    windows: list[Windows],
    outputs: list[Struct],
    which: Tensor | None,
) -> Value:
    value, out = reader.operand(node), reader.shape(node)
    x = reader.contiguous(value, channels_last(value.shape))
    result = reader.made(out, grid, channels_last(out))
    pairs = _of_windows(value, out, windows)
    more = {} if which is None else {"which": Array("uint8_t", which)}
    window = _window(value, pairs, out[0], outputs=outputs, **more)
    reader.emit("edgeailite_average", [window, x, result.buffer], [x], [result.buffer])
    return result
