"""QDQ_MODEL: the integer graph with QuantizeLinear and DequantizeLinear around every operation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from edgeailite.quantization.export.formats import OnnxOptions, writer
from edgeailite.quantization.targets.tidl.settings import write_tidl_settings

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel


@writer(
    "QDQ_MODEL",
    source="converted",
    arithmetic="scale",
    description="the integer graph: int8 weights and int32 biases, QuantizeLinear and "
    "DequantizeLinear around every operator",
)
def write_qdq(
    converted: GraphModel,
    example_inputs: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    options: OnnxOptions,
) -> Path:
    """Write a converted model, and TIDL's settings beside it.

    Grids that QuantizeLinear does not compute (half-up rounding, more than 8 bits) are written as
    integers carried in float: ``Conv, Mul, Floor, Clip``.
    """
    from edgeailite.quantization.export.onnx_file import write_onnx

    written = write_onnx(converted, example_inputs, path, options, model_format="QDQ_MODEL")
    write_tidl_settings(converted, written)
    return written
