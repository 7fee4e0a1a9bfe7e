"""Casts of values: to a type, to a device, to both of another tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

if TYPE_CHECKING:
    from edgeailite.quantization.graph.registry import BoundCall, Variant

TYPES = {
    "float": torch.float32,
    "double": torch.float64,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""Methods that name the type."""


def cast(call: BoundCall) -> Variant | None:
    """A value stays float32 or becomes integers; with another type it lies on no grid."""
    source, *given = call.node.args
    given += call.node.kwargs.values()
    wanted, name = [v for v in given if _says_type(v)], str(call.node.target)
    if wanted or name in TYPES:
        before, after = dtype_of(source), dtype_of(call.node) or _asked(name, wanted)
        if after is not None and not (after.is_floating_point or after.is_complex):
            return "no_floats", ""
        if before is not torch.float32 or after is not torch.float32:
            return "unknown", _change(before, after)
    return ("to_device", "") if any(map(_says_device, given)) else None


def is_copy(node: fx.Node) -> bool:
    """Return True for ``x.to(..., copy=True)``, whose result never shares memory with `x`."""
    flags = [value for value in node.args if isinstance(value, bool)]  # non_blocking, copy
    return node.target == "to" and (node.kwargs.get("copy") is True or flags[1:] == [True])


def _change(before: torch.dtype | None, after: torch.dtype | None) -> str:
    if before is None or after is None:
        return "it may change the type of its operand, which is not known: give an example input"
    return f"it makes {after} of {before}"


def _says_type(value: Any) -> bool:
    """Return True for a type, and for a tensor that has one."""
    if isinstance(value, fx.Node):
        return not _says_device(value)
    return isinstance(value, torch.dtype)


def _says_device(value: Any) -> bool:
    if isinstance(value, fx.Node):
        return value.target is getattr and value.args[1] == "device"
    is_index = isinstance(value, int) and not isinstance(value, bool)
    return is_index or isinstance(value, torch.device | str)


def _asked(method: str, wanted: list[Any]) -> torch.dtype | None:
    """Type that a call asks for, as far as the graph says."""
    if method in TYPES:
        return TYPES[method]
    (value,) = wanted
    if isinstance(value, fx.Node):
        asks = value.target is getattr and value.args[1] == "dtype"
        return dtype_of(value.args[0] if asks else value)
    assert isinstance(value, torch.dtype)
    return value


def dtype_of(node: Any) -> torch.dtype | None:
    """Type of a value's elements: as it ran, else that of the layer which it comes from.

    None if neither is known. A model's layers are float32.
    """
    if "type" in node.meta:
        return getattr(node.meta["type"], "dtype", None)
    traits = node.meta["call"].operation.traits if "call" in node.meta else None
    if traits is None or not any(vars(traits).values()):
        return None  # nothing is known about the operation
    if traits.has_weight:
        return torch.float32
    found = {dtype_of(source) for source in node.all_input_nodes} - {None}
    return found.pop() if len(found) == 1 else None
