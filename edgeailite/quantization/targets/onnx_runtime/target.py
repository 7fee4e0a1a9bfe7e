"""The target of int8 runtimes: ONNX Runtime, and all that requantize as it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.graph.operations import BATCH_NORM
from edgeailite.quantization.graph.registry import Operation
from edgeailite.quantization.integer.conversion import Rules, convert
from edgeailite.quantization.prepare.target import Target
from edgeailite.quantization.targets.onnx_runtime.conversion import RULES


@dataclass(frozen=True)
class OnnxRuntime(Target):
    """Integers requantized by a float32 multiplier, free or power-of-two scales."""

    name: ClassVar[str] = "onnx_runtime"
    default_format: ClassVar[str] = "QDQ_MODEL"
    traced_format: ClassVar[str] = "CLIP_MODEL"
    rules: ClassVar[Rules] = RULES

    def computes(self, operation: Operation) -> bool:
        """Return True for activation functions, and for what has a conversion rule."""
        # A batch norm that no layer folds is float arithmetic between two grids.
        absorbed = operation.traits.is_activation or operation is BATCH_NORM
        return absorbed or self.rules.fused(operation) is not None

    def convert(self, model: GraphModel, integer_outputs: bool | None = None) -> GraphModel:
        """Make the integer graph; outputs are real values by default."""
        return convert(model, self.rules, bool(integer_outputs))
