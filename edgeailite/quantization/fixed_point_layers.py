"""What offset, multiplier and shift make of batch norms and averages: the maths, and the layers.

An integer device computes ``floor((x_q + offset) * multiplier * 2^-shift)``. The layers here
simulate just that in evaluation mode: the quantizer behind them rounds down, they have added the
half step.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgeailite.quantization.fake_quantize import FakeQuantize
from edgeailite.quantization.fold import batch_norm_gain
from edgeailite.quantization.layers import channel_affine
from edgeailite.quantization.ops import straight_through
from edgeailite.quantization.qparams import MAX_SHIFT, MULTIPLIER_BITS, fixed_point
from edgeailite.quantization.window_sum import WindowSum

EXACT_BITS = 24  # of whole numbers in float32
# With an integer input, a larger shift makes products that float32 rounds.
_MAX_SHIFT_ON_GRID = EXACT_BITS - 8


class Steps(NamedTuple):
    """``y_q = floor((x + offset) * multiplier * 2^-shift)``, before it is clipped.

    Attributes:
        offset: In units of `x`, float32; it holds the rounding's half step.
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


def batch_norm_steps(
    gain: Tensor, offset: Tensor, input_scale: Tensor | None, output_scale: Tensor, bits: int | None
) -> Steps:
    """A batch norm ``gain * x + offset`` in fixed point.

    Args:
        gain: Shape ``(C,)``; may be negative or zero.
        offset: Shape ``(C,)``.
        input_scale: Step of the input; the offset is then a whole number. None: raw values.
        output_scale: Step of the output.
        bits: Of the multiplier; None: it is not rounded.
    """
    step = output_scale.double() if input_scale is None else output_scale.double() / input_scale
    ratio = gain.double() / step
    if bits is None:
        smallest = torch.full_like(ratio, 2.0**-MAX_SHIFT)
        multiplier = torch.where(ratio == 0, smallest, ratio).float().double()
        shift = torch.zeros_like(multiplier)
    else:
        limit = MAX_SHIFT if input_scale is None else _MAX_SHIFT_ON_GRID
        multiplier, shift = fixed_point(ratio, bits, limit)
    total = (offset.double() / output_scale + 0.5) / torch.ldexp(multiplier, -shift)
    return Steps((total if input_scale is None else torch.round(total)).float(), multiplier, shift)


def average_steps(area: Tensor, input_scale: Tensor, output_scale: Tensor) -> Steps:
    """A window's sum divided by its area in fixed point; large areas take fewer multiplier bits.

    Args:
        area: float64, any shape.
        input_scale: Step of what is summed.
        output_scale: Step of the average.
    """
    count_bits = math.ceil(math.log2(max(float(area.max()), 1.0))) + 8
    bits = max(min(MULTIPLIER_BITS, EXACT_BITS - count_bits), 1)
    multiplier, shift = fixed_point(input_scale.double() / (output_scale * area), bits)
    half = torch.floor(0.5 / torch.ldexp(multiplier, -shift))
    return Steps(half.float(), multiplier, shift)


class FixedPointBatchNorm(nn.Module):
    """Mixin over torch's batch norms that no layer folds; at the network's input: normalisation.

    Attributes:
        multiplier_bits: Of the multiplier; None: it is not rounded.
    """

    multiplier_bits: int | None

    @classmethod
    def adopt(cls, batch_norm: nn.Module, multiplier_bits: int | None) -> None:
        """Turn `batch_norm` itself into its twin; one that is already stays."""
        batch_norm.__class__ = FIXED_POINT_BATCH_NORMS.get(type(batch_norm), type(batch_norm))
        batch_norm.multiplier_bits = multiplier_bits  # type: ignore[assignment]

    def forward(
        self, x: Tensor, output_quantizer: FakeQuantize, input_quantizer: FakeQuantize | None = None
    ) -> Tensor:
        """Shape ``(N, C, ...)``, as the batch norm; half of the output's step is added.

        Args:
            x: Values to normalise.
            output_quantizer: The one behind, which rounds down.
            input_quantizer: Whose grid `x` lies on; None: raw values.
        """
        if not output_quantizer.fake_quant_enabled:
            return super().forward(x)
        scale = output_quantizer.qparams().scale
        if self.training:
            return super().forward(x) + scale / 2
        gain, offset = batch_norm_gain(self)
        with torch.no_grad():
            steps, unit = self.steps(output_quantizer, input_quantizer)
            added = (steps.offset * unit).reshape(-1, *[1] * (x.dim() - 2))
            exact = (x + added) * (steps.factor * (scale / unit)).reshape(added.shape)
        if not torch.is_grad_enabled():
            return exact
        return straight_through(channel_affine(x, gain, offset), exact)

    def steps(
        self, output_quantizer: FakeQuantize, input_quantizer: FakeQuantize | None
    ) -> tuple[Steps, Tensor]:
        """The fixed-point form, and the unit of its input (1 for raw values)."""
        gain, offset = batch_norm_gain(self)
        scale = output_quantizer.qparams().scale
        source = None if input_quantizer is None else input_quantizer.qparams().scale
        unit = torch.ones_like(scale) if source is None else source
        return batch_norm_steps(gain, offset, source, scale, self.multiplier_bits), unit


def _twin(base: type[nn.Module]) -> type[nn.Module]:
    twin = type(
        f"FixedPoint{base.__name__}",
        (FixedPointBatchNorm, base),
        {"__module__": __name__, "__doc__": f"{base.__name__} in fixed point."},
    )
    globals()[twin.__name__] = twin
    return twin


FIXED_POINT_BATCH_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    base: _twin(base) for base in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
}


class FixedPointAverage(nn.Module):
    """An average as a sum, an offset, a multiplier and a shift.

    Args:
        average: A pooling, or :class:`~edgeailite.quantization.window_sum.Mean`.
    """

    def __init__(self, average: nn.Module) -> None:
        super().__init__()
        self.sums = WindowSum(average)

    def forward(
        self, x: Tensor, output_quantizer: FakeQuantize, input_quantizer: FakeQuantize
    ) -> Tensor:
        """Shapes as the average's; half of the output's step is added.

        Args:
            x: On the grid of `input_quantizer`.
            output_quantizer: The one behind, which rounds down.
            input_quantizer: Whose grid `x` lies on.
        """
        if not output_quantizer.fake_quant_enabled:
            return self.sums.average(x)
        unit, scale = input_quantizer.qparams().scale, output_quantizer.qparams().scale
        areas = self.sums.areas(x.shape).to(x.device)
        steps = average_steps(areas, unit, scale)
        return (self.sums(x) + steps.offset * unit) * (steps.factor * (scale / unit))
