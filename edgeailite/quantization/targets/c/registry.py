"""Rules by which operations become calls of kernels: one for each module of the integer graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import fx, nn

if TYPE_CHECKING:
    from edgeailite.quantization.integer.grid import Quantize
    from edgeailite.quantization.targets.c.program import Value
    from edgeailite.quantization.targets.c.reader import Reader

Rule = Callable[["Reader", fx.Node, Any], "Value"]
"""Emits what a module of the integer graph computes: ``rule(reader, node, module)``."""
CallRule = Callable[["Reader", fx.Node, dict[str, Any]], "Value"]
"""Emits a call that moves or chooses values: ``rule(reader, node, arguments)``."""
RealRule = Callable[["Reader", fx.Node, fx.Node, "Quantize"], "Value"]
"""Emits an operation on real values and the rounding behind it: ``rule(reader, node, operation,
quantize)``."""

RULES: dict[type[nn.Module], Rule] = {}
CALLS: dict[str, CallRule] = {}
ON_REALS: dict[str, RealRule] = {}


def emits(*types: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register the rule of modules of the integer graph."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(types, rule))
        return rule

    return register


def emits_call(*operations: str) -> Callable[[CallRule], CallRule]:
    """Register the rule of operations that move values and choose among them."""

    def register(rule: CallRule) -> CallRule:
        CALLS.update(dict.fromkeys(operations, rule))
        return rule

    return register


def emits_on_reals(*operations: str) -> Callable[[RealRule], RealRule]:
    """Register the rule of operations between Dequantize and Quantize."""

    def register(rule: RealRule) -> RealRule:
        ON_REALS.update(dict.fromkeys(operations, rule))
        return rule

    return register


class NoForm(ValueError):
    """An operation cannot be written as C."""
