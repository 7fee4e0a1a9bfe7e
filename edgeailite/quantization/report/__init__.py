"""Report on a quantized model: grids, ranges, SQNR, warnings; as text, JSON, HTML, events."""

from edgeailite.quantization.arithmetic.sqnr import sqnr
from edgeailite.quantization.report.build import build_report, describe, spec_words
from edgeailite.quantization.report.entries import (
    ActivationEntry,
    FloatEntry,
    Histogram,
    LayerEntry,
    ModelSize,
    Report,
)
from edgeailite.quantization.report.html import write_html
from edgeailite.quantization.report.tensorboard import add_to_tensorboard

__all__ = [
    "ActivationEntry",
    "FloatEntry",
    "Histogram",
    "LayerEntry",
    "ModelSize",
    "Report",
    "add_to_tensorboard",
    "build_report",
    "describe",
    "spec_words",
    "sqnr",
    "write_html",
]
