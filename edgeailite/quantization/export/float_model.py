"""The float model that was wrapped, as ONNX: what the quantized files are compared with."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from edgeailite.quantization.export.formats import ExportFormat
from edgeailite.quantization.export.onnx_file import write_onnx
from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer import QuantLayer


def float_model(model: GraphModel) -> GraphModel:
    """A copy of a prepared model, in evaluation mode, that computes as the float model."""
    plain = copy.deepcopy(model).eval()
    for module in plain.modules():
        if isinstance(module, FakeQuantize | QuantLayer):
            module.fake_quant_enabled = False
    plain.export_view = None
    return plain


def export_float(
    model: GraphModel,
    example_inputs: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    fuse: bool = False,
    **options: Any,
) -> Path:
    """Write :func:`float_model` of a prepared model as ONNX; `options` as in :func:`write_onnx`."""
    return write_onnx(
        float_model(model), example_inputs, path, model_format=ExportFormat.FLOAT_MODEL, fuse=fuse,
        **options,
    )  # fmt: skip
