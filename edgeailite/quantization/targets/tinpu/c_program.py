"""An integer graph as a list of operations on bytes in one arena: what the C files hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.graph.calls import argument, arguments, factors, operation_of
from edgeailite.quantization.graph.model import graph_of, module_of, target_of
from edgeailite.quantization.graph.moves import MAX_POOL, PERMUTE, TRANSPOSE
from edgeailite.quantization.graph.operations import (
    ADD,
    CAT,
    INPUT,
    OUTPUT,
    SCALAR,
)
from edgeailite.quantization.graph.patterns import call_name, is_function
from edgeailite.quantization.graph.running import value_shapes
from edgeailite.quantization.graph.twins import original_type
from edgeailite.quantization.graph.variants import contains_node
from edgeailite.quantization.graph.window_sums import Mean, Windows
from edgeailite.quantization.integer.grid import Dequantize, Grid
from edgeailite.quantization.integer.table import IntegerTable
from edgeailite.quantization.targets.tinpu.c_functions import (
    read_product,
    read_softmax,
    read_table,
)
from edgeailite.quantization.targets.tinpu.c_instructions import (
    Buffer,
    Instruction,
    Program,
    pair,
    plan_arena,
    sides,
    three,
)
from edgeailite.quantization.targets.tinpu.operators import (
    ExactSoftmax,
    OffsetScaleShift,
    OffsetScaleShiftLayer,
    OffsetScaleShiftProduct,
    Saturate,
    WindowAverage,
)

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.modules.layer import QuantLayer


def make_program(model: GraphModel, example_input: Tensor) -> Program:
    """Read an integer graph with offset, multiplier and shift.

    Args:
        model: From :func:`~edgeailite.quantization.targets.tinpu.target.Tinpu.convert`.
        example_input: Of the shape that the device will see; of a batch the first counts.

    Raises:
        ValueError: An operation has no form in C; the message names it.
    """
    return Reader(model, example_input[:1]).read()


def _unsupported(node: fx.Node, why: str) -> ValueError:
    return ValueError(
        f"'{call_name(node)}' cannot be written as C: {why}. Written are convolutions, linear "
        "layers, batch norm, average and max pooling, ReLU, functions of one value, softmax, "
        "products of two, add, concat, permutations and reshaping, in integers. Replace the "
        "operation by one of these, or compute it outside of the network."
    )


class Reader:
    """One pass over the nodes of an integer graph.

    Attributes:
        shapes: Of the values, without the batch.
        buffers: Where the value of each node lies; None: raw floats.
        instructions: Those read so far.
    """

    def __init__(self, model: GraphModel, example_input: Tensor) -> None:
        inputs = graph_of(model).find_nodes(op="placeholder")
        if len(inputs) != 1:
            raise ValueError(f"The model has {len(inputs)} inputs; C files are written for one.")
        self.model = model
        self.shapes = {n: tuple(s)[1:] for n, s in value_shapes(model, [example_input]).items()}
        self.buffers: dict[fx.Node, Buffer | None] = {inputs[0]: None}  # None: raw floats
        self.pending: dict[fx.Node, list[Buffer]] = {}  # adds and concats wait for their clip
        self.instructions: list[Instruction] = []

    def read(self) -> Program:
        """Read all nodes."""
        for node in graph_of(self.model).nodes:
            if operation_of(node) not in (INPUT, OUTPUT, SCALAR):
                self._read(node)
        (output,) = graph_of(self.model).find_nodes(op="output")
        results = [self.operand(node) for node in output.all_input_nodes]
        return Program(self.instructions, plan_arena(self.instructions, results))

    def _read(self, node: fx.Node) -> None:
        module, operation = module_of(self.model, node), operation_of(node)
        for module_type, read in _READERS.items():
            if isinstance(module, module_type):
                read(self, node, module)
                return
        if operation.traits.keeps_order:
            self.buffers[node] = self._renamed(node)
        elif operation is MAX_POOL:
            self._max_pool(node, _fixed_arguments(node))
        elif operation in (PERMUTE, TRANSPOSE):
            self._permute(node, _fixed_arguments(node))
        elif is_function(operation) and target_of(self.model).computes(operation):
            raise _unsupported(
                node, f"{self._what(node)} reads floats (xnn.layers.QAct() in front makes integers)"
            )
        elif operation is ADD or operation.traits.concatenates:
            joined = argument(node, "tensors") if operation.traits.concatenates else factors(node)
            self.pending[node] = [self.operand(n) for n in joined]
        else:
            raise _unsupported(node, f"{self._what(node)} is no operation of the runner")

    def _what(self, node: fx.Node) -> str:
        """Type of the module, or name of the function, that a node calls."""
        module = module_of(self.model, node)
        name = getattr(node.target, "__name__", str(node.target))
        return original_type(module).__name__ if module is not None else name

    def operand(self, node: fx.Node) -> Buffer:
        """Integers of a node.

        Raises:
            ValueError: Its value is in float.
        """
        buffer = self.buffers.get(node)
        if buffer is None:
            raise _unsupported(node, "its value is no integer")
        return buffer

    def constants(self, node: fx.Node, module: OffsetScaleShift) -> dict[str, list[int]]:
        """Offsets, multipliers and shifts of an instruction, equally many of each.

        Raises:
            ValueError: An offset, or the factor, is a float.
        """
        return _constants(node, module.offset, *module.multiplier_and_shift())

    def refuse(self, node: fx.Node, why: str) -> NoReturn:
        """Raise the ValueError for an operation that has no form in C."""
        raise _unsupported(node, why)

    def _renamed(self, node: fx.Node) -> Buffer | None:
        """The same bytes under another shape."""
        return self.buffers[node.all_input_nodes[0]]

    def _shape_of_operand(self, node: fx.Node) -> tuple[int, ...]:
        return self.shapes[node.all_input_nodes[0]]

    def emit(self, opcode: str, node: fx.Node, grid: Grid, **options: Any) -> Instruction:
        """Add an instruction that makes the value of a node.

        Args:
            opcode: Its name in the runner.
            node: Whose value it makes.
            grid: Of the value.
            **options: Further fields; without `operands` it reads the first input of the node.
        """
        operands = options.pop("operands", None)
        if operands is None:
            operands = [self.operand(node.all_input_nodes[0])]
        result = options.pop("result", None)
        if result is None:
            result = Buffer(self.shapes[node], grid)
        made = Instruction(opcode, call_name(node), node, operands, result, **options)
        self.instructions.append(made)
        self.buffers[node] = result
        return made

    def _scale(self, node: fx.Node, module: OffsetScaleShift) -> None:
        shape = three(self._shape_of_operand(node))
        if module.multiplier_bits is None:
            raise _unsupported(node, "its factor is a float (float_ops has 'qdq')")
        if self.buffers[node.all_input_nodes[0]] is None:
            self.emit(
                "INPUT",
                node,
                module.grid,
                operands=[],
                shape_in=shape,
                shape_out=shape,
                offsets=module.offset.reshape(-1).tolist(),
                factors=module.factor.reshape(-1).tolist(),
            )
            return
        tables = self.constants(node, module)
        self.emit("RESCALE", node, module.grid, shape_in=shape, shape_out=shape, **tables)

    def _layer(self, node: fx.Node, module: OffsetScaleShiftLayer) -> None:
        tables = self.constants(node, module.output)
        grid, operation = module.output.grid, module.operation
        shape, out = self._shape_of_operand(node), self.shapes[node]
        common = {"weight": module.weight, "weight_bits": module.weight_bits, **tables}
        if module.weight.dim() == 2:
            rows = math.prod(shape[:-1])
            self.emit(
                "LINEAR",
                node,
                grid,
                shape_in=(rows, shape[-1], 1),
                shape_out=(rows, out[-1], 1),
                **common,
            )
            return
        if module.weight.dim() > 4:
            raise _unsupported(node, "it is 3-d")
        axes = module.weight.dim() - 2
        kernel = pair(module.weight.shape[2:])
        options = {n: sides(getattr(operation, n), axes) for n in ("stride", "dilation")}
        self.emit(
            "TRANSPOSED_CONVOLUTION" if operation.is_transposed else "CONVOLUTION",
            node,
            grid,
            shape_in=three(shape),
            shape_out=three(out),
            kernel=kernel,
            padding=_zeros_beside(node, operation, kernel, options["dilation"], axes),
            groups=operation.num_groups,
            **options,
            **common,
        )

    def _average(self, node: fx.Node, module: WindowAverage) -> None:
        shape = self._shape_of_operand(node)
        full = torch.Size((1, *shape))
        _, _, numbers = module.requantization(full)
        tables = _constants(node, *(v.reshape(-1) for v in numbers))
        average = module.sums.average
        channels, height, width = three(shape)
        if len(shape) > 3:
            raise _unsupported(node, "it is 3-d")
        if isinstance(average, Mean):
            if {d % len(full) for d in average.dims} != set(range(2, len(full))):
                raise _unsupported(node, "it averages over other axes than height and width")
            windows = [Windows(size, size, 0, 0, [size]) for size in shape[1:]]
        else:
            windows = [window for window, _ in module.sums.windows(full)]
        self.emit(
            "WINDOW_SUM",
            node,
            module.grid,
            shape_in=(channels, height, width),
            shape_out=(channels, *(*(len(w.lengths) for w in windows), 1)[:2]),
            kernel=pair([w.kernel for w in windows]),
            stride=pair([w.stride for w in windows]),
            padding=pair([w.padding for w in windows], 0),
            **tables,
        )

    def _max_pool(self, node: fx.Node, given: dict[str, Any]) -> None:
        axes = len(self._shape_of_operand(node)) - 1
        if axes > 2:
            raise _unsupported(node, "it is 3-d")
        self._move(
            "MAX_POOL",
            node,
            kernel=sides(given["kernel_size"], axes),
            stride=sides(given["stride"] or given["kernel_size"], axes),
            padding=sides(given["padding"], axes, 0),
            dilation=sides(given["dilation"], axes),
        )

    def _permute(self, node: fx.Node, given: dict[str, Any]) -> None:
        shape = self._shape_of_operand(node)
        full = torch.arange(math.prod(shape)).reshape(1, *shape)
        if operation_of(node) is PERMUTE:
            moved = full.permute(given["dims"])
        else:
            moved = full.transpose(given["dim0"], given["dim1"])
        if torch.equal(moved.flatten(), full.flatten()):  # only axes of size 1 change places
            self.buffers[node] = self._renamed(node)
            return
        if moved.shape[0] != 1 or moved.dim() > 4:
            raise _unsupported(node, "it moves the batch, or has more than three axes")
        self._move("PERMUTE", node, strides=(*moved.stride()[1:], 0, 0)[:3])

    def _move(self, opcode: str, node: fx.Node, **options: Any) -> None:
        """An instruction whose result lies on its operand's grid."""
        operand = self.operand(node.all_input_nodes[0])
        self.emit(
            opcode,
            node,
            operand.grid,
            operands=[operand],
            shape_in=three(self._shape_of_operand(node)),
            shape_out=three(self.shapes[node]),
            **options,
        )

    def _saturate(self, node: fx.Node, module: Saturate) -> None:
        """An add or a concat, of which this clamp is the end."""
        source = node.all_input_nodes[0]
        operands = self.pending[source]
        if operation_of(source) is ADD:
            if len({b.size for b in operands}) > 1 or operands[0].size != math.prod(
                self.shapes[node]
            ):
                raise _unsupported(node, "it adds values of different shapes")
            shape = three(self.shapes[node])
            self.emit(
                "ADD",
                node,
                module.grid,
                operands=operands,
                holds=2,
                shape_in=shape,
                shape_out=shape,
            )
            return
        axis: Any = _fixed_arguments(source)["dim"]
        if operation_of(source) is not CAT or axis % (len(self.shapes[node]) + 1) != 1:
            raise _unsupported(node, "it concatenates along another axis than the channels")
        result = Buffer(self.shapes[node], module.grid)
        done = 0
        for left, operand in zip(range(len(operands), 0, -1), operands, strict=True):
            shape = three(operand.shape)
            self.emit(
                "COPY",
                node,
                module.grid,
                operands=[operand],
                holds=left,
                result=result,
                result_offset=done,
                shape_in=shape,
                shape_out=shape,
            )
            done += operand.size

    def _dequantize(self, node: fx.Node, module: Dequantize) -> None:
        """Only the outputs are dequantized; the device gives integers."""
        for user in node.users:
            if user.op != "output":
                raise _unsupported(user, f"{self._what(user)} computes in float")
        self.buffers[node] = self._renamed(node)


_READERS: dict[type[nn.Module], Callable[..., None]] = {
    OffsetScaleShift: Reader._scale,
    OffsetScaleShiftLayer: Reader._layer,
    OffsetScaleShiftProduct: read_product,
    WindowAverage: Reader._average,
    IntegerTable: read_table,
    ExactSoftmax: read_softmax,
    Saturate: Reader._saturate,
    Dequantize: Reader._dequantize,
}


def _fixed_arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments of a call but the tensors, which must not be computed in the model."""
    given = {k: v for k, v in arguments(node).items() if k not in ("input", "tensors")}
    for name, value in given.items():
        if contains_node(value):
            raise _unsupported(node, f"its {name} is computed in the model")
    return given


def _zeros_beside(
    node: fx.Node, layer: QuantLayer, kernel: Sequence[int], dilation: Sequence[int], axes: int
) -> tuple[int, int]:
    """Zeros on each side of a convolution's input."""
    padding: Any = layer.padding
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        raise _unsupported(node, "it pads with other values than zeros")
    if padding == "same":
        both = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(zeros % 2 for zeros in both):
            raise _unsupported(node, "its padding is not the same on both sides")
        return both[0] // 2, both[1] // 2
    return sides(0 if padding == "valid" else padding, axes, 0)


def _constants(
    node: fx.Node, offset: Tensor, multiplier: Tensor, shift: Tensor
) -> dict[str, list[int]]:
    if not bool((offset == torch.round(offset)).all()):
        raise _unsupported(node, "its offsets are floats (float_ops has 'fb')")
    count = max(offset.numel(), multiplier.numel())
    names = ("offsets", "multipliers", "shifts")
    return {
        name: [int(v) for v in vector.reshape(-1).expand(count).tolist()]
        for name, vector in zip(names, (offset, multiplier, shift), strict=True)
    }
