"""Calls that belong to another row of the table because of their arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import fx

if TYPE_CHECKING:
    from edgeailite.quantization.graph.registry import Variant


def is_scalar(value: Any) -> bool:
    """Return True for a number, and for a node whose value is no tensor or a parameter."""
    return not isinstance(value, fx.Node) or value.meta["call"].operation.name == "scalar"


def between_tensors(node: fx.Node, arguments: Mapping[str, Any]) -> Variant | None:
    """Sums and products are known between two computed tensors, without a factor ``alpha``."""
    factors = factors_of(arguments)
    if any(map(is_scalar, factors)):
        return "unknown", "one operand is a constant or a parameter, which lies on no grid"
    if len(factors) != 2 or arguments.get("alpha", 1) != 1 or "alpha" in node.kwargs:
        return "unknown", ""
    return None


def factors_of(arguments: Mapping[str, Any]) -> list[Any]:
    """Operands of a sum or product by its bound arguments; all that follow an equation."""
    if "operands" in arguments:
        return list(arguments["operands"])
    return [arguments["input"], arguments["other"]]


def interpolation(node: fx.Node, arguments: Mapping[str, Any]) -> Variant | None:
    """Nearest neighbours move values; other modes compute."""
    return ("resize_nearest", "") if "nearest" in str(arguments["mode"]) else None


def largest_values(node: fx.Node, arguments: Mapping[str, Any]) -> Variant | None:
    """A pool that also gives the places of its values gives a tuple."""
    return ("max_pool_with_indices", "") if arguments["return_indices"] else None


def largest_adaptive_values(node: fx.Node, arguments: Mapping[str, Any]) -> Variant | None:
    """Likewise."""
    return ("adaptive_max_pool_with_indices", "") if arguments["return_indices"] else None


def padding(node: fx.Node, arguments: Mapping[str, Any]) -> Variant | None:
    """Reflection and replication move values; a constant must be zero to lie on every grid."""
    if arguments["mode"] != "constant":
        return "pad_from_inside", ""
    return None if arguments["value"] in (0, 0.0, None) else ("unknown", "")


def indexing(node: fx.Node, arguments: Mapping[str, Any]) -> Variant | None:
    """An element of a shape is a number."""
    return ("scalar", "") if is_scalar(arguments["input"]) else None
