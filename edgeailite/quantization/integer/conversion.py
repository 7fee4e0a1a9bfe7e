"""Trained graph to integer graph."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from edgeailite.quantization.arithmetic.rounding import round_to_integer
from edgeailite.quantization.arithmetic.weights import quantize_bias
from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.graph.operations import (
    Kind,
    avg_pool_options,
    global_average,
    is_training,
    operands,
    product_operands,
)
from edgeailite.quantization.integer.operators import (
    Dequantize,
    Grid,
    IntegerAdd,
    IntegerAveragePool,
    IntegerGlobalAverage,
    IntegerLayer,
    IntegerMatMul,
    IntegerMul,
    Quantize,
    Requantize,
    StepsToReal,
    TwoOperands,
    has_kernel,
)
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.modules.layer_calls import LayerCall, attribute, layer_call
from edgeailite.quantization.modules.normalization import (
    StandaloneBatchNorm,
    channel_affine,
    gain_and_offset,
)
from edgeailite.quantization.prepare.annotate import MOVES_VALUES
from edgeailite.quantization.prepare.insert import quantizer_of
from edgeailite.quantization.targets.tinpu.operators import (
    Clip,
    FixedPointLayer,
    OffsetScaleShift,
    WindowAverage,
)

SUMS_ONE_GRID = (Kind.AVERAGE, Kind.RESIZE)
BETWEEN_GRIDS = (Kind.ADD, Kind.SUB, Kind.MUL, Kind.MATMUL, Kind.CAT, *SUMS_ONE_GRID)
COMPUTES_INTEGERS = (
    Quantize, IntegerLayer, TwoOperands, IntegerAveragePool, IntegerGlobalAverage,
    OffsetScaleShift, Clip, WindowAverage, FixedPointLayer,
)  # fmt: skip
_ELEMENTWISE = {Kind.ADD: IntegerAdd, Kind.MUL: IntegerMul}
_SPLITS = ("chunk", "split", "tensor_split", "unbind")


def grid_of(quantizer: FakeQuantize) -> Grid:
    """The grid of an activation quantizer in Python numbers (reading them waits for the device)."""
    scale, zero_point, low, high = quantizer.qparams()
    zero = int(zero_point)
    spec = quantizer.spec
    signed = low < 0
    if signed and zero == low and spec.symmetric:  # unsigned by statistics, carried as signed
        low, high, zero, signed = 0, high - low, 0, False
    if quantizer.clips_inside():
        raise ValueError(
            f"The bounds of the channels at '{quantizer.name}', from equalization, lie inside the "
            f"range that the statistics found since. Calibrate again, with a quality, to bring "
            f"both together."
        )
    if quantizer.bounds is not None:
        shift = zero - int(zero_point)  # the limits are those of the carried integers
        low, high = (int(v) + shift for v in quantizer.limits(quantizer.qparams()))
    return Grid(float(scale), zero, low, high, spec.bit_width, signed, spec.rounding)


def convert(model: GraphModel) -> GraphModel:
    """Make the integer graph of a prepared model.

    Args:
        model: Prepared, with ranges that have seen data. Not changed.

    Returns:
        A new model that takes and returns real values and computes in integers in between; what
        could not be put on a grid runs in float. Its parameters' names are gone: its state are
        integers.
    """
    source = copy.deepcopy(model).eval()
    source.classify()
    with torch.no_grad():
        return Converter(source).run()


class Converter:
    """One pass over the nodes, for targets that requantize in float32.

    Attributes:
        values: What became of each node.
        grids: The grid that each node's value lies on; None: float.
        reals: Values that were dequantized, where some node reads them so.
    """

    def __init__(self, model: GraphModel) -> None:
        self.model = model
        self.graph = fx.Graph()
        self.values: dict[fx.Node, Any] = {}
        self.grids: dict[fx.Node, Grid | None] = {}
        self.reals: dict[fx.Node, fx.Node] = {}
        self.root = nn.Module()

    def run(self) -> GraphModel:
        """The integer graph."""
        nodes = list(self.model.graph.nodes)
        for node in nodes:
            if not self._waits_for_quantizer(node):
                self._place(node)
        converted = GraphModel(self.root, self.graph)
        converted.tidy()
        return converted.eval()

    def _waits_for_quantizer(self, node: fx.Node) -> bool:
        """Nodes that are made together with the quantizer behind them."""
        kind, users = node.meta["kind"], list(node.users)
        if len(users) != 1 or users[0].meta["kind"] is not Kind.QUANTIZER:
            return False
        if kind is Kind.LAYER:
            unit = layer_call(self.model, node)
            return unit is not None and self._on_grid(unit.input_node)
        return kind in BETWEEN_GRIDS and all(self._on_grid(a) for a in operands(node))

    def _on_grid(self, node: fx.Node) -> bool:
        return quantizer_of(self.model, node) is not None

    def _place(self, node: fx.Node) -> None:
        kind = node.meta["kind"]
        if kind is Kind.QUANTIZER:
            self._place_quantizer(node)
            self._name_quantizer(node)
        elif kind is Kind.LAYER and isinstance(self.model.module_of(node), QuantLayer):
            self._place_layer(node, node, None)
        elif isinstance(module := self.model.module_of(node), StandaloneBatchNorm):
            affine = FixedBatchNorm(*gain_and_offset(module))
            operand = self._real(node.all_input_nodes[0])
            self._set(node, self._call(str(node.target), affine, operand), None)
        elif kind in MOVES_VALUES and self.grids.get(node.all_input_nodes[0]) is not None:
            self._place_move(node)
        elif node.op == "get_attr" and isinstance(
            attribute(self.model, str(node.target)), nn.Module
        ):
            return  # a reference that only the training graph needs
        elif node.target is is_training:
            self.values[node], self.grids[node] = False, None
        else:
            operands: Callable = self._value if kind is Kind.SCALAR else self._real
            self._set(node, self._copy(node, operands), None)

    def _set(self, node: fx.Node, value: fx.Node, grid: Grid | None) -> None:
        self.values[node], self.grids[node] = value, grid

    def _value(self, node: fx.Node) -> fx.Node:
        return self.values[node]

    def _real(self, node: fx.Node) -> fx.Node:
        """The value in real units, dequantized once however often it is read."""
        grid = self.grids[node]
        if grid is None:
            return self.values[node]
        if node not in self.reals:
            self.reals[node] = self._call(
                f"{node.name}_dequantize", Dequantize(grid), self.values[node]
            )
        return self.reals[node]

    def _call(self, path: str, module: nn.Module, *args: fx.Node) -> fx.Node:
        """Add `module` at `path` (parents are made) and call it."""
        owner = self.root
        *parents, name = path.split(".")
        for parent in parents:
            if parent not in owner._modules:
                owner.add_module(parent, nn.Module())
            owner = owner.get_submodule(parent)
        unique, count = name, 0
        while unique in owner._modules:
            count += 1
            unique = f"{name}_{count}"
        owner.add_module(unique, module)
        return self.graph.call_module(".".join([*parents, unique]), args)

    def _copy(self, node: fx.Node, operand: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """The same operation on converted operands."""
        if node.op == "call_module":
            args = fx.map_arg(node.args, operand)
            call = self._call(str(node.target), self._float_module(node))
            call.args, call.kwargs = args, fx.map_arg(dict(node.kwargs), operand)
            return call
        copied = self.graph.node_copy(node, operand)
        if node.op == "get_attr":
            self._shareattribute(str(node.target))
        return copied

    def _float_module(self, node: fx.Node) -> nn.Module:
        return self.model.get_submodule(str(node.target))

    def _shareattribute(self, path: str) -> None:
        *parents, name = path.split(".")
        owner = self.root
        for parent in parents:
            if parent not in owner._modules:
                owner.add_module(parent, nn.Module())
            owner = owner.get_submodule(parent)
        if not hasattr(owner, name):
            value = attribute(self.model, path)
            owner.register_buffer(
                name, value.detach() if isinstance(value, torch.Tensor) else value
            )

    def _place_quantizer(self, node: fx.Node) -> None:
        quantizer = self.model.get_submodule(str(node.target))
        assert isinstance(quantizer, FakeQuantize)
        grid, operand = grid_of(quantizer), node.args[0]
        assert isinstance(operand, fx.Node)
        if operand not in self.values:
            if operand.meta["kind"] is Kind.LAYER:
                self._place_layer(node, operand, grid)
            elif operand.meta["kind"] is Kind.MATMUL:
                self._place_matmul(node, operand, grid)
            else:
                self._place_operation(node, operand, grid)
        else:
            value = self._call(str(node.target), Quantize(grid), self._real(operand))
            self._set(node, value, grid)

    def _name_quantizer(self, quantizer: fx.Node) -> None:
        """Note the quantizer on the module that computes its integers: verification compares."""
        module: Any = self.root.get_submodule(str(self.values[quantizer].target))
        assert isinstance(module, COMPUTES_INTEGERS)
        module.quantizer_path = str(quantizer.target)

    def _place_operation(self, quantizer: fx.Node, node: fx.Node, grid: Grid) -> None:
        """An operation between grids: on real values, then rounding.

        One that sums values of a single grid runs on its integers instead, where sums are exact.
        """
        kind, read = node.meta["kind"], operands(node)
        if kind in _ELEMENTWISE and self._place_elementwise(quantizer, node, grid):
            return
        if kind is Kind.AVERAGE and self._place_average(quantizer, node, grid):
            return
        if kind in SUMS_ONE_GRID:
            source = self.grids[read[0]]
            assert source is not None
            steps = self._steps(read[0])
            sums = self._copy(node, lambda a: steps if a is read[0] else self.values[a])
            result = self._call(f"{node.name}_real", StepsToReal(source), sums)
        else:
            result = self._copy(node, self._real)
        self._set(quantizer, self._call(str(quantizer.target), Quantize(grid), result), grid)

    def _place_elementwise(self, quantizer: fx.Node, node: fx.Node, output: Grid) -> bool:
        """A sum or product of integers, where ONNX Runtime has a kernel for it."""
        read = operands(node)
        left, right = self.grids[read[0]], self.grids[read[-1]]
        assert left is not None
        assert right is not None
        if not has_kernel(left, right, output=output):
            return False
        values = self.values[read[0]], self.values[read[-1]]
        operation = _ELEMENTWISE[node.meta["kind"]](left, right, output)
        self._set(quantizer, self._call(str(quantizer.target), operation, *values), output)
        return True

    def _place_average(self, quantizer: fx.Node, node: fx.Node, output: Grid) -> bool:
        """An average between free scales, where ONNX Runtime has a kernel for it.

        On power-of-two grids the exact sum, divided by the count, is what every level computes.
        """
        (operand,) = operands(node)
        source = self.grids[operand]
        assert source is not None
        exact = source.is_power_of_two and output.is_power_of_two
        if exact or not has_kernel(source, output=output):
            return False
        keepdim = global_average(node, self.model.module_of(node))
        module: nn.Module
        if keepdim is not None:
            module = IntegerGlobalAverage(source, output, keepdim)
        elif (pool := self._average_pool(node)) is not None:
            module = IntegerAveragePool(pool, source, output)
        else:
            return False
        value = self._call(str(quantizer.target), module, self.values[operand])
        self._set(quantizer, value, output)
        return True

    def _average_pool(self, node: fx.Node) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """A local 2-d average as a function of its input alone; None for any other operation."""
        module = self.model.module_of(node)
        if isinstance(module, nn.AvgPool2d):
            return module
        if node.target is not F.avg_pool2d or node.all_input_nodes[1:]:
            return None
        return functools.partial(F.avg_pool2d, **avg_pool_options(node))

    def _steps(self, node: fx.Node) -> fx.Node:
        grid = self.grids[node]
        assert grid is not None
        return self._call(f"{node.name}_steps", Dequantize(grid, in_steps=True), self.values[node])

    def _place_matmul(self, quantizer: fx.Node, node: fx.Node, grid: Grid) -> None:
        equation = str(node.args[0]) if node.target is torch.einsum else None
        left, right = (a for a in product_operands(node) if isinstance(a, fx.Node))
        grids = self.grids[left], self.grids[right]
        assert grids[0] is not None
        assert grids[1] is not None
        product = IntegerMatMul(grids[0], grids[1], grid, equation)
        values = self.values[left], self.values[right]
        self._set(quantizer, self._call(str(quantizer.target), product, *values), grid)

    def _place_move(self, node: fx.Node) -> None:
        """An operation that moves values: the same integers, elsewhere."""
        source = node.all_input_nodes[0]
        grid = self.grids[source]
        assert grid is not None
        if node.target is operator.getitem and source.meta.get("split"):
            self._set_moved(node, self._copy(node, self._value), grid)
            return
        steps = self._steps(source)
        moved = self._copy(node, lambda a: steps if a is source else self.values[a])
        name = getattr(node.target, "__name__", str(node.target))
        if name in _SPLITS:
            node.meta["split"] = True
            self._set(node, moved, grid)
        else:
            self._set_moved(node, moved, grid)

    def _set_moved(self, node: fx.Node, moved: fx.Node, grid: Grid) -> None:
        self._set(node, self._call(f"{node.name}_move", Requantize(grid, moved=True), moved), grid)

    def _place_layer(self, node: fx.Node, layer_node: fx.Node, output: Grid | None) -> None:
        """A layer alone, or with the quantizer behind it; `node` is the last of them."""
        unit = layer_call(self.model, layer_node)
        assert unit is not None
        grid = self.grids[unit.input_node]
        if grid is None:
            module: FixedLayer | IntegerLayer = FixedLayer(unit.layer, *unit.quantized_parameters())
        else:
            module = _integer_layer(unit, grid, output)
        module.layer_path = unit.path
        value = self._call(unit.path, module, self.values[unit.input_node])
        self._set(node, value, output if grid is not None else None)


class FixedLayer(nn.Module):
    """A layer whose input is float: its weight stays on the grid, the arithmetic is float."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    layer_path = ""  # in the user's model

    def __init__(self, layer: QuantLayer, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.operation = without_parameters(layer)
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float in, float out."""
        return self.operation.operate(x, self.weight, self.bias)


class FixedBatchNorm(nn.Module):
    """A batch norm that no layer folds, in float."""

    gain: torch.Tensor
    offset: torch.Tensor

    def __init__(self, gain: torch.Tensor, offset: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("gain", gain.detach().clone())
        self.register_buffer("offset", offset.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float in, float out; shape ``(N, C, ...)``."""
        return channel_affine(x, self.gain, self.offset)


def without_parameters(layer: QuantLayer) -> QuantLayer:
    """A copy of `layer` that still knows its operation but holds no weights and no children."""
    bare = copy.copy(layer)
    bare._parameters = dict.fromkeys(layer._parameters)
    bare._modules = {}
    return bare


def _integer_layer(unit: LayerCall, grid: Grid, output: Grid | None) -> IntegerLayer:
    layer, spec = unit.layer, unit.layer.weight_quantizer.spec
    weight, bias, scale = unit.folded()
    q = round_to_integer(weight / layer.channels(scale, weight), spec.rounding).clamp(
        spec.quant_min, spec.quant_max
    )
    if bias is not None:
        bias = quantize_bias(
            bias, grid.scale * scale, layer.bias_spec.limit, layer.bias_spec.rounding
        )
    return IntegerLayer(without_parameters(layer), q, bias, scale, grid, output)
