"""Targets whose integer graphs are made by conversion rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from edgeailite.quantization.graph.operations import BATCH_NORM
from edgeailite.quantization.integer.conversion import convert
from edgeailite.quantization.integer.rules import Rules
from edgeailite.quantization.prepare.target import Target

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.graph.registry import Operation


class RuleTarget(Target):
    """A target that computes what it has conversion rules for.

    Attributes:
        rules: Its conversion rules.
        returns_integers: The device returns the outputs' integers, not real values.
    """

    rules: ClassVar[Rules]
    returns_integers: ClassVar[bool] = False

    def computes(self, operation: Operation) -> bool:
        """Return True for activation functions, batch norms, and what has a rule."""
        # A batch norm that no layer folds may be float arithmetic between two grids.
        absorbed = operation.traits.is_activation or operation is BATCH_NORM
        return absorbed or self.rules.fused(operation) is not None

    def convert(self, model: GraphModel, integer_outputs: bool | None = None) -> GraphModel:
        """Make the integer graph by the rules."""
        as_integers = self.returns_integers if integer_outputs is None else integer_outputs
        return convert(model, self.rules, as_integers)
