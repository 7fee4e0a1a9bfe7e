"""CLIP_MODEL: the float graph with clips, from which TIDL derives power-of-two scales.

Batch norm is folded and weights lie on their grids. Every activation quantizer becomes
``Clip(0, 2^m)`` or ``Clip(-2^m, 2^m)``; there are no quantize nodes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgeailite.quantization.export.formats import OnnxOptions, writer
from edgeailite.quantization.export.plain import plain_model

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.modules.activation import FakeQuantize


class ClipToRange(nn.Module):
    """Clip to the range of an activation quantizer.

    Args:
        low: Smallest value.
        high: Largest value.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        """Clip `x`, of any shape."""
        return torch.clamp(x, self.low, self.high)


def clip_range(quantizer: FakeQuantize) -> tuple[float, float]:
    """Return the range of a quantizer's grid.

    It is ``(0, 2^m)`` or ``(-2^m, 2^m)`` for symmetric power-of-two grids, and smallest to largest
    value for others, cut at the bounds of an absorbed activation function.
    """
    scale, zero_point, quant_min, quant_max = (float(v) for v in quantizer.qparams())
    top = quant_max + 1 if quantizer.spec.symmetric and quantizer.spec.power_of_two else quant_max
    low, high = (quant_min - zero_point) * scale, (top - zero_point) * scale
    if quantizer.bounds is not None:
        low, high = max(low, quantizer.bounds[0]), min(high, quantizer.bounds[1])
    return low, high


def clip_model(model: GraphModel) -> GraphModel:
    """Copy a prepared model as a float graph with clips, in evaluation mode."""
    return plain_model(model, lambda quantizer: ClipToRange(*clip_range(quantizer)))


@writer(
    "CLIP_MODEL",
    source="prepared",
    arithmetic="scale",
    description="the float model with a Clip at every activation range, for TIDL up to 9.0: batch "
    "norm folded, weights on their grids",
)
def write_clip(
    model: GraphModel,
    example_inputs: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    options: OnnxOptions,
) -> Path:
    """Write :func:`clip_model` of a prepared model as ONNX."""
    from edgeailite.quantization.export.onnx_file import write_onnx

    return write_onnx(clip_model(model), example_inputs, path, options, model_format="CLIP_MODEL")
