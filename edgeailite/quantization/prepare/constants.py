"""Grids of parameters and buffers that a model computes on, and masks among them.

A mask lowers what a softmax shall not see, by 100 or by infinity. One grid of 8 bits that holds
such values and scores has no integers left for the scores. Where a softmax alone reads the sum, its
range ends where a softmax sees nothing; everywhere else such a sum stays in float.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from edgeailite.quantization.graph.calls import operands, operation_of, traits_of
from edgeailite.quantization.graph.constants import is_known_before_the_input
from edgeailite.quantization.graph.operations import ADD, DIV, MUL, SUB
from edgeailite.quantization.graph.patterns import axis_of_softmax, is_operand, moved_from
from edgeailite.quantization.graph.running import parameter_value
from edgeailite.quantization.graph.variants import is_constant

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import QuantSpec
    from edgeailite.quantization.graph.model import GraphModel

# Bits of a constant factor, whose products with 8-bit integers are exact in float32, of a constant
# divisor, and of what is added in front of a softmax: a bias and a mask may be one tensor.
FINE_BITS = 16
# What is added in front of a softmax hides a value if it lowers it by so much.
MASK_REACH = 1024.0
# Values so far apart, or so large, are those of a mask.
_GAP, _LARGE = 64.0, 1e4


def readers_of(constant: fx.Node) -> list[fx.Node]:
    """Operations that compute on a constant, behind those that move it."""
    found = list[fx.Node]()
    for user in constant.users:
        if is_operand(constant, user):
            found += readers_of(user) if traits_of(user).moves_values else [user]
    return found


def spec_of_constant(constant: fx.Node, spec: QuantSpec) -> QuantSpec:
    """Grid on which all values of a constant lie.

    Args:
        constant: A parameter, a buffer, or what is computed from them.
        spec: Of activations.
    """
    spec = replace(spec, range_rule="min_max", learned=False)
    fine = with_bits(spec, FINE_BITS)
    readers = readers_of(constant)
    if any(softmax_dim(reader) is not None for reader in readers):
        return replace(fine, range_max=MASK_REACH)
    return fine if all(operation_of(reader) in (MUL, DIV) for reader in readers) else spec


def with_bits(spec: QuantSpec, bits: int) -> QuantSpec:
    """Grid of more than 8 bits in the place of one: symmetric, as such integers are signed."""
    return replace(spec, bit_width=bits, symmetric=True, signed=True, quant_range=None)


def softmax_dim(node: fx.Node) -> int | None:
    """Axis of the softmax that alone reads a sum with a constant; None for any other value."""
    is_masked = operation_of(node) is ADD and _constants_in(node)
    return axis_of_softmax(node) if is_masked else None


def refused_mask(model: GraphModel, node: fx.Node) -> str:
    """Say why a sum or concatenation stays in float for a mask in it; empty: it does not.

    Args:
        model: Captured.
        node: A call of an operation that the target computes.
    """
    joins = traits_of(node).joins_grids or operation_of(node) is SUB
    if not joins or softmax_dim(node) is not None:
        return ""
    if not any(_may_be_mask(model, constant) for constant in _constants_in(node)):
        return ""
    return (
        "a constant in it may be a mask, and no softmax alone reads the result along a known axis: "
        "one grid has no integers left for the other values"
    )


def _constants_in(node: fx.Node) -> list[fx.Node]:
    return [n for n in map(moved_from, operands(node)) if is_constant(n)]


def _may_be_mask(model: GraphModel, constant: fx.Node) -> bool:
    """Return True for values far apart, and where they depend on the size of the input."""
    if not is_known_before_the_input(constant):
        return True
    value = parameter_value(model, constant)
    assert isinstance(value, Tensor)
    ordered = value.detach().flatten().sort().values
    gaps = torch.diff(ordered)
    return bool((ordered.abs() >= _LARGE).any()) or bool((gaps >= _GAP).any())
