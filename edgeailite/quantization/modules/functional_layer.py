"""Functional convolutions and linears that quantize the weight and bias of each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from edgeailite.quantization.graph.operations import TRANSPOSED_CONVOLUTION
from edgeailite.quantization.graph.registry import operation_of_function
from edgeailite.quantization.modules.layer import OutputSize, QuantLayer

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import BiasSpec, QuantSpec
    from edgeailite.quantization.modules.activation import FakeQuantize


class QuantFunctionalLayer(QuantLayer):
    """Functional convolution or linear, whose weight and bias come with each call.

    Args:
        function: One of ``F.conv*`` or ``F.linear``, called as ``function(x, w, b, ...)``.
        options: Its further arguments: stride, padding, ...
        weight_spec: Grid of the weight.
        bias_spec: Grid of the bias.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        options: dict[str, Any],
        weight_spec: QuantSpec,
        bias_spec: BiasSpec,
    ) -> None:
        super().__init__()
        self.function, self.options = function, options
        vars(self).update(options)  # stride, padding, ... where torch's layers have them
        self.transposed = operation_of_function(function) is TRANSPOSED_CONVOLUTION
        self.begin(weight_spec, bias_spec)

    def operate(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: OutputSize = None
    ) -> Tensor:
        """Call the function with its further arguments; it takes no output size."""
        return self.function(x, weight, bias, **self.options)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        batch_norm: nn.Module | None = None,
        input_quantizer: FakeQuantize | None = None,
        output_quantizer: FakeQuantize | None = None,
    ) -> Tensor:
        """As :meth:`QuantLayer.forward`."""
        return self._compute(x, weight, bias, batch_norm, input_quantizer, output_quantizer)
