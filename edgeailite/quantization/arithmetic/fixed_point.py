"""Offset, multiplier and shift, which integer devices use in place of a float factor."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MAX_SHIFT = 31
MULTIPLIER_BITS = 8
EXACT_BITS = 24  # of whole numbers in float32
# With an integer input, a larger shift makes products that float32 rounds.
_MAX_SHIFT_ON_GRID = EXACT_BITS - 8


def multiplier_and_shift(
    factor: Tensor, bits: int, max_shift: int = MAX_SHIFT, min_shift: int = 0
) -> tuple[Tensor, Tensor]:
    """Multiplier and right shift nearest to `factor`: ``factor ~ multiplier * 2^-shift``.

    ``shift = floor(log2((2^bits - 1) / |factor|))`` within `min_shift` to `max_shift`,
    ``multiplier = round(|factor| * 2^shift)``, at least 1, with the sign of `factor`. It has more
    than `bits` bits where `min_shift` is in its way.

    Args:
        factor: Any shape.
        bits: Of the multiplier, without its sign.
        max_shift: Largest shift.
        min_shift: Smallest shift; a negative one is a shift to the left.

    Returns:
        Whole numbers in float64, each of the shape of `factor`.
    """
    magnitude = factor.double().abs().clamp_min(2.0**-max_shift)
    exponent = torch.frexp(((1 << bits) - 1) / magnitude).exponent - 1
    shift = exponent.clamp(min_shift, max_shift).double()
    multiplier = torch.round(torch.ldexp(magnitude, shift)).clamp_min(1.0)
    return torch.where(factor < 0, -multiplier, multiplier), shift


class Requantization(NamedTuple):
    """``y_q = floor((x + offset) * multiplier * 2^-shift)``, before it is clipped.

    Attributes:
        offset: In units of `x`, float32; it holds the half that rounding adds.
        multiplier: Whole numbers in float64 (the factor itself where it has no fixed point).
        shift: Whole numbers in float64.
    """

    offset: Tensor
    multiplier: Tensor
    shift: Tensor

    @property
    def factor(self) -> Tensor:
        """``multiplier * 2^-shift``, exact in float32."""
        return torch.ldexp(self.multiplier, -self.shift).float()


def batch_norm_requantization(
    gain: Tensor, offset: Tensor, input_scale: Tensor | None, output_scale: Tensor, bits: int | None
) -> Requantization:
    """Batch norm ``gain * x + offset`` in fixed point.

    Args:
        gain: Shape ``(C,)``; may be negative or zero.
        offset: Shape ``(C,)``.
        input_scale: Scale of the input; the offset is then a whole number. None: raw values.
        output_scale: Scale of the output.
        bits: Of the multiplier; None: it is not rounded.
    """
    source = 1.0 if input_scale is None else input_scale
    ratio = gain.double() / (output_scale.double() / source)
    if bits is None:
        smallest = torch.full_like(ratio, 2.0**-MAX_SHIFT)
        multiplier = torch.where(ratio == 0, smallest, ratio).float().double()
        shift = torch.zeros_like(multiplier)
    else:
        # Raw values may be tiny: the shift is to the left then, in what reads the sensor.
        low, high = (-MAX_SHIFT, MAX_SHIFT) if input_scale is None else (0, _MAX_SHIFT_ON_GRID)
        multiplier, shift = multiplier_and_shift(ratio, bits, high, low)
    total = (offset.double() / output_scale + 0.5) / torch.ldexp(multiplier, -shift)
    return Requantization(
        (total if input_scale is None else torch.round(total)).float(), multiplier, shift
    )


def average_requantization(
    area: Tensor, input_scale: Tensor, output_scale: Tensor
) -> Requantization:
    """Division of a window's sum by its area in fixed point; large areas take fewer bits.

    Args:
        area: float64, any shape, on the CPU: reading it must not wait for a device.
        input_scale: Scale of what is summed.
        output_scale: Scale of the average.
    """
    count_bits = math.ceil(math.log2(max(float(area.max()), 1.0))) + 8
    area = area.to(input_scale.device)
    bits = max(min(MULTIPLIER_BITS, EXACT_BITS - count_bits), 1)
    multiplier, shift = multiplier_and_shift(input_scale.double() / (output_scale * area), bits)
    half = torch.floor(0.5 / torch.ldexp(multiplier, -shift))
    return Requantization(half.float(), multiplier, shift)
