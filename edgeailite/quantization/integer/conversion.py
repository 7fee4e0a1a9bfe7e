"""From a prepared model to its integer graph: the pass over the nodes, by a target's rules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from edgeailite.quantization.graph.calls import operation_of, traits_of
from edgeailite.quantization.graph.constants import is_known_before_the_input
from edgeailite.quantization.graph.model import (
    GraphModel,
    attribute,
    drop_training_result,
    graph_of,
    program_of,
    target_of,
    tidy,
)
from edgeailite.quantization.graph.modes import is_training
from edgeailite.quantization.graph.operations import OUTPUT, QUANTIZER, SCALAR
from edgeailite.quantization.graph.patterns import only_user
from edgeailite.quantization.graph.running import parameter_value
from edgeailite.quantization.graph.variants import is_constant
from edgeailite.quantization.integer.grid import (
    Dequantize,
    Grid,
    IntegerConstant,
    IntegerOperator,
)
from edgeailite.quantization.modules.activation import FakeQuantize

if TYPE_CHECKING:
    from edgeailite.quantization.integer.rules import Rules


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


def _is_folded(node: fx.Node) -> bool:
    return is_constant(node) and is_known_before_the_input(node)


def convert(model: GraphModel, rules: Rules, integer_outputs: bool = False) -> GraphModel:
    """Make the integer graph of a prepared model.

    Args:
        model: Prepared, with ranges that have seen data. Not changed.
        rules: Of the target; those of an operation that it does not compute are left out.
        integer_outputs: Return the outputs' integers; False: real values.

    Returns:
        A new model that computes in integers between its inputs and outputs; what could not be
        put on a grid runs in float. Its state are integers, under new names.

    Raises:
        ValueError: An activation range has never seen data, or a layer has no form on the target;
            the message names it.
    """
    source = copy.deepcopy(model).eval()
    drop_training_result(source)
    with torch.no_grad():
        converted = Converter(source, rules, integer_outputs).run()
    program = program_of(converted)
    program.stage, program.target = "integer", target_of(model)
    program.sizes = program_of(model).sizes
    return converted


class Converter:
    """One pass over the nodes of a prepared model.

    Attributes:
        model: The prepared model.
        values: The node of the integer graph that each node became.
        grids: The grid that each node's value lies on; None: float.
    """

    def __init__(self, model: GraphModel, rules: Rules, integer_outputs: bool = False) -> None:
        self.model, self.rules, self.integer_outputs = model, rules, integer_outputs
        self.graph = fx.Graph()
        self.values: dict[fx.Node, Any] = {}
        self.grids: dict[fx.Node, Grid | None] = {}
        self.root = nn.Module()
        # Values that were dequantized, where some node reads them so.
        self._reals: dict[fx.Node, fx.Node] = {}

    def run(self) -> GraphModel:
        """Place every node; returns the integer graph."""
        for node in graph_of(self.model).nodes:
            if not self._waits_for_quantizer(node):
                self._place(node)
        converted = GraphModel(self.root, self.graph)
        tidy(converted)
        self._drop_unread_constants()
        return converted.eval()

    def _drop_unread_constants(self) -> None:
        """Drop the integers of constants that operators hold in another form, as gains."""
        read = {node.target for node in self.graph.nodes if node.op == "call_module"}
        for path, module in list(self.root.named_modules()):
            if isinstance(module, IntegerConstant) and path not in read:
                parent, _, name = path.rpartition(".")
                del self.root.get_submodule(parent)._modules[name]

    def _waits_for_quantizer(self, node: fx.Node) -> bool:
        """Return True for a node that is made together with the quantizer behind it."""
        user = only_user(node)
        if user is None or operation_of(user) is not QUANTIZER:
            return False
        operation = operation_of(node)
        if not target_of(self.model).computes(operation):
            return False
        rule = self.rules.fused(operation)
        return rule is not None and rule.is_ready(self, node)

    def _place(self, node: fx.Node) -> None:
        operation = operation_of(node)
        rule = self.rules.placed(operation)
        if _is_folded(node):
            self._place_constant(node)
        elif operation is QUANTIZER:
            self._place_quantizer(node)
        elif rule is not None:
            rule(self, node)
        elif traits_of(node).moves_values and self.grids.get(node.all_input_nodes[0]) is not None:
            self.rules.moves()(self, node)
        elif node.op == "get_attr" and isinstance(self.attribute_of(node), nn.Module):
            return  # a reference that only the training graph needs
        elif node.target is is_training:
            self.values[node], self.grids[node] = False, None
        elif self._asks_for_type(node):
            self.values[node], self.grids[node] = torch.float32, None
        elif operation is OUTPUT and self.integer_outputs:
            self.graph.node_copy(node, self.value)
        else:
            self.place_copy(node)

    def _asks_for_type(self, node: fx.Node) -> bool:
        """Return True for the dtype of a value on a grid: float32, whatever the integers have."""
        if node.target is not getattr or node.args[1] != "dtype":
            return False
        return self.grids.get(node.all_input_nodes[0]) is not None

    def _place_constant(self, node: fx.Node) -> None:
        """Give the integer graph the value; what it is computed from stays behind."""
        if all(operation_of(u) is QUANTIZER or _is_folded(u) for u in node.users):
            return
        path = node.target if node.op == "get_attr" else node.name
        if node.op != "get_attr":
            self.root.register_buffer(node.name, parameter_value(self.model, node))
        else:
            self._share_attribute(str(path))
        self.values[node], self.grids[node] = self.graph.get_attr(str(path)), None

    def _place_quantizer(self, node: fx.Node) -> None:
        quantizer = self.model.get_submodule(str(node.target))
        assert isinstance(quantizer, FakeQuantize)
        quantizer.require_range(str(node.target))
        (operand,) = node.all_input_nodes
        if _is_folded(operand):
            value = parameter_value(self.model, operand)
            constant = IntegerConstant(grid_of(quantizer), value)
            self.set(node, self.call(str(node.target), constant), constant.grid)
        elif operand in self.values:
            alone = self.rules.placed(QUANTIZER)
            if alone is None:
                raise ValueError(
                    "The target has no rule for a quantizer that is placed alone. Register one "
                    "with places('quantizer'), or begin with another target's rules: Rules(base)."
                )
            alone(self, node)
        else:
            rule = self.rules.fused(operation_of(operand))
            assert rule is not None
            rule.convert(self, operand, node, grid_of(quantizer))
        module: Any = self.root.get_submodule(str(self.values[node].target))
        assert isinstance(module, IntegerOperator)
        module.quantizer_path = str(node.target)

    # ---- what rules use ----

    def set(self, node: fx.Node, value: fx.Node, grid: Grid | None) -> None:
        """Note what a node became, and the grid of its value."""
        self.values[node], self.grids[node] = value, grid

    def grid(self, node: fx.Node) -> Grid:
        """Grid of a value that lies on one."""
        grid = self.grids[node]
        assert grid is not None
        return grid

    def quantizer(self, node: fx.Node) -> FakeQuantize:
        """Quantizer that a node of the prepared model calls."""
        module = self.model.get_submodule(str(node.target))
        assert isinstance(module, FakeQuantize)
        return module

    def attribute_of(self, node: fx.Node) -> Any:
        """Module, parameter or buffer that a ``get_attr`` node reads."""
        return attribute(self.model, str(node.target))

    def constant_value(self, node: fx.Node) -> torch.Tensor | None:
        """Real values of a quantized constant; None for a node that is none."""
        if operation_of(node) is not QUANTIZER or not _is_folded(node.all_input_nodes[0]):
            return None
        value = parameter_value(self.model, node.all_input_nodes[0])
        quantized: torch.Tensor = self.quantizer(node)(value)
        return quantized

    def value(self, node: fx.Node) -> fx.Node:
        """Value of a node as it is: integers where it lies on a grid."""
        return self.values[node]

    def real(self, node: fx.Node) -> fx.Node:
        """Value of a node in real units, dequantized once however often it is read."""
        grid = self.grids[node]
        if grid is None:
            return self.values[node]
        if node not in self._reals:
            self._reals[node] = self.call(
                f"{node.name}_dequantize", Dequantize(grid), self.values[node]
            )
        return self._reals[node]

    def centered(self, node: fx.Node) -> fx.Node:
        """``q - z`` of a value on a grid: exact in sums."""
        return self.call(
            f"{node.name}_steps", Dequantize(self.grid(node), scaled=False), self.values[node]
        )

    def call(self, path: str, module: nn.Module, *args: fx.Node) -> fx.Node:
        """Add `module` at `path` (parents are made), numbered if it is taken, and call it."""
        *parents, name = path.split(".")
        owner = self._owner(parents)
        unique, count = name, 0
        while unique in owner._modules:
            count += 1
            unique = f"{name}_{count}"
        owner.add_module(unique, module)
        return self.graph.call_module(".".join([*parents, unique]), args)

    def call_layer(
        self, path: str, module: nn.Module, operand: fx.Node, output_size: Any
    ) -> fx.Node:
        """Add a layer at `path` and call it on the converted operand, and on the output size."""
        made = self.call(path, module, self.values[operand])
        if output_size is not None:
            made.update_kwarg("output_size", fx.map_arg(output_size, self.value))
        return made

    def copy(self, node: fx.Node, operand: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """The same operation on converted operands."""
        if node.op == "call_module":
            args, kwargs = fx.map_arg(node.args, operand), fx.map_arg(dict(node.kwargs), operand)
            call = self.call(str(node.target), self.model.get_submodule(str(node.target)))
            call.args, call.kwargs = args, kwargs
        else:
            call = self.graph.node_copy(node, operand)
            if node.op == "get_attr":
                self._share_attribute(str(node.target))
        call.meta.update(call=node.meta["call"], owner=node.meta.get("owner", ""))
        return call

    def place_copy(self, node: fx.Node) -> None:
        """Place a node as it is, on real values."""
        operand = self.value if operation_of(node) is SCALAR else self.real
        self.set(node, self.copy(node, operand), None)

    def _owner(self, parents: list[str]) -> nn.Module:
        owner = self.root
        for parent in parents:
            if parent not in owner._modules:
                owner.add_module(parent, nn.Module())
            owner = owner.get_submodule(parent)
        return owner

    def _share_attribute(self, path: str) -> None:
        """Give the integer graph a parameter or buffer of the prepared model."""
        *parents, name = path.split(".")
        owner = self._owner(parents)
        if not hasattr(owner, name):
            value = attribute(self.model, path)
            owner.register_buffer(
                name, value.detach() if isinstance(value, torch.Tensor) else value
            )
