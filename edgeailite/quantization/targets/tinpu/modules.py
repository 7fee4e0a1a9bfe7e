"""What offset, multiplier and shift make of batch norms and averages: the maths, and the layers.

An integer device computes ``floor((x_q + offset) * multiplier * 2^-shift)``. The layers here
simulate just that in evaluation mode: the quantizer behind them rounds down, they have added the
half step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from edgeailite.quantization.arithmetic.fold import batch_norm_gain
from edgeailite.quantization.arithmetic.ops import straight_through
from edgeailite.quantization.arithmetic.qparams import MAX_SHIFT, MULTIPLIER_BITS, fixed_point
from edgeailite.quantization.graph.window_sums import WindowSum
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer import channel_affine, plain_strides

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
        # Raw values may be tiny: the shift is to the left then, in what reads the sensor.
        low, high = (-MAX_SHIFT, MAX_SHIFT) if input_scale is None else (0, _MAX_SHIFT_ON_GRID)
        multiplier, shift = fixed_point(ratio, bits, high, low)
    total = (offset.double() / output_scale + 0.5) / torch.ldexp(multiplier, -shift)
    return Steps((total if input_scale is None else torch.round(total)).float(), multiplier, shift)


def average_steps(area: Tensor, input_scale: Tensor, output_scale: Tensor) -> Steps:
    """A window's sum divided by its area in fixed point; large areas take fewer multiplier bits.

    Args:
        area: float64, any shape, on the CPU: reading it must not wait for a device.
        input_scale: Step of what is summed.
        output_scale: Step of the average.
    """
    count_bits = math.ceil(math.log2(max(float(area.max()), 1.0))) + 8
    area = area.to(input_scale.device)
    bits = max(min(MULTIPLIER_BITS, EXACT_BITS - count_bits), 1)
    multiplier, shift = fixed_point(input_scale.double() / (output_scale * area), bits)
    half = torch.floor(0.5 / torch.ldexp(multiplier, -shift))
    return Steps(half.float(), multiplier, shift)


def average_constants(
    sums: WindowSum, shape: Sequence[int], input_scale: float, output_scale: float
) -> tuple[Any, Any, Steps]:
    """:func:`average_steps` in numbers, for a graph that is being exported as well.

    Returns:
        Offset (in steps of the input) and factor, numbers or, where places differ, tensors; and the
        whole numbers.
    """
    with _disable_current_modes():
        scales = torch.tensor(input_scale), torch.tensor(output_scale)
        steps = average_steps(sums.areas(shape), *scales)
        offset, factor = steps.offset.tolist(), steps.factor.tolist()
    if isinstance(offset, float):
        return offset, factor, steps
    return torch.tensor(offset), torch.tensor(factor), steps


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
            exact = self.frozen(output_quantizer, input_quantizer)(x)
        if not torch.is_grad_enabled():
            return exact
        return straight_through(channel_affine(x, gain, offset), exact)

    def frozen(
        self, output_quantizer: FakeQuantize, input_quantizer: FakeQuantize | None = None
    ) -> AddMultiply:
        """What evaluation mode computes, as it is now."""
        steps, unit = self.steps(output_quantizer, input_quantizer)
        factor = steps.factor * (output_quantizer.qparams().scale / unit)
        return AddMultiply(steps.offset * unit, factor)

    def steps(
        self, output_quantizer: FakeQuantize, input_quantizer: FakeQuantize | None
    ) -> tuple[Steps, Tensor]:
        """The fixed-point form, and the unit of its input (1 for raw values)."""
        gain, offset = batch_norm_gain(self)
        scale = output_quantizer.qparams().scale
        source = None if input_quantizer is None else input_quantizer.qparams().scale
        unit = torch.ones_like(scale) if source is None else source
        return batch_norm_steps(gain, offset, source, scale, self.multiplier_bits), unit


class AddMultiply(nn.Module):
    """``(x + offset) * factor`` along axis 1: a batch norm in fixed point, in real values.

    Args:
        offset: Shape ``(C,)``.
        factor: Shape ``(C,)``.
    """

    offset: Tensor
    factor: Tensor

    def __init__(self, offset: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("offset", offset.detach().clone())
        self.register_buffer("factor", factor.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(N, C, ...)``."""
        x, tail = plain_strides(x), [1] * (x.dim() - 2)
        return (x + self.offset.reshape(-1, *tail)) * self.factor.reshape(-1, *tail)


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
        average: A pooling, or :class:`~edgeailite.quantization.graph.window_sums.Mean`.
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
        steps = average_steps(self.sums.areas(x.shape), unit, scale)
        return (self.sums(x) + steps.offset * unit) * (steps.factor * (scale / unit))

    def frozen(
        self, output_quantizer: FakeQuantize, input_quantizer: FakeQuantize
    ) -> FrozenAverage:
        """What it computes on the grids as they are now."""
        scales = (float(q.qparams().scale) for q in (input_quantizer, output_quantizer))
        return FrozenAverage(self.sums, *scales)


class FrozenAverage(nn.Module):
    """:class:`FixedPointAverage` between two fixed power-of-two steps.

    Args:
        sums: Of the windows.
        input_scale: Step of what is summed.
        output_scale: Step of the average.
    """

    def __init__(self, sums: WindowSum, input_scale: float, output_scale: float) -> None:
        super().__init__()
        self.sums, self.input_scale, self.output_scale = sums, input_scale, output_scale

    def forward(self, x: Tensor) -> Tensor:
        """Real values in and out, shapes as the average's."""
        unit, scale = self.input_scale, self.output_scale
        offset, factor, _ = average_constants(self.sums, x.shape, unit, scale)
        return (self.sums(x) + offset * unit) * (factor * (scale / unit))
