"""Modules of a converted graph that compute in float, with weights that lie on grids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from edgeailite.quantization.integer.layer import without_parameters
from edgeailite.quantization.modules.normalization import channel_affine

if TYPE_CHECKING:
    from edgeailite.quantization.modules.layer import OutputSize, QuantLayer


class FloatInputLayer(nn.Module):
    """A layer whose input is float: its weight stays on the grid, the arithmetic is float."""

    weight: Tensor
    bias: Tensor | None
    layer_path = ""  # in the user's model

    def __init__(self, layer: QuantLayer, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.operation = without_parameters(layer)
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor, output_size: OutputSize = None) -> Tensor:
        """Float in, float out; see :meth:`QuantLayer.forward`."""
        return self.operation.operate(x, self.weight, self.bias, output_size)


class ChannelAffine(nn.Module):
    """A batch norm that no layer folds, in float."""

    gain: Tensor
    offset: Tensor

    def __init__(self, gain: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("gain", gain.detach().clone())
        self.register_buffer("offset", offset.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Float in, float out; shape ``(N, C, ...)``."""
        return channel_affine(x, self.gain, self.offset)
