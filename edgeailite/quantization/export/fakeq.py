"""FAKEQ_MODEL: the simulation as ONNX, float operators with every activation on its grid."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from edgeailite.quantization.export.formats import OnnxOptions, writer
from edgeailite.quantization.export.plain import plain_model
from edgeailite.quantization.integer.conversion import grid_of
from edgeailite.quantization.integer.grid import Dequantize, Quantize

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.modules.activation import FakeQuantize


class RoundTrip(nn.Module):
    """Quantize to a quantizer's grid and dequantize again.

    Args:
        quantizer: Its range must be known.
    """

    def __init__(self, quantizer: FakeQuantize) -> None:
        super().__init__()
        grid = grid_of(quantizer)
        self.quantize, self.dequantize = Quantize(grid), Dequantize(grid)

    def forward(self, x: Tensor) -> Tensor:
        """Put `x`, of any shape, on the grid."""
        return self.dequantize(self.quantize(x))


def fakeq_model(model: GraphModel) -> GraphModel:
    """Copy a prepared model as a float graph whose activations pass through their grids."""
    return plain_model(model, RoundTrip)


@writer(
    "FAKEQ_MODEL",
    source="prepared",
    description="the simulation: float operators, weights and biases on their grids, "
    "QuantizeLinear and DequantizeLinear at every activation quantizer",
)
def write_fakeq(
    model: GraphModel,
    example_inputs: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    options: OnnxOptions,
) -> Path:
    """Write :func:`fakeq_model` of a prepared model as ONNX.

    ONNX Runtime gives the simulation's numbers if the session has the configuration entry
    ``session.disable_quant_qdq`` = ``1`` (or optimizations off). Without it one of its passes
    (WeightBiasQuantization) puts the float weights on a grid of its own.
    """
    from edgeailite.quantization.export.onnx_file import write_onnx

    return write_onnx(fakeq_model(model), example_inputs, path, options, model_format="FAKEQ_MODEL")
