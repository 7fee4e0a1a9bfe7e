"""The target of TI's accelerators with TIDL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeailite.quantization.targets.onnx_runtime.target import OnnxRuntime


@dataclass(frozen=True)
class Tidl(OnnxRuntime):
    """TIDL on C7x-MMA: reads QDQ files with their settings, or derives scales from clips."""

    name: ClassVar[str] = "tidl"
