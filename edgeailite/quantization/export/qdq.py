"""The integer graph as ONNX: QuantizeLinear and DequantizeLinear around every operation.

Weights are int8, biases int32.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from edgeailite.quantization.export.formats import ExportFormat
from edgeailite.quantization.export.onnx_file import write_onnx
from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.targets.tidl.settings import write_tidl_settings


def export_qdq(
    converted: GraphModel,
    example_inputs: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    **options: Any,
) -> Path:
    """Write a converted model, and TIDL's settings beside it; `options` as in :func:`write_onnx`.

    Grids that QuantizeLinear does not compute (half-up rounding, more than 8 bits) are written as
    integers carried in float: ``Conv, Mul, Floor, Clip``.
    """
    written = write_onnx(
        converted, example_inputs, path, model_format=ExportFormat.QDQ_MODEL, **options
    )
    write_tidl_settings(converted, written)
    return written
