"""An integer graph as a list of operations on bytes in one arena: what the C files hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.graph.operations import Kind, argument
from edgeailite.quantization.graph.running import value_shapes
from edgeailite.quantization.graph.window_sums import Mean, Windows
from edgeailite.quantization.integer.operators import Dequantize, Grid
from edgeailite.quantization.targets.tinpu.operators import (
    Clip,
    FixedPointLayer,
    OffsetScaleShift,
    WindowAverage,
)

_SAME_BYTES = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout)
_SAME_BYTES_NAMES = (
    "flatten", "reshape", "view", "squeeze", "unsqueeze", "contiguous", "detach", "dropout",
    "unflatten",
)  # fmt: skip
_MAX_POOL_NAMES = ("_max_pool1d", "_max_pool2d", "max_pool1d", "max_pool2d")
_PERMUTE_NAMES = ("permute", "transpose", "swapaxes", "swapdims", "t")


@dataclass
class Buffer:
    """A value in the arena.

    Attributes:
        shape: Without the batch.
        grid: Its integers.
        first: Operation that makes it.
        last: Operation that reads it last.
        place: Byte in the arena where it starts.
    """

    shape: tuple[int, ...]
    grid: Grid
    first: int
    last: int = 0
    place: int = -1

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape)

    @property
    def is_signed(self) -> bool:
        """Whether its bytes are."""
        return self.grid.quant_min < 0


@dataclass
class Operation:
    """One call of the runner; fields as in ``edgeailite_runner.h``.

    Attributes:
        name: Path of the module it comes from.
        node: Whose value its result is.
        operands: What it reads.
        result: What it writes, `result_offset` bytes behind its start.
    """

    kind: str
    name: str
    node: fx.Node
    operands: list[Buffer]
    result: Buffer
    result_offset: int = 0
    shape_in: tuple[int, ...] = (1, 1, 1)
    shape_out: tuple[int, ...] = (1, 1, 1)
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    weight_bits: int = 8
    weight: Tensor | None = None
    steps: tuple[int, int, int] = (0, 0, 0)
    offsets: list[float] = field(default_factory=list)
    multipliers: list[int] = field(default_factory=list)
    shifts: list[int] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)


@dataclass
class Program:
    """Operations in order, and the size of the arena that they work in."""

    operations: list[Operation]
    arena: int


def make_program(model: GraphModel, example_input: Tensor) -> Program:
    """Read an integer graph with offset, multiplier and shift.

    Args:
        model: From :func:`~edgeailite.quantization.targets.tinpu.conversion.convert_fixed_point`.
        example_input: Of the shape that the device will see; of a batch the first counts.

    Raises:
        ValueError: An operation has no form in C; the message names it.
    """
    return _Reader(model, example_input[:1]).read()


def _unsupported(node: fx.Node, why: str) -> ValueError:
    place = str(node.target) if node.op == "call_module" else node.name
    return ValueError(
        f"'{place}' cannot be written as C: {why}. Written are convolutions, linear layers, batch "
        "norm, average and max pooling, ReLU, add, concat, permutations and reshaping, in integers."
    )


def three(shape: Sequence[int]) -> tuple[int, int, int]:
    """A shape without batch as channels, height, width."""
    padded = (*shape, 1, 1)[:3] if len(shape) < 3 else tuple(shape)
    return padded[0], padded[1], padded[2]


class _Reader:
    def __init__(self, model: GraphModel, example_input: Tensor) -> None:
        inputs = model.graph.find_nodes(op="placeholder")
        if len(inputs) != 1:
            raise ValueError(f"The model has {len(inputs)} inputs; C files are written for one.")
        self.model = model
        self.shapes = {n: tuple(s)[1:] for n, s in value_shapes(model, [example_input]).items()}
        self.buffers: dict[fx.Node, Buffer | None] = {inputs[0]: None}  # None: raw floats
        self.pending: dict[fx.Node, list[Buffer]] = {}  # adds and concats wait for their clip
        self.operations: list[Operation] = []

    def read(self) -> Program:
        self.model.classify()
        for node in self.model.graph.nodes:
            if node.meta["kind"] not in (Kind.INPUT, Kind.OUTPUT, Kind.SCALAR):
                self._read(node)
        for node in self.model.graph.find_nodes(op="output"):
            for result in node.all_input_nodes:
                self._operand(result)
        buffers = {id(b): b for b in self.buffers.values() if b is not None}
        return Program(self.operations, plan_arena(list(buffers.values())))

    def _read(self, node: fx.Node) -> None:
        module = self.model.module_of(node)
        for kind, read in _READERS.items():
            if isinstance(module, kind):
                read(self, node, module)
                return
        name = getattr(node.target, "__name__", str(node.target)) if module is None else ""
        if isinstance(module, _SAME_BYTES) or name in _SAME_BYTES_NAMES:
            self.buffers[node] = self._renamed(node)
        elif isinstance(module, nn.MaxPool1d | nn.MaxPool2d) or name in _MAX_POOL_NAMES:
            self._max_pool(node, module)
        elif name in _PERMUTE_NAMES:
            self._permute(node, name)
        elif name in ("add", "iadd", "cat", "concat", "concatenate"):
            self.pending[node] = [self._operand(n) for n in node.all_input_nodes]
        else:
            what = type(module).__name__ if module is not None else name
            raise _unsupported(node, f"{what} is no operation of the runner")

    def _operand(self, node: fx.Node) -> Buffer:
        buffer = self.buffers.get(node)
        if buffer is None:
            raise _unsupported(node, "its value is no integer")
        buffer.last = len(self.operations)
        return buffer

    def _renamed(self, node: fx.Node) -> Buffer | None:
        """The same bytes under another shape."""
        return self.buffers[node.all_input_nodes[0]]

    def _shape_of_operand(self, node: fx.Node) -> tuple[int, ...]:
        return self.shapes[node.all_input_nodes[0]]

    def _emit(self, kind: str, node: fx.Node, grid: Grid, **options: Any) -> Operation:
        operands = options.pop("operands", None)
        if operands is None:
            operands = [self._operand(node.all_input_nodes[0])]
        result = options.pop("result", None)
        if result is None:
            result = Buffer(self.shapes[node], grid, len(self.operations))
        result.last = len(self.operations)
        name = str(node.target) if node.op == "call_module" else node.name
        made = Operation(kind, name, node, operands, result, **options)
        self.operations.append(made)
        self.buffers[node] = result
        return made

    def _scale(self, node: fx.Node, module: OffsetScaleShift) -> None:
        shape = three(self._shape_of_operand(node))
        if module.multiplier_bits is None:
            raise _unsupported(node, "its factor is a float (float_ops has 'qdq')")
        if self.buffers[node.all_input_nodes[0]] is None:
            self._emit(
                "INPUT", node, module.grid, operands=[], shape_in=shape, shape_out=shape,
                offsets=module.offset.reshape(-1).tolist(),
                factors=module.factor.reshape(-1).tolist(),
            )  # fmt: skip
            return
        multiplier, shift = module.multiplier_and_shift()
        tables = _tables(node, module.offset, multiplier, shift)
        self._emit("RESCALE", node, module.grid, shape_in=shape, shape_out=shape, **tables)

    def _layer(self, node: fx.Node, module: FixedPointLayer) -> None:
        tables = _tables(node, module.output.offset, *module.output.multiplier_and_shift())
        grid, operation = module.output.grid, module.operation
        shape, out = self._shape_of_operand(node), self.shapes[node]
        common = {"weight": module.weight, "weight_bits": module.weight_bits, **tables}
        if module.weight.dim() == 2:
            rows = math.prod(shape[:-1])
            self._emit(
                "LINEAR", node, grid, shape_in=(rows, shape[-1], 1), shape_out=(rows, out[-1], 1),
                **common,
            )  # fmt: skip
            return
        if module.weight.dim() > 4:
            raise _unsupported(node, "it is 3-d")
        if (
            isinstance(operation.padding, str)
            or getattr(operation, "padding_mode", "zeros") != "zeros"
        ):
            raise _unsupported(node, "its padding is not a number of zeros")
        options = {n: _pair(getattr(operation, n)) for n in ("stride", "dilation")}
        self._emit(
            "TRANSPOSED_CONVOLUTION" if operation.is_transposed else "CONVOLUTION", node, grid,
            shape_in=three(shape), shape_out=three(out), kernel=_pair(module.weight.shape[2:]),
            padding=_pair(operation.padding, 0), groups=operation.num_groups, **options, **common,
        )  # fmt: skip

    def _average(self, node: fx.Node, module: WindowAverage) -> None:
        shape = self._shape_of_operand(node)
        full = torch.Size((1, *shape))
        _, _, steps = module.steps(full)
        tables = _tables(node, *(v.reshape(-1) for v in steps))
        average = module.sums.average
        channels, height, width = three(shape)
        if isinstance(average, Mean):
            if {d % len(full) for d in average.dims} != set(range(2, len(full))):
                raise _unsupported(node, "it averages over other axes than height and width")
            windows = [Windows(size, size, 0, 0, [size]) for size in shape[1:]]
        else:
            windows = [window for window, _ in module.sums.windows(full)]
        self._emit(
            "WINDOW_SUM", node, module.grid, shape_in=(channels, height, width),
            shape_out=(channels, *(*(len(w.lengths) for w in windows), 1)[:2]),
            kernel=_pair([w.kernel for w in windows]), stride=_pair([w.stride for w in windows]),
            padding=_pair([w.padding for w in windows], 0), **tables,
        )  # fmt: skip

    def _max_pool(self, node: fx.Node, module: nn.Module | None) -> None:
        names = ("kernel_size", "stride", "padding", "dilation")
        if module is not None:
            given = {name: getattr(module, name) for name in names}
        else:
            given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
        shape, dims = self._shape_of_operand(node), len(self._shape_of_operand(node)) - 1
        kernel = given["kernel_size"]
        sizes = {
            "kernel": kernel, "stride": given.get("stride") or kernel,
            "padding": given.get("padding", 0), "dilation": given.get("dilation", 1),
        }  # fmt: skip
        options = {
            name: _pair(
                value if isinstance(value, tuple | list) else [value] * dims, name != "padding"
            )
            for name, value in sizes.items()
        }
        operand = self._operand(node.all_input_nodes[0])
        self._emit(
            "MAX_POOL", node, operand.grid, operands=[operand], shape_in=three(shape),
            shape_out=three(self.shapes[node]), **options,
        )  # fmt: skip

    def _permute(self, node: fx.Node, name: str) -> None:
        shape = self._shape_of_operand(node)
        full = torch.arange(math.prod(shape)).reshape(1, *shape)
        call: Callable[..., Tensor] = getattr(torch.Tensor, name)
        moved = call(full, *node.args[1:], **node.kwargs)
        if torch.equal(moved.flatten(), full.flatten()):  # only axes of size 1 change places
            self.buffers[node] = self._renamed(node)
            return
        if moved.shape[0] != 1 or moved.dim() > 4:
            raise _unsupported(node, "it moves the batch, or has more than three axes")
        steps = (*moved.stride()[1:], 0, 0)[:3]
        operand = self._operand(node.all_input_nodes[0])
        self._emit(
            "PERMUTE", node, operand.grid, operands=[operand], shape_in=three(shape),
            shape_out=three(self.shapes[node]), steps=steps,
        )  # fmt: skip

    def _clip(self, node: fx.Node, module: Clip) -> None:
        """What ends an add or a concat."""
        source = node.all_input_nodes[0]
        operands = self.pending[source]
        for operand in operands:
            operand.last = len(self.operations) + len(operands)
        if getattr(source.target, "__name__", str(source.target)) in ("add", "iadd"):
            if len({b.size for b in operands}) > 1 or operands[0].size != math.prod(
                self.shapes[node]
            ):
                raise _unsupported(node, "it adds values of different shapes")
            shape = three(self.shapes[node])
            both = operands * (2 // len(operands))
            self._emit("ADD", node, module.grid, operands=both, shape_in=shape, shape_out=shape)
            return
        axis: Any = argument(source, 1, "dim", 0)
        if axis % (len(self.shapes[node]) + 1) != 1:
            raise _unsupported(node, "it concatenates along another axis than the channels")
        result = Buffer(self.shapes[node], module.grid, len(self.operations))
        done = 0
        for operand in operands:
            shape = three(operand.shape)
            self._emit(
                "COPY", node, module.grid, operands=[operand], result=result, result_offset=done,
                shape_in=shape, shape_out=shape,
            )  # fmt: skip
            done += operand.size

    def _dequantize(self, node: fx.Node, module: Dequantize) -> None:
        """Only the outputs are dequantized; the device gives integers."""
        if any(user.op != "output" for user in node.users):
            raise _unsupported(next(iter(node.users)), "it computes in float")
        self.buffers[node] = self._renamed(node)


_READERS: dict[type[nn.Module], Callable[..., None]] = {
    OffsetScaleShift: _Reader._scale,
    FixedPointLayer: _Reader._layer,
    WindowAverage: _Reader._average,
    Clip: _Reader._clip,
    Dequantize: _Reader._dequantize,
}


def _pair(value: Any, fill: int = 1) -> tuple[int, int]:
    """Height and width; a time series has width 1 (padding 0)."""
    values = [int(v) for v in (value if isinstance(value, tuple | list | torch.Size) else [value])]
    return values[0], values[1] if len(values) > 1 else int(fill)


def _tables(node: fx.Node, offset: Tensor, multiplier: Tensor, shift: Tensor) -> dict[str, Any]:
    if not bool((offset == torch.round(offset)).all()):
        raise _unsupported(node, "its offsets are floats (float_ops has 'fb')")
    count = max(offset.numel(), multiplier.numel())
    names = ("offsets", "multipliers", "shifts")
    return {
        name: [int(v) for v in vector.reshape(-1).expand(count).tolist()]
        for name, vector in zip(names, (offset, multiplier, shift), strict=True)
    }


def plan_arena(buffers: list[Buffer]) -> int:
    """Give each buffer a place so that no two that live together overlap; returns the size.

    The largest first, each at the lowest place that is free while it lives.
    """
    placed: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda b: -b.size):
        others = [b for b in placed if b.first <= buffer.last and buffer.first <= b.last]
        place = 0
        for other in sorted(others, key=lambda b: b.place):
            if place + buffer.size <= other.place:
                break
            place = max(place, other.place + other.size)
        buffer.place = place
        placed.append(buffer)
    return max((b.place + b.size for b in placed), default=0)
