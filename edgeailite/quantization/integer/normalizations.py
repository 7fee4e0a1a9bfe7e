"""Softmax and norms of integers: exact sums, then operations that round alike everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from edgeailite.quantization.integer.table import TabledOperator, look_up

# Sums of so many bits are exact in float32, whatever their order.
_SUM_BITS = 23
# Distances of more bits than 8 are looked up in two parts: the low one counts to here.
_LOW = 256


class IntegerSoftmax(TabledOperator):
    """Softmax along an axis: ``round(e / sum(e) / s_y) + z_y`` with ``e = round(2^k exp(q s))``.

    The exponentials are a table over ``max(q) - q``; of integers with more than 8 bits, the product
    of one over its high and one over its low bits. ``k`` is as large as the sum allows, which
    float32 then holds exactly; what follows is one product and one division.

    Args:
        source: Grid of the input.
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

    def tables(self, count: int, device: torch.device) -> tuple[Tensor, ...]:
        """Exponentials of distances to the largest value, float32, for sums of `count`.

        Returns:
            One for each distance; or those of the low and those of the high bits.
        """
        source = self.input.grid

        def make() -> tuple[Tensor, ...]:
            distances = torch.arange(len(source.integers), dtype=torch.float64)
            largest = 1 << max(_SUM_BITS - math.ceil(math.log2(max(count, 1))), 0)
            e = torch.exp(-distances * source.scale)
            if source.bit_width <= 8:
                return ((e * largest).round().float().to(device),)
            return e[:_LOW].float().to(device), (e[::_LOW] * largest).float().to(device)

        return self.made_once((count, device), make)

    def forward(self, q: Tensor) -> Tensor:
        """Integers in and out; any shape."""
        x = q.float()
        distances = x.amax(self.dim, keepdim=True) - x
        tables = self.tables(int(x.shape[self.dim]), x.device)
        if len(tables) == 1:
            e = look_up(tables[0], distances.to(torch.int64))
        else:
            high = torch.floor(distances / _LOW)
            low = (distances - high * _LOW).to(torch.int64)
            e = torch.round(look_up(tables[0], low) * look_up(tables[1], high.to(torch.int64)))
        return self._divided(e, e.sum(self.dim, keepdim=True))

    def _divided(self, e: Tensor, total: Tensor) -> Tensor:
        """Integers of ``e / total`` on the grid of the result."""
        multiplier = 1.0 / self.output.scale  # float32
        return self.steps(e * multiplier / total)

    def constants(self, input_shape: torch.Size | None) -> Constants:
        """The tables: 32 bits for each distance, or for its low and for its high bits."""
        source = self.input.grid
        count = len(source.integers)
        return Constants(4 * (count if source.bit_width <= 8 else _LOW + -(-count // _LOW)))


Normalize = Callable[[Tensor, tuple[int, ...], float], Tensor]
"""A function of integers in float64, the axes, and eps in the square of their scale, or in it."""


def standardized(u: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """``(u - m) / sqrt(v + eps)``: ``(n u - sum(u)) / sqrt(n sum(u^2) - sum(u)^2 + n^2 eps)``."""
    n = math.prod(u.shape[dim] for dim in dims)
    total, squares = u.sum(dims, keepdim=True), (u * u).sum(dims, keepdim=True)
    return (u * n - total) / torch.sqrt(squares * n - total * total + n * n * eps)


def over_root_mean_square(u: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """``u / sqrt(sum(u^2) / n + eps)``."""
    n = math.prod(u.shape[dim] for dim in dims)
    return u / torch.sqrt((u * u).sum(dims, keepdim=True) / n + eps)


def over_length(u: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """``u / max(sqrt(sum(u^2)), sqrt(eps))``."""
    length = torch.sqrt((u * u).sum(dims, keepdim=True))
    return u / length.clamp_min(math.sqrt(eps))


def length(u: Tensor, dims: tuple[int, ...], eps: float, keepdim: bool) -> Tensor:
    """``sqrt(sum(u^2))``; nothing is divided by it, so there is no eps."""
    return torch.sqrt((u * u).sum(dims, keepdim=keepdim))


class IntegerNormalization(IntegerOperator):
    """Values over their spread or length along axes: ``f(q - z) * gamma + beta``, rounded.

    Sums of integers and of their squares are exact in float64; all else are single operations,
    which IEEE 754 rounds alike on all machines.

    Args:
        source: Grid of the input.
        output: Grid of the result.
        normalize: :func:`standardized` (layer, group and instance norm),
            :func:`over_root_mean_square` (RMS norm), :func:`over_length`, or :func:`length` alone,
            whose gamma is the scale of the input.
        dims: The axes; None: all behind the channels of ``(N, C, ...)``.
        groups: With these axes, groups of neighbouring channels; None: each channel alone.
        weight: gamma, of a shape that fits the last axes, or ``(C,)`` without `dims`; None: 1.
        bias: beta, of the same shape; None: 0.
        eps: What the normalization adds to, or takes at least for, a square in real values.

    Reference: Ba et al. 2016, https://arxiv.org/abs/1607.06450, eq. 4; Wu and He 2018,
    https://arxiv.org/abs/1803.08494, eq. 3; Zhang and Sennrich 2019,
    https://arxiv.org/abs/1910.07467, eq. 4.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        source: Grid,
        output: Grid,
        normalize: Normalize,
        dims: tuple[int, ...] | None,
        groups: int | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 0.0,
    ) -> None:
        super().__init__()
        self.normalize, self.dims, self.groups = normalize, dims, groups
        # Zero over zero is zero.
        self.eps = max(eps / source.scale**2, torch.finfo(torch.float64).tiny)
        # In a file this takes off the zero point and nothing else.
        self.input, self.output = Dequantize(replace(source, scale=1.0)), Quantize(output)
        self.register_buffer("weight", None if weight is None else weight.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def output_grid(self) -> Grid:
        """Grid of the result."""
        return self.output.grid

    def forward(self, q: Tensor) -> Tensor:
        """Integers in and out; any shape that has the axes."""
        u = self.input(q).double()
        grouped = u if self.groups is None else u.reshape(u.shape[0], self.groups, -1)
        dims = tuple(range(2, grouped.dim())) if self.dims is None else self.dims
        y = self.normalize(grouped, dims, self.eps).float()
        y = y if self.groups is None else y.reshape(q.shape)
        y = y if self.weight is None else y * self._aligned(self.weight, q)
        return self.output(y if self.bias is None else y + self._aligned(self.bias, q))

    def _aligned(self, values: Tensor, q: Tensor) -> Tensor:
        """Values of each channel, along axis 1."""
        return values if self.dims is not None else values.reshape(-1, *[1] * (q.dim() - 2))

    def constants(self, input_shape: torch.Size | None) -> Constants:
        """Gain and offset of each channel, in float."""
        held = [4 * t.numel() if t is not None else 0 for t in (self.weight, self.bias)]
        return Constants(offsets=held[1], scales=held[0])
