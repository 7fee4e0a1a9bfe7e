"""The target of TI's accelerators with TIDL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgeailite.quantization.targets.c.target import ScaleTarget
from edgeailite.quantization.targets.onnx_runtime.conversion import RULES

if TYPE_CHECKING:
    from edgeailite.quantization.integer.rules import Rules


@dataclass(frozen=True)
class Tidl(ScaleTarget):
    """TIDL on C7x-MMA: reads QDQ files with their settings, or derives scales from clips.

    The arithmetic of a QDQ file is ONNX Runtime's.
    """

    name: ClassVar[str] = "tidl"
    default_format: ClassVar[str] = "QDQ_MODEL"
    traced_format: ClassVar[str] = "CLIP_MODEL"
    rules: ClassVar[Rules] = RULES
