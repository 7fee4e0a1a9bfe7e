"""The integer graph as ONNX: QuantizeLinear and DequantizeLinear around every operation, int8 weights, int32 biases."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from edgeailite.quantization.export.onnx_file import write_onnx
from edgeailite.quantization.graph import GraphModel


def export_qdq(
    converted: GraphModel,
    example_inputs: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    *,
    opset_version: int = 18,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
) -> Path:
    """Write a converted model; arguments as in :func:`write_onnx`.

    Grids that QuantizeLinear does not compute (half-up rounding, more than 8 bits) are written as
    integers carried in float: ``Conv, Mul, Floor, Clip``.
    """
    return write_onnx(
        converted, example_inputs, path, opset_version=opset_version, input_names=input_names,
        output_names=output_names, dynamic_batch=dynamic_batch, metadata={"model_format": "qdq"},
    )  # fmt: skip
