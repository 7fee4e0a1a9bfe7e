"""One pass over an integer graph: every node becomes calls of kernels, by a registry of rules."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.graph.calls import arguments, operation_of, traits_of
from edgeailite.quantization.graph.model import graph_of, module_of
from edgeailite.quantization.graph.operations import INPUT, OUTPUT, SCALAR
from edgeailite.quantization.graph.patterns import call_name
from edgeailite.quantization.graph.running import GraphRunner, node_values
from edgeailite.quantization.graph.twins import original_type
from edgeailite.quantization.integer.grid import (
    Dequantize,
    IntegerConstant,
    IntegerOperator,
    Quantize,
    Requantize,
)
from edgeailite.quantization.targets.c.copies import copied
from edgeailite.quantization.targets.c.program import (
    Argument,
    Buffer,
    Order,
    Port,
    Program,
    Raw,
    Step,
    Value,
    offset_of,
    stored,
)
from edgeailite.quantization.targets.c.registry import CALLS, ON_REALS, RULES, NoForm, Rule, emits

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.integer.grid import Grid


class Pending(NamedTuple):
    """An operation on real values, which waits for the rounding behind it."""

    node: fx.Node


class Reader:
    """One pass over the nodes of an integer graph.

    Args:
        model: The integer graph.
        example_inputs: Of the shapes that the device will see; of a batch the first counts.

    Attributes:
        program: What was emitted so far.
        known: Value of each node for the example, sizes among them.
    """

    def __init__(self, model: GraphModel, example_inputs: Sequence[Tensor]) -> None:
        self.model, self.program = model, Program()
        first = [x[:1] for x in example_inputs]
        self.known = node_values(model, first, set(graph_of(model).nodes))
        self.runner = GraphRunner(model)
        self.values: dict[fx.Node, Any] = {}
        self._inputs: dict[fx.Node, Buffer] = {}
        self._copies: dict[tuple[Buffer, int, bytes], Buffer] = {}
        self._node: fx.Node | None = None

    def read(self) -> Program:
        """Read all nodes.

        Raises:
            NoForm: An operation cannot be written as C; the message names it.
        """
        for node in graph_of(self.model).nodes:
            self._node = node
            try:
                self._read(node)
            except NoForm:
                raise
            except ValueError as error:
                raise self._no_form(str(error)) from error
        for node, buffer in self._inputs.items():
            if buffer.grid is None or buffer.order is None:
                self._node = node
                self.refuse("an input that nothing reads in integers has no grid")
            port = Port(buffer, buffer.shape, buffer.order, buffer.grid)
            self.program.inputs.append(port)
        self.program.plan()
        return self.program

    def _read(self, node: fx.Node) -> None:
        operation, module = operation_of(node), module_of(self.model, node)
        if operation is INPUT:
            self._place_input(node)
        elif operation is OUTPUT:
            self._place_outputs(node)
        elif operation is SCALAR:
            return
        elif isinstance(module, Dequantize) or (isinstance(module, Requantize) and module.moved):
            self.values[node] = self.values[node.all_input_nodes[0]]
        elif rule := self._rule(module):
            self.values[node] = rule(self, node, module)
        elif isinstance(module, IntegerOperator):
            self.refuse(f"there is no kernel for {type(module).__name__}")
        elif operation.name in CALLS:
            given = {k: self.filled(v) for k, v in arguments(node).items() if k != "input"}
            self.values[node] = CALLS[operation.name](self, node, given)
        elif traits_of(node).moves_values:
            self.values[node] = self._moved(node)
        else:
            self.values[node] = Pending(node)

    def _rule(self, module: nn.Module | None) -> Rule | None:
        return next((RULES[t] for t in type(module).__mro__ if t in RULES), None)

    # ---- what rules use ----

    def refuse(self, why: str) -> NoReturn:
        """Raise the error for the node that is read."""
        raise self._no_form(why)

    def refuse_float(self, node: fx.Node) -> NoReturn:
        """Raise the error for a node whose result no quantizer behind it rounds."""
        self._node = node
        self.refuse(f"{self.kind(node)} runs in float")

    def _no_form(self, why: str) -> NoForm:
        assert self._node is not None
        return NoForm(
            f"'{self.path}' cannot be written as C: {why}. Replace the operation, or compute it "
            "outside of the network; docs/firmware.md lists what is written."
        )

    @property
    def path(self) -> str:
        """Path of the node that is read, in the user's model where it is known."""
        assert self._node is not None
        module = module_of(self.model, self._node)
        paths = (getattr(module, name, "") for name in ("layer_path", "quantizer_path"))
        return next(filter(None, paths), call_name(self._node))

    def filled(self, argument: Any) -> Any:
        """An argument in which sizes computed by the model are numbers."""
        return fx.map_arg(argument, lambda n: self.known[n])

    def operand(self, node: fx.Node, number: int = 0) -> Value:
        """Value of one of a node's inputs, on a grid."""
        return self.value(node.all_input_nodes[number])

    def value(self, node: fx.Node) -> Value:
        """Value of a node, on a grid.

        Raises:
            NoForm: It is computed in float.
        """
        value = self.values[node]
        if isinstance(value, Pending):
            self.refuse_float(value.node)
        if not isinstance(value, Value):
            self.refuse("it reads a float")
        return value

    def kind(self, node: fx.Node) -> str:
        """Type of the module, or name of the function, that a node calls."""
        module = module_of(self.model, node)
        name = getattr(node.target, "__name__", str(node.target))
        return original_type(module).__name__ if module is not None else name

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of a node's value, without the batch."""
        known = self.known[node]
        if not isinstance(known, Tensor) or known.shape[:1] != (1,):
            self.refuse("its result has no batch axis")
        return tuple(known.shape[1:])

    def contiguous(self, value: Value, order: Order, fill: int | None = None) -> Buffer:
        """A buffer that holds a value, and nothing else, with its axes in that order.

        Args:
            value: The value.
            order: Of its axes in memory.
            fill: Stored integer where it has none of its own; None: zero.
        """
        numbers = value.numbers().permute(order).reshape(-1)
        buffer = value.buffer
        if buffer.values is not None:
            return Buffer(tuple(numbers.shape), buffer.grid, (0,), buffer.values[numbers])
        if buffer.order is None:
            buffer.order = _order_of(buffer.shape, numbers)
        places = torch.from_numpy(buffer.places())
        places = torch.where(numbers < 0, -1, places[numbers])
        if torch.equal(places, torch.arange(buffer.count)):
            return buffer
        fill = value.grid.zero_point - offset_of(value.grid) if fill is None else fill
        key = (buffer, fill, places.numpy().tobytes())
        if key not in self._copies:
            steps, self._copies[key] = copied(self.path, buffer, places, value.grid, fill)
            self.program.steps += steps
        return self._copies[key]

    def own_order(self, value: Value) -> Order:
        """Axes of a value as they lie in memory already, as far as they lie in any order."""
        buffer, axes = value.buffer, tuple(range(len(value.shape)))
        if buffer.order is None:
            buffer.order = _order_of(buffer.shape, value.numbers().reshape(-1))
        numbers = value.numbers()
        if numbers.numel() == 0 or int(numbers.min()) < 0 or buffer.values is not None:
            return axes
        places, first = torch.from_numpy(buffer.places()), numbers[(0,) * len(axes)]
        apart = {}
        for axis in axes:
            if numbers.shape[axis] > 1:
                second = numbers.select(axis, 1)[(0,) * (len(axes) - 1)]
                apart[axis] = int(places[second] - places[first])
        return tuple(sorted(axes, key=lambda a: -apart.get(a, 1 << 62)))

    def emit(
        self,
        kernel: str,
        args: Sequence[Argument],
        reads: Sequence[Buffer],
        writes: Sequence[Buffer],
    ) -> None:
        """Add a call of a kernel for the node that is read."""
        held = [buffer for buffer in reads if buffer.values is None]
        self.program.steps.append(Step(self.path, kernel, list(args), held, list(writes)))

    def made(self, shape: Sequence[int], grid: Grid, order: Order) -> Value:
        """A new value, with its axes in that order in memory."""
        buffer = Buffer(tuple(shape), grid, order)
        return Value(buffer, tuple(shape), grid)

    # ---- inputs, outputs, moves ----

    def _place_input(self, node: fx.Node) -> None:
        known = self.known[node]
        if not isinstance(known, Tensor):
            self.refuse("an input of the network is no tensor")
        buffer = Buffer(tuple(known.shape[1:]), None, None)
        self._inputs[node] = buffer
        self.values[node] = Raw(buffer, buffer.shape)

    def _place_outputs(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            value = self.value(source)
            order = self.own_order(value)
            port = Port(self.contiguous(value, order), value.shape, order, value.grid)
            self.program.outputs.append(port)

    def _moved(self, node: fx.Node) -> Any:
        """Numbers of the values that an operation moves: it moves the numbers themselves."""
        source = node.all_input_nodes[0]
        value = self.values[source]
        if isinstance(value, Pending):
            return Pending(node)
        if isinstance(value, list) and node.target in (operator.getitem, getattr):
            return self._part(value, self.filled(node.args[1]))
        if not isinstance(value, Raw) and type(self.known[source]) not in (tuple, list):
            self.refuse("it takes a part of a structure")
        parts = value if isinstance(value, list) else [value]  # of a split
        marks = [(part.numbers() + 1).double()[None] for part in parts]  # 0: a padding's zeros
        last = parts[0].buffer.count + 1
        mirrored = [torch.where(m > 0, last - m, 0.0) for m in marks]
        moved, again = (self._computed(node, source, value, m) for m in (marks, mirrored))
        return self._unmarked(parts[0], moved, again)

    def _part(self, parts: list[Any], which: Any) -> Any:
        """One of several results, by its number or its name."""
        number = ("values", "indices").index(which) if isinstance(which, str) else which
        if parts[number] is None:
            self.refuse("it reads the places of the largest values")
        return parts[number]

    def _computed(self, node: fx.Node, source: fx.Node, value: Any, marks: list[Tensor]) -> Any:
        """Result of a node for marks in the place of its operand's value."""
        given = tuple(marks) if isinstance(value, list) else marks[0]
        return self.runner.compute(node, lambda n: given if n is source else self.known[n])

    def _unmarked(self, source: Raw, moved: Any, again: Any) -> Any:
        if isinstance(moved, tuple | list):
            pairs = zip(moved, again, strict=True)
            return [self._unmarked(source, *pair) for pair in pairs]
        if moved.shape[:1] != (1,):
            self.refuse("it moves values between images of the batch")
        if bool(moved.isneginf().any()):
            self.refuse("it pads with minus infinity")
        if not torch.equal(torch.where(moved > 0, source.buffer.count + 1 - moved, 0.0), again):
            self.refuse("it chooses among values by their size")
        index = moved[0].long() - 1
        return replace(source, shape=tuple(index.shape), index=index)


def _order_of(shape: tuple[int, ...], numbers: Tensor) -> Order:
    """Order of axes in which the values lie as they are first read; else channels last."""
    axes = tuple(range(len(shape)))
    if numbers.numel() == math.prod(shape):
        natural = torch.arange(math.prod(shape)).reshape(shape)
        for order in itertools.permutations(axes):
            if torch.equal(natural.permute(order).reshape(-1), numbers):
                return order
    return (*axes[1:], 0) if len(axes) > 2 else axes


@emits(IntegerConstant)
def _emit_constant(reader: Reader, node: fx.Node, module: IntegerConstant) -> Value:
    integers = module.integers
    shape = tuple(integers.shape)
    values = stored(integers.reshape(-1), module.grid)
    return Value(Buffer(shape, module.grid, tuple(range(len(shape))), values), shape, module.grid)


@emits(Quantize)
def _emit_quantize(reader: Reader, node: fx.Node, module: Quantize) -> Value:
    source = node.all_input_nodes[0]
    value = reader.values.get(source)
    if isinstance(value, Pending):
        rule = ON_REALS.get(operation_of(value.node).name)
        if rule is None:
            reader.refuse_float(value.node)
        return rule(reader, node, value.node, module)
    if not isinstance(value, Raw):
        reader.refuse("it reads a float")
    if isinstance(value, Value):
        return ON_REALS["requantize"](reader, node, source, module)
    buffer = value.buffer
    if buffer.grid not in (None, module.grid):
        reader.refuse("the network's input is quantized twice, to different grids")
    buffer.grid = module.grid
    return Value(buffer, value.shape, module.grid, index=value.index)
