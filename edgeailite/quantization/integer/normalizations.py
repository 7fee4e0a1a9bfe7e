"""Softmax and layer norm of integers: exact sums, then operations that round alike everywhere."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from edgeailite.quantization.integer.grid import (
    Constants,
    Dequantize,
    Grid,
    IntegerOperator,
    Quantize,
    Requantize,
)
from edgeailite.quantization.integer.table import TabledOperator

# Sums of so many bits are exact in float32, whatever their order.
_SUM_BITS = 23


class IntegerSoftmax(TabledOperator):
    """Softmax along an axis: ``round(e / sum(e) / s_y) + z_y`` with ``e = round(2^k exp(q s))``.

    The exponentials are a table over ``max(q) - q``. ``k`` is as large as the sum allows, which
    float32 then holds exactly; what follows is one product and one division.

    Args:
        source: Grid of the input, 8 bits at most.
        output: Grid of the result.
        dim: The axis.
    """

    def __init__(self, source: Grid, output: Grid, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.input, self.output = Dequantize(source), Quantize(output)
        self.steps = Requantize(replace(output, scale=1.0))

    @property
    def output_grid(self) -> Grid:
        """Grid of the result."""
        return self.output.grid

    def table(self, count: int, device: torch.device) -> Tensor:
        """Exponentials of the distances to the largest value, float32, for sums of `count`."""
        source = self.input.grid

        def make() -> Tensor:
            distances = torch.arange(len(source.integers), dtype=torch.float64)
            bits = _SUM_BITS - math.ceil(math.log2(max(count, 1)))
            exponentials = torch.exp(-distances * source.scale) * (1 << max(bits, 0))
            return exponentials.round().float().to(device)

        return self.made_once((count, device), make)

    def forward(self, q: Tensor) -> Tensor:
        """Integers in and out; any shape."""
        x = q.float()
        distances = (x.amax(self.dim, keepdim=True) - x).to(torch.int64)
        table = self.table(x.shape[self.dim], x.device)
        if torch.compiler.is_exporting():
            e = torch.onnx.ops.symbolic(
                "Gather", (table, distances), dtype=table.dtype, shape=x.shape, version=13
            )
        else:
            e = table[distances]
        return self._divided(e, e.sum(self.dim, keepdim=True))

    def _divided(self, e: Tensor, total: Tensor) -> Tensor:
        """Integers of ``e / total`` on the grid of the result."""
        multiplier = 1.0 / self.output.scale  # float32
        return self.steps(e * multiplier / total)

    def constants(self, input_shape: torch.Size | None) -> Constants:
        """The table: 32 bits for each distance."""
        return Constants(4 * len(self.input.grid.integers))


class IntegerLayerNorm(IntegerOperator):
    """Layer norm: ``(u - m) / sqrt(sum(u^2) / n - m^2 + eps / s^2) * gamma + beta``, rounded.

    ``u = q - z`` are integers, so both sums are exact in float64; all else are single operations,
    which IEEE 754 rounds alike on all machines.

    Args:
        source: Grid of the input.
        output: Grid of the result.
        shape: Sizes of the last axes, which are normalized over.
        weight: gamma, of that shape; None: 1.
        bias: beta, of that shape; None: 0.
        eps: As of the layer norm.

    Reference: Ba et al. 2016, https://arxiv.org/abs/1607.06450, eq. 4.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        source: Grid,
        output: Grid,
        shape: tuple[int, ...],
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> None:
        super().__init__()
        self.shape, self.eps = shape, eps / source.scale**2
        # In a file this takes off the zero point and nothing else.
        self.input, self.output = Dequantize(replace(source, scale=1.0)), Quantize(output)
        self.register_buffer("weight", None if weight is None else weight.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def output_grid(self) -> Grid:
        """Grid of the result."""
        return self.output.grid

    def forward(self, q: Tensor) -> Tensor:
        """Integers in and out; any shape that ends with `shape`."""
        dims, count = tuple(range(-len(self.shape), 0)), math.prod(self.shape)
        u = self.input(q).double()
        mean = u.sum(dims, keepdim=True) / count
        mean_square = (u * u).sum(dims, keepdim=True) / count
        y = (u - mean) / torch.sqrt((mean_square - mean * mean).clamp_min(0.0) + self.eps)
        y = y.float()
        y = y if self.weight is None else y * self.weight
        return self.output(y if self.bias is None else y + self.bias)

    def constants(self, input_shape: torch.Size | None) -> Constants:
        """Gain and offset of each channel, in float."""
        held = [4 * t.numel() if t is not None else 0 for t in (self.weight, self.bias)]
        return Constants(offsets=held[1], scales=held[0])
