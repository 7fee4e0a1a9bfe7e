"""The simulation as ONNX: float operators, with every activation put through its grid."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgeailite.quantization.export.formats import ExportFormat
from edgeailite.quantization.export.onnx_file import write_onnx
from edgeailite.quantization.export.plain import plain_model
from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.integer.conversion import grid_of
from edgeailite.quantization.integer.operators import Dequantize, Quantize
from edgeailite.quantization.modules.activation import FakeQuantize


class RoundTrip(nn.Module):
    """To a quantizer's grid and back to real values."""

    def __init__(self, quantizer: FakeQuantize) -> None:
        super().__init__()
        grid = grid_of(quantizer)
        self.quantize, self.dequantize = Quantize(grid), Dequantize(grid)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return self.dequantize(self.quantize(x))


def fakeq_model(model: GraphModel) -> GraphModel:
    """A copy of a prepared model as a float graph whose activations pass through their grids."""
    return plain_model(model, RoundTrip)


def export_fakeq(
    model: GraphModel,
    example_inputs: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    **options: Any,
) -> Path:
    """Write :func:`fakeq_model` of a prepared model as ONNX; `options` as in :func:`write_onnx`.

    ONNX Runtime gives the simulation's numbers if the session has the configuration entry
    ``session.disable_quant_qdq`` = ``1`` (or optimizations off): without it one of its passes
    (WeightBiasQuantization) puts the float weights on a grid of its own.
    """
    return write_onnx(
        fakeq_model(model), example_inputs, path, model_format=ExportFormat.FAKEQ_MODEL, **options
    )
