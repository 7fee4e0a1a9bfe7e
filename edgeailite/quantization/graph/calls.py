"""Calls of a graph, read once: each node's operation and its arguments by name.

:func:`read_calls` writes a :class:`Call` to ``node.meta["call"]``; everything behind asks that
record which operation a node is, and what its arguments are.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from edgeailite.quantization.graph.operations import (
    INPUT,
    OUTPUT,
    SCALAR,
    UNKNOWN,
)
from edgeailite.quantization.graph.registry import (
    REQUIRED,
    Operation,
    operation_named,
    operation_of_function,
    operation_of_method,
    operation_of_module,
)
from edgeailite.quantization.graph.results import part_of
from edgeailite.quantization.graph.variants import factors_of

if TYPE_CHECKING:
    from edgeailite.quantization.graph.traits import Traits

# Other names of parameters, by which torch takes them as well or some calls of a row know them.
_ALIASES = {
    "axis": "dim",
    "axis0": "dim0",
    "axis1": "dim1",
    "chunks": "parts",
    "dims": "sizes",
    "exponent": "other",
    "indices": "parts",
    "keepdims": "keepdim",
    "mat2": "other",
    "repeats": "sizes",
    "sections": "parts",
    "shape": "sizes",
    "size": "sizes",
    "split_size": "parts",
    "split_size_or_sections": "parts",
    "start": "index",
    "tensor": "input",
    "tensor_indices_or_sections": "parts",
}


@dataclass(frozen=True)
class Call:
    """A node as the table of operations sees it.

    Attributes:
        operation: The row.
        places: Where a parameter is in the node: its position, its keyword, or the first position
            of several.
        values: What parameters that are not in the node have: defaults, a module's attributes.
        reason: Why a call of a known function or module is no known operation; else empty.
    """

    operation: Operation
    places: Mapping[str, int | str | slice] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


def operation_of(node: fx.Node) -> Operation:
    """Row of a node that was read."""
    return node.meta["call"].operation


def traits_of(node: fx.Node) -> Traits:
    """Traits of a node's operation."""
    return operation_of(node).traits


def argument(node: fx.Node, name: str) -> Any:
    """Value of a call's argument: from the node as it is now, else the default.

    Raises:
        KeyError: The operation has no such parameter.
    """
    call: Call = node.meta["call"]
    place = call.places.get(name)
    if place is None:
        return call.values[name]
    return _at(node, place)


def arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments of a call by name, defaults filled in."""
    call: Call = node.meta["call"]
    return {**call.values, **{name: _at(node, place) for name, place in call.places.items()}}


def _at(node: fx.Node, place: int | str | slice) -> Any:
    if isinstance(place, int):
        return node.args[place]
    if isinstance(place, str):
        return node.kwargs[place]
    rest = node.args[place]
    return rest[0] if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest


def operands(node: fx.Node) -> list[fx.Node]:
    """Values that a call computes on; sizes that it is given are none of them."""
    inputs = node.all_input_nodes
    return inputs[:1] if traits_of(node).reads_one else inputs


def factors(node: fx.Node) -> list[Any]:
    """Operands of a sum or product, in order; of an einsum those that follow the equation."""
    return factors_of(arguments(node))


def read_calls(graph: fx.Graph, module_of: Callable[[fx.Node], nn.Module | None]) -> None:
    """Read every node that was not read yet, in the order of the graph.

    Args:
        graph: Whose ``node.meta`` is written.
        module_of: The module that a node calls, or None.
    """
    for node in graph.nodes:
        if "call" not in node.meta:
            node.meta["call"] = read_call(node, module_of(node))


def read_call(node: fx.Node, module: nn.Module | None) -> Call:
    """Read one node; those it reads were read before.

    Args:
        node: Node of a captured graph.
        module: The module it calls, for ``call_module`` nodes.
    """
    if node.op in _BY_OP:
        return Call(_BY_OP[node.op])
    if node.op == "call_module":
        assert module is not None
        operation = operation_of_module(module)
    elif node.op == "call_function":
        operation = operation_of_function(node.target)
    else:
        operation = operation_of_method(str(node.target))
    part = part_of(node) if node.target in (operator.getitem, getattr) else None
    if part is not None:
        return Call(part, dict(zip(part.parameters, (0, 1), strict=True)))
    bound = None if operation is None else _bind(operation, node, module)
    call = Call(UNKNOWN) if operation is None or bound is None else Call(operation, *bound)
    if _reads_only_scalars(call.operation, node):
        return Call(SCALAR)
    return _refined(call, node)


_BY_OP = {"placeholder": INPUT, "output": OUTPUT, "get_attr": SCALAR}


def _reads_only_scalars(operation: Operation, node: fx.Node) -> bool:
    """Return True for a function, no layer, of sizes and parameters alone."""
    if operation.traits.has_weight or node.op == "call_module" or not node.all_input_nodes:
        return False
    return all(operation_of(source) is SCALAR for source in node.all_input_nodes)


def _refined(call: Call, node: fx.Node) -> Call:
    """The row that the arguments decide on."""
    if call.operation.variant is None:
        return call
    bound = {**call.values, **{name: _at(node, place) for name, place in call.places.items()}}
    variant = call.operation.variant(node, bound)
    if variant is None:
        return call
    name, reason = variant
    return Call(operation_named(name), call.places, call.values, reason)


def _bind(
    operation: Operation, node: fx.Node, module: nn.Module | None
) -> tuple[dict[str, int | str | slice], dict[str, Any]] | None:
    """Places and values of an operation's parameters; None for a call that does not fit them."""
    names = list(operation.parameters)
    if not names:  # nobody asks for the arguments of this operation
        return {}, {}
    places: dict[str, int | str | slice] = {}
    if module is not None:
        # A module's forward takes the tensors; the rest are its attributes.
        names = names[:1]
    for position in range(len(node.args)):
        if position < len(names) and names[position] != operation.variadic:
            places[names[position]] = position
        elif operation.variadic is not None and module is None:
            places[operation.variadic] = slice(names.index(operation.variadic), None)
            break
        elif module is None:
            return None
    for keyword in node.kwargs:
        name = keyword if keyword in operation.parameters else _ALIASES.get(keyword, keyword)
        if name in operation.parameters:
            places[name] = keyword
        elif module is None:
            return None
    values = {
        name: _attribute(operation, module, name, default)
        for name, default in operation.parameters.items()
        if name not in places
    }
    return places, values


def _attribute(operation: Operation, module: nn.Module | None, name: str, default: Any) -> Any:
    attribute = operation.attributes.get(name, name)
    value = getattr(module, attribute, default)
    return None if value is REQUIRED else value
