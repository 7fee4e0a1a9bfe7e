"""Ranges that the gradient finds: learned power-of-two thresholds, and learned scales.

The range is the parameter, the scale follows from it. With ``r = round(x / s) - x / s`` a value
inside of the range gives ``dy/ds = r``, one outside ``dy/ds = q_min`` or ``q_max``. A power of two
is rounded up from the range; the gradient passes as if it were not.

References: Esser et al. 2020, https://arxiv.org/abs/1902.08153, eq. 3 and section 2.2 (learned
scales, and the factor of their gradient); Jain et al. 2020, https://arxiv.org/abs/1903.08066,
eq. 6 to 8 (power-of-two thresholds); Bhalgat et al. 2020, https://arxiv.org/abs/2004.09576 (affine
grids).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgeailite.quantization.arithmetic.fake_quantize import learned_fake_quantize
from edgeailite.quantization.arithmetic.qparams import MIN_RANGE, QParams

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import QuantSpec


def simulate_learned(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    spec: QuantSpec,
    num_values: int,
    rate: float = 1.0,
) -> Tensor:
    """Simulate a grid whose scale and zero point receive gradients.

    Args:
        x: Values, any shape; half precision becomes float32.
        scale: Broadcastable to `x`; a negative one mirrors the grid.
        zero_point: Float, shape ``()``.
        spec: Of the grid.
        num_values: Number of values of one image (or of the weight) that share a scale. The
            scale's gradient is divided by ``sqrt(num_values * q_max)``, which makes its relative
            change per iteration like that of the weights.
        rate: Factor of the scale's gradient.

    Returns:
        Values on the grid, shape of `x`.
    """
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    span = max(-spec.quant_min, spec.quant_max)
    factor = rate * float(num_values * span) ** -0.5
    return learned_fake_quantize(
        x, scale, zero_point, spec.quant_min, spec.quant_max, spec.rounding, factor
    )


def with_range_gradient(grid: QParams, clips: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Scale and zero point of an activation's grid, through which `clips` receives a gradient.

    Args:
        grid: Grid that follows from `clips` (or has a coarser, shared scale).
        clips: ``[low, high]``, shape ``(2,)``.
        spec: Of the grid.

    Returns:
        The scale, and the zero point as a float; shape ``()`` each, values as those of `grid`.
    """
    if spec.range_max is not None:
        clips = clips.clamp(-spec.range_max, spec.range_max)
    if not spec.symmetric:
        # A range that begins at zero goes on doing so.
        from_zero = torch.zeros_like(clips[0])
        low = from_zero if spec.signed is False else torch.where(clips[0] < 0, clips[0], from_zero)
        scale = _follow(grid.scale, clips[1].clamp_min(0.0) - low)
        real = -low / scale
        zero_point = grid.zero_point.float() + (real - real.detach())
        return scale, zero_point
    span = clips.abs().amax()
    if spec.signed is False:
        span = clips[1].abs()
    elif spec.signed is None:
        span = torch.where(clips[0] < 0, span, clips[1].abs())
    return _follow(grid.scale, span), grid.zero_point.float()


def follow_range(scale: Tensor, max_abs: Tensor, spec: QuantSpec) -> Tensor:
    """Let the magnitudes that a weight's scales cover receive a gradient through the scales.

    Args:
        scale: Scale of each output channel, shape ``(C,)``.
        max_abs: Magnitudes they cover, shape ``(C,)``; per tensor, all follow the largest.
        spec: Of the grid.
    """
    if spec.granularity == "per_tensor":
        max_abs = max_abs.amax().expand_as(max_abs)
    return _follow(scale, max_abs)


def _follow(scale: Tensor, span: Tensor) -> Tensor:
    """`scale` itself; its gradient reaches `span`, to which it is taken as proportional."""
    span = span.clamp_min(MIN_RANGE)
    return scale.detach() * (span / span.detach())
