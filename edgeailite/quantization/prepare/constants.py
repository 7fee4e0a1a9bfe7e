"""Grids of parameters and buffers that a model computes on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import fx

from edgeailite.quantization.graph.calls import operation_of, traits_of
from edgeailite.quantization.graph.operations import DIV, MUL
from edgeailite.quantization.graph.patterns import is_operand, softmax_dim
from edgeailite.quantization.modules.activation import MASK_REACH

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import QuantSpec

# Bits of a constant factor, whose products with 8-bit integers are exact in float32, of a constant
# divisor, and of what is added in front of a softmax: a bias and a mask may be one tensor.
FINE_BITS = 16


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
