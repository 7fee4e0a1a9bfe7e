"""Calls that overwrite an operand, and calls whose result shares an operand's memory."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.graph.calls import argument, operation_of, traits_of
from edgeailite.quantization.graph.casts import is_copy
from edgeailite.quantization.graph.in_place import Aliasing, InPlaceError
from edgeailite.quantization.graph.operations import SCALAR
from edgeailite.quantization.graph.variants import is_constant

_PYTHON_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor")
OUT_OF_PLACE: dict[Any, Any] = {
    getattr(operator, f"i{name.rstrip('_')}"): getattr(operator, name)
    for name in (*_PYTHON_OPERATORS, "lshift", "rshift", "matmul")
}
"""Python's operators that overwrite their first operand, and those that compute the same."""
_COPIES = (torch.clone, "clone")


class TracedAliasing(Aliasing):
    """Of calls as ``torch.fx`` records them, each with its row of the table.

    Args:
        module_of: The module that a node calls.
    """

    def __init__(self, module_of: Callable[[fx.Node], nn.Module | None]) -> None:
        self.module_of = module_of

    def overwritten(self, node: fx.Node) -> fx.Node | None:
        """Return the operand that a call overwrites."""
        operand = node.args[0] if node.args else None
        if not isinstance(operand, fx.Node) or not self._is_in_place(node):
            return None
        is_tensor = operand.op == "get_attr" or is_constant(operand)
        is_number = SCALAR in (operation_of(node), operation_of(operand)) and not is_tensor
        return None if is_number else operand

    def _is_in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return getattr(self.module_of(node), "inplace", False) is True
        if node.op not in ("call_function", "call_method"):
            return False
        if isinstance(node.kwargs.get("out"), fx.Node):
            raise InPlaceError(f"'{node.name}' writes into another tensor (out=)")
        if node.target in OUT_OF_PLACE or _ends_in_one_underscore(node.target):
            return True
        if "inplace" in operation_of(node).parameters:
            return argument(node, "inplace") is True
        return node.kwargs.get("inplace") is True

    def viewed(self, node: fx.Node) -> fx.Node | None:
        """Return the tensor whose memory, all or part of it, the result of a call shares."""
        traits = traits_of(node)
        if not traits.views or traits.splits or node.target in _COPIES or is_copy(node):
            return None
        operand = node.all_input_nodes[0]
        if traits_of(operand).splits and not self.is_split(operand):
            return None  # a pool's values, beside their places
        return operand.all_input_nodes[0] if self.is_split(operand) else operand

    def is_split(self, node: fx.Node) -> bool:
        """Return True for a call that gives a tuple of views."""
        return traits_of(node).splits and traits_of(node).views

    def put_back(self, view: fx.Node, base: fx.Node, value: fx.Node) -> fx.Node:
        """Refuse: sizes, which this needs, are not known to symbolic tracing."""
        raise InPlaceError(
            f"'{value.name}' overwrites a view of '{base.name}', which is read later"
        )


def compute_out_of_place(graph: fx.Graph) -> None:
    """Let calls in place compute their result anew, where a function does."""
    for node in graph.nodes:
        if node.target in OUT_OF_PLACE:
            node.target = OUT_OF_PLACE[node.target]
        elif node.op == "call_method" and _ends_in_one_underscore(node.target):
            name = str(node.target)[:-1]
            if hasattr(Tensor, name):
                node.target = name
        elif node.op == "call_function" and _ends_in_one_underscore(node.target):
            function: Any = node.target
            owner = torch if getattr(torch, function.__name__, None) is function else nn.functional
            node.target = getattr(owner, function.__name__[:-1], function)


def _ends_in_one_underscore(target: Any) -> bool:
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return name.endswith("_") and not name.endswith("__") and name not in ("and_", "or_")
