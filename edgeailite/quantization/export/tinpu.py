"""TINPU_INT_MODEL: the integer graph with offset, multiplier and shift, integers in float32.

A compiler matches its sequences: ``Conv`` or ``Gemm`` (integer weights, no bias), ``Add``, ``Mul``,
``Floor``, ``Clip``. Nothing may fuse the offset into the convolution.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from edgeailite.quantization.export.formats import OnnxOptions, writer

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

DEFAULT_OPSET = 17


@writer(
    "TINPU_INT_MODEL",
    source="converted",
    arithmetic="fixed_point",
    description="the integer graph for TI's NPU, integers carried in float32: Conv or Gemm, then "
    "Add (offset), Mul (multiplier and shift), Floor, Clip",
)
def write_tinpu(
    converted: GraphModel,
    example_inputs: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    options: OnnxOptions,
) -> Path:
    """Write a model converted to fixed point, by default in opset 17."""
    from edgeailite.quantization.export.onnx_file import write_onnx

    options = options.with_defaults(opset_version=DEFAULT_OPSET)
    return write_onnx(converted, example_inputs, path, options, model_format="TINPU_INT_MODEL")
