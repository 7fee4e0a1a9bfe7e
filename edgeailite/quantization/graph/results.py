"""Rows of operations whose result is no single floating-point tensor, and of parts of results."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrize

from edgeailite.quantization.graph import traits
from edgeailite.quantization.graph.registry import each, operation_named
from edgeailite.quantization.graph.registry import register_operation as row
from edgeailite.quantization.graph.value_types import TensorType

if TYPE_CHECKING:
    from edgeailite.quantization.graph.registry import Operation

ELEMENT = row("element", replace(traits.NONE, reads_one=True))
"""A part of a dict, list or dataclass, or of a result with several tensors."""
RECURRENT = row("recurrent", traits.NONE, modules=(nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell))
"""Stays whole, in float; its result is a tuple."""
PARAMETRIZATION = row("parametrization", traits.NONE, modules=(parametrize.ParametrizationList,))
"""Computes a weight from parameters: a layer's own, which is quantized."""
VALUES_AND_PLACES = row(
    "values_and_places",
    traits.NONE,
    functions=(torch.topk, torch.sort, torch.median, torch.mode),
    methods=("topk", "sort", "median", "mode", "kthvalue"),
)
"""In float; the result is a pair, where an axis is given."""
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


MAX_POOL_WITH_INDICES = row(
    "max_pool_with_indices",
    replace(traits.MOVE_IN_CHANNEL, splits=True),
)
ADAPTIVE_MAX_POOL_WITH_INDICES = row(
    "adaptive_max_pool_with_indices",
    replace(traits.MOVE_IN_CHANNEL, splits=True),
)
MAX_WITH_INDICES = row("max_with_indices", replace(traits.MOVE, splits=True))
MAX_UNPOOL = row(
    "max_unpool",
    traits.MOVE_IN_CHANNEL,
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
    if operation in (MAX_POOL_WITH_INDICES, ADAPTIVE_MAX_POOL_WITH_INDICES, MAX_WITH_INDICES):
        return operation_named("index") if key in (0, "values") else ELEMENT
    if operation.traits.splits or operation.name == "scalar":
        return None
    if known is not None:
        return None if isinstance(known, TensorType) else ELEMENT
    if node.target is getattr:
        return ELEMENT if operation is VALUES_AND_PLACES else None
    is_part = operation in (RECURRENT, VALUES_AND_PLACES) or isinstance(key, str)
    of_hidden = operation is ELEMENT and source.args[1] == 1 and _root(source) is RECURRENT
    return ELEMENT if is_part or (of_hidden and isinstance(key, int)) else None


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
