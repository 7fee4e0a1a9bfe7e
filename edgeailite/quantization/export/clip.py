"""The float graph with clips, from which TIDL derives power-of-two scales.

Convolutions and linears with batch norm folded and weights on their grid, ``Clip(0, 2^m)`` or
``Clip(-2^m, 2^m)`` for every activation quantizer, no quantize nodes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeailite.quantization.export.formats import ExportFormat
from edgeailite.quantization.export.onnx_file import write_onnx
from edgeailite.quantization.export.plain import plain_model
from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.modules.activation import FakeQuantize


class Clip(nn.Module):
    """Clip to the range of an activation quantizer."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return torch.clamp(x, self.low, self.high)


def clip_range(quantizer: FakeQuantize) -> tuple[float, float]:
    """The grid's range, ``(0, 2^m)`` or ``(-2^m, 2^m)``, cut by an absorbed activation's bounds.

    Affine grids: from the smallest to the largest value.
    """
    scale, zero_point, quant_min, quant_max = (float(v) for v in quantizer.qparams())
    top = quant_max + 1 if quantizer.spec.symmetric and quantizer.spec.power_of_two else quant_max
    low, high = (quant_min - zero_point) * scale, (top - zero_point) * scale
    if quantizer.bounds is not None:
        low, high = max(low, quantizer.bounds[0]), min(high, quantizer.bounds[1])
    return low, high


def clip_model(model: GraphModel) -> GraphModel:
    """A copy of a prepared model as a plain float graph with clips, in evaluation mode."""
    return plain_model(model, lambda quantizer: Clip(*clip_range(quantizer)))


def export_clip(
    model: GraphModel,
    example_inputs: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    **options: Any,
) -> Path:
    """Write :func:`clip_model` of a prepared model as ONNX; `options` as in :func:`write_onnx`."""
    return write_onnx(
        clip_model(model), example_inputs, path, model_format=ExportFormat.CLIP_MODEL, **options
    )
