"""FLOAT_MODEL: the wrapped float model as ONNX, the reference for the quantized files."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from edgeailite.quantization.export.formats import OnnxOptions, writer
from edgeailite.quantization.graph.model import program_of
from edgeailite.quantization.modules.layer_calls import disable_quantization

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel


def float_model(model: GraphModel) -> GraphModel:
    """Copy a prepared model, in evaluation mode, such that it computes as the float model."""
    plain = copy.deepcopy(model).eval()
    disable_quantization(plain)
    program_of(plain).export_view = None
    return plain


@writer(
    "FLOAT_MODEL",
    source="prepared",
    description="the float model: no quantizers, batch norm as the original computes it",
)
def write_float(
    model: GraphModel,
    example_inputs: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    options: OnnxOptions,
) -> Path:
    """Write :func:`float_model` of a prepared model as ONNX, by default without fusions."""
    from edgeailite.quantization.export.onnx_file import write_onnx

    options = options.with_defaults(fuse=False)
    return write_onnx(float_model(model), example_inputs, path, options, model_format="FLOAT_MODEL")
