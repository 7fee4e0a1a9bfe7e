"""Division by a value on a grid, as the integers compute it."""

from __future__ import annotations

from torch import Tensor, nn

from edgeailite.quantization.arithmetic.quotient import quotient
from edgeailite.quantization.modules.activation import FakeQuantize


class Quotient(nn.Module):
    """Quotient of two tensors; a divisor that was rounded to zero is half a step.

    Args:
        divisor: Quantizer that the divisor passed.
    """

    def __init__(self, divisor: FakeQuantize) -> None:
        super().__init__()
        self._divisor = [divisor]  # no child: its state has one place

    def half_step(self) -> Tensor:
        """Half the scale of the divisor's grid, shape ``()``."""
        (divisor,) = self._divisor
        return divisor.qparams().scale / 2

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Shapes broadcast; of values that are not quantized the plain quotient."""
        if not self._divisor[0].fake_quant_enabled:
            return x / y
        return quotient(x, y, self.half_step().to(y.device))
