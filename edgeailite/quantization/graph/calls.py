"""Calls of a graph, read once: each node's operation and its arguments by name.

:func:`read_calls` writes a :class:`Call` to ``node.meta["call"]``; everything behind asks that
record which operation a node is, and what its arguments are.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from edgeailite.quantization.graph import (  # noqa: F401 (their rows are found by their calls)
    moves,
    normalizations,
    pointwise,
)
from edgeailite.quantization.graph.constants import has_one_result, is_known_before_the_input
from edgeailite.quantization.graph.operations import (
    INPUT,
    OUTPUT,
    SCALAR,
    UNKNOWN,
)
from edgeailite.quantization.graph.registry import (
    REQUIRED,
    BoundCall,
    Operation,
    operation_named,
    operation_of_function,
    operation_of_method,
    operation_of_module,
)
from edgeailite.quantization.graph.results import part_of
from edgeailite.quantization.graph.value_types import type_of
from edgeailite.quantization.graph.variants import factors_of, is_constant, refused

if TYPE_CHECKING:
    from edgeailite.quantization.graph.traits import Traits

# NumPy's names of parameters, which torch's own functions take as well.
_NUMPY_NAMES = {
    "a": "input",
    "axis": "dim",
    "keepdims": "keepdim",
    "x": "input",
    "x1": "input",
    "x2": "other",
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
    if traits_of(node).is_pointwise:  # a size may come first
        return [source for source in inputs if operation_of(source) is not SCALAR]
    return inputs[:1] if traits_of(node).reads_one else inputs


def factors(node: fx.Node) -> list[Any]:
    """Operands of a sum or product, in order; of an einsum those that follow the equation."""
    return factors_of(arguments(node))


def read_calls(graph: fx.Graph, attribute_of: Callable[[str], Any]) -> None:
    """Read every node that was not read yet, in the order of the graph.

    Args:
        graph: Whose ``node.meta`` is written; the operands of a known call become positional.
        attribute_of: The module, parameter or buffer at a path.
    """
    for node in graph.nodes:
        if "call" not in node.meta:
            module = attribute_of(str(node.target)) if node.op == "call_module" else None
            if node.op == "get_attr":
                node.meta.setdefault("type", type_of(attribute_of(str(node.target))))
            _place_operands_first(node, module)
            node.meta["call"] = read_call(node, module)


def read_call(node: fx.Node, module: nn.Module | None) -> Call:
    """Read one node; those it reads were read before.

    Args:
        node: Node of a captured graph.
        module: The module it calls, for ``call_module`` nodes.
    """
    if node.op in _BY_OP:
        return Call(_BY_OP[node.op])
    part = part_of(node) if node.target in (operator.getitem, getattr) else None
    if part is not None:
        return Call(part, dict(zip(part.parameters, (0, 1), strict=False)))
    operation = _operation_called(node, module)
    call = Call(UNKNOWN) if operation is None else _bind(operation, node, module)
    if _reads_only_scalars(operation or UNKNOWN, node):
        return Call(SCALAR)
    return _refined(call, node, module)


_BY_OP = {"placeholder": INPUT, "output": OUTPUT, "get_attr": SCALAR}


def _operation_called(node: fx.Node, module: nn.Module | None) -> Operation | None:
    if node.op == "call_module":
        assert module is not None
        return operation_of_module(module)
    if node.op == "call_function":
        return operation_of_function(node.target)
    return operation_of_method(str(node.target))


def _reads_only_scalars(operation: Operation, node: fx.Node) -> bool:
    """Return True for an operation on sizes and constants alone.

    Not where it gives one constant for each image of a batch, by moving values of it, which stays
    an operation on the constant; nor for a module or layer that is not known to be a function.
    """
    sources = node.all_input_nodes
    if not sources or any(operation_of(source) is not SCALAR for source in sources):
        return False
    if operation.traits.has_weight or node.op == "call_module":
        return has_one_result(operation) and is_constant(sources[0])
    repeats = operation.traits.moves_values and is_constant(sources[0])
    return not repeats or all(map(is_known_before_the_input, sources))


def _refined(call: Call, node: fx.Node, module: nn.Module | None) -> Call:
    """The row that the arguments decide on."""
    if call.operation.variant is None:
        return call
    given = {**call.values, **{name: _at(node, place) for name, place in call.places.items()}}
    variant = call.operation.variant(BoundCall(node, given, module))
    if variant is None:
        return call
    name, reason = variant
    return Call(operation_named(name), call.places, call.values, reason)


def _place_operands_first(node: fx.Node, module: nn.Module | None) -> None:
    """Make the operands of a call positional: the engine reads them in the order of the row."""
    operation = None if node.op in _BY_OP else _operation_called(node, module)
    if operation is None or not operation.parameters:
        return
    args, kwargs = list(node.args), dict(node.kwargs)
    names = _positional(operation, module)
    while len(args) < len(names) and operation.parameters.get(names[len(args)]) is REQUIRED:
        wanted = names[len(args)]
        keyword = next((k for k in kwargs if _parameter(operation, module, k) == wanted), None)
        if keyword is None:
            break
        args.append(kwargs.pop(keyword))
    node.args, node.kwargs = tuple(args), kwargs


def _positional(operation: Operation, module: nn.Module | None) -> list[str]:
    """Parameters in the order of a call; a module has the others as attributes."""
    names = list(operation.parameters)
    if module is None or not names:
        return names
    return [names[0], *_forward_parameters(module)[1:]]


def _forward_parameters(module: nn.Module) -> list[str]:
    return list(inspect.signature(type(module).forward).parameters)[1:]


def _parameter(operation: Operation, module: nn.Module | None, keyword: str) -> str:
    """Parameter of a row that a keyword gives."""
    if module is not None and keyword == _forward_parameters(module)[0]:
        return next(iter(operation.parameters))
    if keyword in operation.parameters:
        return keyword
    return operation.aliases.get(keyword) or _NUMPY_NAMES.get(keyword, keyword)


def _bind(operation: Operation, node: fx.Node, module: nn.Module | None) -> Call:
    """Places and values of an operation's parameters; unknown, if the row lacks an argument."""
    if not operation.parameters:  # nobody asks for the arguments of this operation
        return Call(operation)
    names, places = _positional(operation, module), dict[str, int | str | slice]()
    for position, value in enumerate(node.args):
        if module is None and operation.variadic in names[: position + 1]:
            places[str(operation.variadic)] = slice(names.index(str(operation.variadic)), None)
            break
        if position >= len(names) or names[position] not in operation.parameters:
            return Call(UNKNOWN, reason=refused(f"argument {position + 1}", value)[1])
        places[names[position]] = position
    for keyword, value in node.kwargs.items():
        name = _parameter(operation, module, keyword)
        if name not in operation.parameters:
            return Call(UNKNOWN, reason=refused(keyword, value)[1])
        places[name] = keyword
    values = {
        name: _attribute(operation, module, name, default)
        for name, default in operation.parameters.items()
        if name not in places
    }
    return Call(operation, places, values)


def _attribute(operation: Operation, module: nn.Module | None, name: str, default: Any) -> Any:
    attribute = operation.attributes.get(name, name)
    value = getattr(module, attribute, default)
    return None if value is REQUIRED else value
