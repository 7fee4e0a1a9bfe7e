"""Evaluation mode of a wrapper: late calibration, integers, remarks on biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.wrappers.calibration import BiasNotes, EvaluationCalibration
from edgeailite.quantization.wrappers.integer_evaluation import IntegerEvaluation

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeailite.quantization.graph.model import GraphModel


class Evaluation:
    """State of a wrapper in evaluation mode.

    Args:
        model: Prepared model.
        convert: Makes the integer graph of one.

    Attributes:
        has_begun: A batch came since the mode was chosen.
        calibration: Calibration by batches that come in this mode.
    """

    def __init__(self, model: GraphModel, convert: Callable[[GraphModel], GraphModel]) -> None:
        self.has_begun = False
        self.calibration = EvaluationCalibration()
        self._notes = BiasNotes()
        self._integers = IntegerEvaluation(model, convert)

    def end(self) -> None:
        """The mode is chosen anew."""
        self.has_begun = False
        self.calibration.end()

    def notes(self, model: GraphModel) -> list[str]:
        """Return what deserves a look now that ranges are known, each remark once."""
        known = all(q.has_range for q in quantizers(model).values())
        return self._notes.next(model) if known else []

    def run(
        self, model: GraphModel, args: tuple[Any, ...], kwargs: dict[str, Any], integers: bool
    ) -> Any:
        """Run a batch, with integers where they are asked for and differ from the simulation."""
        if integers and self._integers.is_needed_for(model, args, kwargs):
            return self._integers.run(model, args, kwargs)
        return model(*args, **kwargs)
