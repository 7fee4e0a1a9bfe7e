"""Conversion rules of a target, by operation.

A target owns :class:`Rules`. A rule is registered with :meth:`Rules.converts` for an operation that
computes integers together with the quantizer behind it, or with :meth:`Rules.places` for a node
that is placed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import fx

from edgeailite.quantization.graph.calls import operands
from edgeailite.quantization.graph.patterns import quantizer_of
from edgeailite.quantization.graph.registry import Operation, operation_named
from edgeailite.quantization.integer.grid import Grid

if TYPE_CHECKING:
    from edgeailite.quantization.integer.conversion import Converter

FusedRule = Callable[["Converter", fx.Node, fx.Node, Grid], None]
"""Converts an operation: ``rule(converter, node, quantizer, grid of the result)``."""
PlaceRule = Callable[["Converter", fx.Node], None]
"""Places a node that no quantizer behind it is made together with."""


class _Fused(NamedTuple):
    convert: FusedRule
    is_ready: Callable[[Converter, fx.Node], bool]


def operands_on_grids(converter: Converter, node: fx.Node) -> bool:
    """Return True if all operands of a call lie on grids."""
    return all(quantizer_of(operand) is not None for operand in operands(node))


class Rules:
    """Conversion rules of a target by operation.

    Args:
        base: Rules that hold where this target has none of its own.
    """

    def __init__(self, base: Rules | None = None) -> None:
        self.base = base
        self._fused: dict[str, _Fused] = {}
        self._placed: dict[str, PlaceRule] = {}
        self._moves: PlaceRule | None = None

    def converts(
        self,
        *operations: str,
        when: Callable[[Converter, fx.Node], bool] = operands_on_grids,
    ) -> Callable[[FusedRule], FusedRule]:
        """Register a rule for operations whose result a quantizer alone reads.

        Args:
            *operations: Names of rows of the table.
            when: Return True if the rule applies to a call; else the node is placed alone.

        Raises:
            ValueError: There is no such operation, or it has a rule of this target already.
        """

        def register(rule: FusedRule) -> FusedRule:
            for name in operations:
                self._check_new(name, self._fused)
                self._fused[name] = _Fused(rule, when)
            return rule

        return register

    def places(self, *operations: str) -> Callable[[PlaceRule], PlaceRule]:
        """Register a rule for operations that are placed alone.

        Raises:
            ValueError: There is no such operation, or it has a rule of this target already.
        """

        def register(rule: PlaceRule) -> PlaceRule:
            for name in operations:
                self._check_new(name, self._placed)
                self._placed[name] = rule
            return rule

        return register

    def places_moves(self, rule: PlaceRule) -> PlaceRule:
        """Register the rule for operations that move values and have no rule of their own.

        Raises:
            ValueError: This target has one already.
        """
        if self._moves is not None:
            raise ValueError("This target has a rule for operations that move values already.")
        self._moves = rule
        return rule

    def _check_new(self, name: str, known: dict[str, Any]) -> None:
        operation_named(name)
        if name in known:
            raise ValueError(f"Operation '{name}' has a conversion rule of this target already.")

    def fused(self, operation: Operation) -> _Fused | None:
        """Rule for an operation with the quantizer behind it; None if there is none."""
        found = self._fused.get(operation.name)
        return found if found or self.base is None else self.base.fused(operation)

    def placed(self, operation: Operation) -> PlaceRule | None:
        """Rule for an operation alone; None if there is none."""
        found = self._placed.get(operation.name)
        return found if found or self.base is None else self.base.placed(operation)

    def moves(self) -> PlaceRule:
        """Rule for operations that move values of a grid.

        Raises:
            ValueError: Neither this target nor its base has one.
        """
        if self._moves is not None:
            return self._moves
        if self.base is None:
            raise ValueError(
                "The target has no rule for operations that move values. Register one with "
                "places_moves, or begin with another target's rules: Rules(base)."
            )
        return self.base.moves()
