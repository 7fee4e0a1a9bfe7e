"""Values that do not depend on the input, and operations that keep them so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

if TYPE_CHECKING:
    from edgeailite.quantization.graph.registry import Operation


def is_computed_from_parameters(node: fx.Node) -> bool:
    """Return True if a value depends on parameters and buffers alone, by functions."""
    if node.op == "get_attr" or node.meta["call"].operation.name == "parametrization":
        return True
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
        return False
    return all(map(is_computed_from_parameters, node.all_input_nodes))


def is_known_before_the_input(node: fx.Node) -> bool:
    """Return True if a value depends on parameters and buffers alone, layers of them included."""
    if node.op == "get_attr":
        return True
    sources = node.all_input_nodes
    return (
        node.op != "placeholder" and bool(sources) and all(map(is_known_before_the_input, sources))
    )


def has_one_result(operation: Operation) -> bool:
    """Return True for an operation whose module gives the same for the same in evaluation."""
    traits = operation.traits
    known = traits.has_weight or traits.moves_values or traits.is_activation or traits.is_pointwise
    return known and not traits.splits
