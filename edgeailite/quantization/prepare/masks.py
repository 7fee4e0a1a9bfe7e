"""Masks: numbers far below all values, which a softmax turns into zeros.

One grid of 8 bits that holds a mask has no integers left for the values. Where a softmax alone
reads the sum of values and a constant mask, the range of the sum ends where a softmax sees nothing.
Every other operation that may put a mask among values stays in float, and so does what computes on
its result, until a softmax, a layer, or a function that ends at a bound makes other values of it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.graph.calls import arguments, operands, operation_of, traits_of
from edgeailite.quantization.graph.constants import is_known_before_the_input
from edgeailite.quantization.graph.model import graph_of, module_of
from edgeailite.quantization.graph.moves import MAX_POOL, PAD_BELOW, PAD_WITH_VALUE
from edgeailite.quantization.graph.normalizations import NORMALIZATIONS
from edgeailite.quantization.graph.operations import ATTENTION, MUL, SUB, UNKNOWN
from edgeailite.quantization.graph.patterns import constants_in, softmax_dim
from edgeailite.quantization.graph.registry import operation_of_function
from edgeailite.quantization.graph.running import parameter_value
from edgeailite.quantization.graph.variants import HIDING, is_constant

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

HOLDS_MASK = "holds_mask"
"""Key in ``node.meta``: the value may hold a mask."""
_REASON = (
    "a mask may be in it, and it is no sum with a constant that a softmax alone reads along a "
    "known axis: one grid has no integers left for the other values"
)
# Values so far apart, or so large, are those of a mask.
_GAP, _LARGE = 64.0, 1e4
_PRODUCTS, _QUOTIENTS = ("mul", "multiply", "imul"), ("truediv", "div", "divide", "itruediv")
# Functions that are bounded towards minus infinity.
_BOUNDED = frozenset(
    (
        *("sigmoid", "tanh", "silu", "mish", "gelu", "hardswish", "hardsigmoid", "elu", "celu"),
        *("selu", "softplus", "softsign", "exp", "exp2", "expm1", "reciprocal", "rsqrt", "erf"),
        *("erfc", "sign", "sin", "cos", "atan", "frac", "threshold"),
    )
)


def refuse_masks(model: GraphModel) -> None:
    """Make calls unknown that put a mask among values, or compute on such values.

    Args:
        model: Captured; its nodes are marked with :data:`HOLDS_MASK`.
    """
    large = set[fx.Node]()
    for node in graph_of(model).nodes:
        if _pads_below(node):
            node.meta["call"] = replace(node.meta["call"], operation=PAD_BELOW)
        values = _values_in(node)
        if _joins(node) and not large.issuperset(values):
            for value in large.intersection(values):
                _refuse_product(value)
        masked = any(value.meta[HOLDS_MASK] for value in values)
        if _is_refused(model, node, masked):
            _refuse(node)
        node.meta[HOLDS_MASK] = _holds_mask(model, node, masked)
        if _is_large(model, node, not large.isdisjoint(values)):
            large.add(node)


def _values_in(node: fx.Node) -> list[fx.Node]:
    return [] if node.op in ("placeholder", "get_attr", "output") else operands(node)


def _refuse(node: fx.Node) -> None:
    node.meta["call"] = replace(node.meta["call"], operation=UNKNOWN, reason=_REASON)


def _pads_below(node: fx.Node) -> bool:
    """Return True for a padding with minus infinity that max pools alone read."""
    if operation_of(node) is not PAD_WITH_VALUE or arguments(node)["value"] != -math.inf:
        return False
    return bool(node.users) and all(operation_of(user) is MAX_POOL for user in node.users)


# ---- products with large numbers, as (1 - seen) * -1e4 ------------------------------------------


def _is_large(model: GraphModel, node: fx.Node, of_large: bool) -> bool:
    """Return True for a product with a very large number, and for what is made of one."""
    numbers = [abs(n) for n in node.args if isinstance(n, int | float)]
    name = _name(module_of(model, node), node)
    if name in _PRODUCTS and any(n >= _LARGE for n in numbers):
        return True
    is_made_small = (name in _PRODUCTS and any(n * _LARGE <= 1 for n in numbers)) or (
        name in _QUOTIENTS and any(n >= _LARGE for n in numbers)
    )
    traits = traits_of(node)
    keeps = traits.moves_values or traits.is_pointwise or operation_of(node) is MUL
    return of_large and keeps and not is_made_small and name not in _BOUNDED


def _joins(node: fx.Node) -> bool:
    """Return True where such a product is a mask: beside other values, and where all is float."""
    return _puts_together(node) or operation_of(node) is UNKNOWN


def _puts_together(node: fx.Node) -> bool:
    return traits_of(node).joins_grids or operation_of(node) in (SUB, PAD_WITH_VALUE)


def _refuse_product(product: fx.Node) -> None:
    """Leave a product in float, with the functions that it is computed by."""
    pending = [product]
    while pending:
        node = pending.pop()
        traits = traits_of(node)
        if traits.moves_values or traits.is_pointwise or operation_of(node) is MUL:
            pending += operands(node)
            node.meta[HOLDS_MASK] = True
            if not traits.moves_values:
                _refuse(node)


# ---- values with a mask among them --------------------------------------------------------------


def _is_refused(model: GraphModel, node: fx.Node, masked: bool) -> bool:
    """Return True for arithmetic that gives values with a mask among them."""
    operation, traits = operation_of(node), traits_of(node)
    if operation is UNKNOWN or traits.moves_values or traits.is_activation or traits.has_weight:
        return False
    if traits.is_pointwise:
        return masked and not _is_bounded(model, node)
    if masked:
        return operation not in NORMALIZATIONS and not is_constant(node)
    if softmax_dim(node) is not None or not _puts_together(node):
        return False
    put = _numbers_in(node) if operation is PAD_WITH_VALUE else constants_in(node)
    return any(_is_mask(model, constant) for constant in put)


def _holds_mask(model: GraphModel, node: fx.Node, masked: bool) -> bool:
    call = node.meta["call"]
    if call.reason == HIDING:
        return masked or any(_is_mask(model, n) for n in _numbers_in(node))
    if call.reason == _REASON:
        return True
    if operation_of(node) is UNKNOWN and node.op != "call_module":
        is_attention = operation_of_function(node.target) is ATTENTION
        return masked and not is_attention and not _is_bounded(model, node)
    return masked and traits_of(node).moves_values


def _numbers_in(node: fx.Node) -> list[Any]:
    """Numbers and constants that ``masked_fill``, ``where`` or ``pad`` puts among values."""
    given = arguments(node)
    found = [given[name] for name in ("value", "input", "other") if name in given]
    return [n for n in found if not isinstance(n, fx.Node) or is_constant(n)]


def _is_mask(model: GraphModel, value: Any) -> bool:
    """Return True for values far apart, and where they depend on the size of the input."""
    if not isinstance(value, fx.Node):
        return isinstance(value, int | float) and abs(value) >= _GAP
    if not is_known_before_the_input(value):
        return True
    known = parameter_value(model, value)
    assert isinstance(known, Tensor)
    ordered = known.detach().flatten().sort().values
    gaps = torch.diff(ordered)
    return bool((ordered.abs() >= _LARGE).any()) or bool((gaps >= _GAP).any())


def _is_bounded(model: GraphModel, node: fx.Node) -> bool:
    return _name(module_of(model, node), node) in _BOUNDED


def _name(module: nn.Module | None, node: fx.Node) -> str:
    called = type(module) if module is not None else node.target
    return str(getattr(called, "__name__", called)).lower().rstrip("_")
