"""Rows of operations whose result is no single floating-point tensor, and of parts of results."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import fx, nn

from edgeailite.quantization.graph import traits
from edgeailite.quantization.graph.registry import each, operation_named
from edgeailite.quantization.graph.registry import register_operation as row
from edgeailite.quantization.graph.value_types import TensorType

if TYPE_CHECKING:
    from edgeailite.quantization.graph.registry import BoundCall, Operation, Variant

ELEMENT = row("element", replace(traits.NONE, reads_one=True), "input, key")
"""A part of a dict, list or dataclass, or of a result with several tensors."""
RECURRENT = row(
    "recurrent",
    replace(traits.NONE, splits=True),
    "input",
    modules=(nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell),
)
"""Stays whole, in float; its result is a tuple."""
NO_FLOATS = row(
    "no_floats",
    traits.NONE,
    functions=(
        *(operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne),
        *(torch.lt, torch.le, torch.gt, torch.ge, torch.eq, torch.ne, torch.isnan, torch.isinf),
        *(torch.isfinite, torch.argmax, torch.argmin, torch.argsort, torch.nonzero),
        *(torch.logical_and, torch.logical_or, torch.logical_not, operator.invert),
    ),
    methods=(
        *("lt", "le", "gt", "ge", "eq", "ne", "isnan", "isinf", "isfinite", "argmax", "argmin"),
        *("argsort", "nonzero", "logical_and", "logical_or", "logical_not", "bool", "int", "long"),
    ),
)
"""Gives booleans or integers, which no grid holds."""


def _with_a_dimension(call: BoundCall) -> Variant | None:
    """``max(x)`` gives one value, ``max(x, y)`` compares tensors."""
    dim = call.arguments["dim"]
    if dim is None or isinstance(dim, fx.Node):
        return "unknown", "it has no dimension: a maximum of all values, or of two tensors"
    return None


WITH_INDICES = row(
    "with_indices",
    replace(traits.MOVE, splits=True),
    "input, k, dim=-1, largest=True, sorted=True",
    functions=(torch.topk,),
    methods=("topk",),
)
"""Values of the operand, and where they were."""
row(
    "extreme_with_index",
    WITH_INDICES.traits,
    "input, dim=None, keepdim=False",
    variant=_with_a_dimension,
    functions=(torch.max, torch.min),
    methods=("max", "min"),
)
row(
    "sort",
    WITH_INDICES.traits,
    "input, dim=-1, descending=False, stable=False",
    functions=(torch.sort,),
    methods=("sort",),
)
row(
    "max_pool_with_indices",
    replace(WITH_INDICES.traits, keeps_channels=True),
    "input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=True",
    functions=each(F, "max_pool{}d_with_indices"),
)
row(
    "adaptive_max_pool_with_indices",
    replace(WITH_INDICES.traits, keeps_channels=True),
    "input, output_size, return_indices=True",
    functions=each(F, "adaptive_max_pool{}d_with_indices"),
)
_WITH_INDICES = (
    WITH_INDICES.name,
    "extreme_with_index",
    "sort",
    "max_pool_with_indices",
    "adaptive_max_pool_with_indices",
)
MAX_UNPOOL = row(
    "max_unpool",
    traits.MOVE_IN_CHANNEL,
    "input, indices, kernel_size, stride=None, padding=0, output_size=None",
    modules=each(nn, "MaxUnpool{}d"),
    functions=each(F, "max_unpool{}d"),
)


def part_of(node: fx.Node) -> Operation | None:
    """Row of a call that takes a part of something that is no tensor; None for other calls.

    Args:
        node: Call of ``x[key]`` or ``x.key``; what it reads was read before.
    """
    source, key = node.args[0], node.args[1]
    if not isinstance(source, fx.Node):
        return None
    operation, known = source.meta["call"].operation, source.meta.get("type")
    if operation.name in _WITH_INDICES:
        return operation_named("index") if key in (0, "values") else ELEMENT
    if operation.traits.splits and operation is not RECURRENT:
        return None
    if operation is RECURRENT or (node.target is operator.getitem and isinstance(key, str)):
        return ELEMENT
    if known is not None:
        return None if isinstance(known, TensorType) or known is torch.Size else ELEMENT
    of_hidden = operation is ELEMENT and source.args[1] == 1 and _root(source) is RECURRENT
    return ELEMENT if of_hidden and isinstance(key, int) else None


def _root(node: fx.Node) -> Operation:
    while node.meta["call"].operation is ELEMENT:
        node = node.all_input_nodes[0]
    operation: Operation = node.meta["call"].operation
    return operation


def is_input(node: fx.Node) -> bool:
    """Return True for an input of the graph, or a tensor in one."""
    return node.op == "placeholder" or (
        node.meta["call"].operation is ELEMENT and is_input(node.all_input_nodes[0])
    )
