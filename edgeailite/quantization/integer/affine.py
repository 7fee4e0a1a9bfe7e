"""Gains of channels: batch norms that no layer folds, constant factors, PReLU. Exact sums."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from edgeailite.quantization.integer.grid import (
    OFFSET_BYTES,
    Constants,
    Dequantize,
    Grid,
    IntegerOperator,
    Quantize,
)

# A product of ``q - z`` (8 bits) with such a gain has 23 bits at most, and float32 holds its sum
# with such an offset: 24. A constant factor of 16 bits, one of them the sign, is such a gain.
GAIN_BITS, OFFSET_BITS = 15, 22


def exponent_of_unit(x: Tensor, bits: int) -> Tensor:
    """Exponent of the last of `bits` significant bits of each value, float64 in, int32 out."""
    return torch.frexp(x).exponent - bits


def round_to_unit(x: Tensor, exponent: Tensor) -> Tensor:
    """Round to multiples of ``2^exponent``; float64 in, float32 out."""
    return torch.ldexp(torch.round(torch.ldexp(x, -exponent)), exponent).float()


def along_channels(values: Tensor, x: Tensor) -> Tensor:
    """Give values of shape ``(C,)`` or ``(1,)`` the axes of `x`, which has channels at axis 1."""
    return values.reshape(-1, *[1] * (x.dim() - 2))


class IntegerAffine(IntegerOperator):
    """``clamp(round((x_q - z_x) * M + B) + z_y)`` with one ``M`` and ``B`` for each channel.

    ``M = gain * s_x / s_y`` has 15 significant bits, ``B = offset / s_y`` lies on its grid; where a
    ``B`` has more than 22 bits there, both lie on a coarser one.

    Args:
        source: Grid of the input, 8 bits at most.
        output: Grid of the result.
        gain: Real values, ``(C,)`` along axis 1; without an offset any that broadcast.
        offset: Real values, ``(C,)``; None: 0.
    """

    gain: Tensor
    offset: Tensor | None

    def __init__(
        self, source: Grid, output: Grid, gain: Tensor, offset: Tensor | None = None
    ) -> None:
        super().__init__()
        # In a file these take off and add the zero points and nothing else.
        self.input = Dequantize(replace(source, scale=1.0))
        self.output = Quantize(replace(output, scale=1.0))
        self.grid = output
        multiplier = gain.detach().double() * (source.scale / output.scale)
        unit, addend = exponent_of_unit(multiplier, GAIN_BITS), None
        if offset is not None:
            real = offset.detach().double() / output.scale
            unit = torch.maximum(unit, exponent_of_unit(real, OFFSET_BITS))
            addend = round_to_unit(real, unit)
        self.register_buffer("gain", round_to_unit(multiplier, unit))
        self.register_buffer("offset", addend)

    @property
    def output_grid(self) -> Grid:
        """Grid of the result."""
        return self.grid

    def forward(self, q: Tensor) -> Tensor:
        """Integers in and out; the input's shape."""
        u = self.input(q)
        if self.offset is None:
            return self.output(u * self.gain)
        return self.output(u * along_channels(self.gain, u) + along_channels(self.offset, u))

    def constants(self, input_shape: torch.Size | None) -> Constants:
        """Multiplier and shift, and an offset, of each channel."""
        offsets = 0 if self.offset is None else OFFSET_BYTES * self.offset.numel()
        return Constants(offsets=offsets, scales=OFFSET_BYTES * self.gain.numel())


class IntegerPReLU(IntegerOperator):
    """``clamp(round(max(u, 0) * M + min(u, 0) * M_c) + z_y)`` with ``u = x_q - z_x``.

    ``M = s_x / s_y`` and ``M_c = slope * M``, 15 significant bits each.

    Args:
        source: Grid of the input, 8 bits at most.
        output: Grid of the result.
        slope: For negative values, ``(C,)`` along axis 1, or one.

    Reference: He et al. 2015, https://arxiv.org/abs/1502.01852, eq. 1.
    """

    gain: Tensor
    slope: Tensor

    def __init__(self, source: Grid, output: Grid, slope: Tensor) -> None:
        super().__init__()
        self.input = Dequantize(replace(source, scale=1.0))
        self.output = Quantize(replace(output, scale=1.0))
        self.grid = output
        one = torch.ones((), dtype=torch.float64, device=slope.device)
        for name, real in (("gain", one), ("slope", slope.detach().double())):
            multiplier = real * (source.scale / output.scale)
            unit = exponent_of_unit(multiplier, GAIN_BITS)
            self.register_buffer(name, round_to_unit(multiplier, unit))

    @property
    def output_grid(self) -> Grid:
        """Grid of the result."""
        return self.grid

    def forward(self, q: Tensor) -> Tensor:
        """Integers in and out; the input's shape."""
        u = self.input(q)
        slope = along_channels(self.slope, u)
        return self.output(u.clamp_min(0.0) * self.gain + u.clamp_max(0.0) * slope)

    def constants(self, input_shape: torch.Size | None) -> Constants:
        """A multiplier and shift for each channel, and one for positive values."""
        return Constants(scales=OFFSET_BYTES * (self.slope.numel() + 1))
