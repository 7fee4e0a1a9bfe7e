"""The target of int8 runtimes: ONNX Runtime, and all that requantize as it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgeailite.quantization.targets.c.target import ScaleTarget
from edgeailite.quantization.targets.onnx_runtime.conversion import RULES

if TYPE_CHECKING:
    from edgeailite.quantization.integer.rules import Rules


@dataclass(frozen=True)
class OnnxRuntime(ScaleTarget):
    """Integers requantized by a float32 multiplier, free or power-of-two scales.

    Args:
        writes_tables: Functions are tables in all files, for CPUs without fast float arithmetic.
    """

    writes_tables: bool = False

    name: ClassVar[str] = "onnx_runtime"
    default_format: ClassVar[str] = "QDQ_MODEL"
    traced_format: ClassVar[str] = "CLIP_MODEL"
    rules: ClassVar[Rules] = RULES
