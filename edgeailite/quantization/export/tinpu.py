"""The integer graph with offset, multiplier and shift as ONNX, integers carried in float32.

A compiler matches its sequences: ``Conv`` or ``Gemm`` (integer weights, no bias), ``Add``, ``Mul``,
``Floor``, ``Clip``; nothing may fuse the offset into the convolution.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from edgeailite.quantization.export.formats import ExportFormat
from edgeailite.quantization.export.onnx_file import write_onnx
from edgeailite.quantization.graph.model import GraphModel

DEFAULT_OPSET = 17


def export_tinpu(
    converted: GraphModel,
    example_inputs: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    opset_version: int = DEFAULT_OPSET,
    **options: Any,
) -> Path:
    """Write a model converted to fixed point; `options` as in :func:`write_onnx`."""
    return write_onnx(
        converted, example_inputs, path, model_format=ExportFormat.TINPU_INT_MODEL,
        opset_version=opset_version, **options,
    )  # fmt: skip
