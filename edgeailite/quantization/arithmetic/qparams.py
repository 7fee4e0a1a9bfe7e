"""Scale and zero point of a grid from a range and a spec: pure functions of tensors.

Nothing here reads a value back to Python, so that no device waits in a training iteration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import QuantSpec

MIN_RANGE = 2.0**-16
_MANTISSA = 0x7FFFFF


class QParams(NamedTuple):
    """Grid of integers.

    Attributes:
        scale: Distance of two grid points, positive float32. Shape ``()``, or ``(C,)`` per channel.
        zero_point: Integer that stands for 0.0, int32, shape of `scale`.
        quant_min: Smallest integer, inclusive.
        quant_max: Largest integer, inclusive.
    """

    scale: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int


def ceil_power_of_two(x: Tensor) -> Tensor:
    """Smallest power of two that is not below `x`: ``2^ceil(log2(x))``, exactly.

    Works on the bits (exponent + 1 where the mantissa is not zero): ``log2`` and ``exp2`` are not
    exact in every math library, and a scale that is nearly a power of two breaks every equality
    this package claims.

    Args:
        x: Positive normal float32 values, any shape.

    Returns:
        Powers of two, float32, shape of `x`.
    """
    bits = x.contiguous().float().view(torch.int32)
    return ((bits + _MANTISSA) & ~_MANTISSA).view(torch.float32)


def ceil_significant(x: Tensor, bits: int) -> Tensor:
    """Smallest ``m * 2^k``, `m` an integer of `bits` bits, that is not below `x`, exactly.

    Args:
        x: Positive normal float32 values, any shape.
        bits: 1 to 23.

    Returns:
        float32, shape of `x`.
    """
    dropped = (1 << (24 - bits)) - 1
    words = x.contiguous().float().view(torch.int32)
    return ((words + dropped) & ~dropped).view(torch.float32)


def _on_scale_grid(scale: Tensor, spec: QuantSpec) -> Tensor:
    """Round `scale` up to one that the spec allows."""
    if spec.power_of_two:
        return ceil_power_of_two(scale)
    return scale if spec.scale_bits is None else ceil_significant(scale, spec.scale_bits)


def symmetric_scale(max_abs: Tensor, spec: QuantSpec) -> Tensor:
    """Scale of a signed symmetric grid that covers ``[-max_abs, max_abs]``.

    ``s = 2^ceil(log2 M) / 2^(b-1)`` for power-of-two specs, else ``s = M / (2^(b-1) - 1)``.
    """
    return _scale(max_abs, (1 << (spec.bit_width - 1)) - 1, spec)


def unsigned_scale(max_value: Tensor, spec: QuantSpec) -> Tensor:
    """Scale of an unsigned grid ``[0, M]``: ``2^ceil(log2 M) / 2^b``, or ``M / (2^b - 1)``."""
    return _scale(max_value, (1 << spec.bit_width) - 1, spec)


def _scale(limit: Tensor, quant_max: int, spec: QuantSpec) -> Tensor:
    """Scale with which `limit` is `quant_max`, or for powers of two the integer after it."""
    if spec.quant_range is not None:
        quant_max = spec.quant_max
    limit = limit.float().clamp_min(MIN_RANGE)
    if spec.power_of_two:
        return ceil_power_of_two(limit) / (1 << quant_max.bit_length())
    return _on_scale_grid(limit / quant_max, spec)


def activation_qparams(clips: Tensor, spec: QuantSpec) -> QParams:
    """Grid of an activation from its range.

    Args:
        clips: ``[min, max]``, float32, shape ``(2,)``.
        spec: Per-tensor spec. With ``signed=None`` and a symmetric grid, ``min < 0`` makes it
            signed; an unsigned one is then carried as signed integers with
            ``zero_point = quant_min``, the same grid.

    Returns:
        Grid with 0-dim `scale` and `zero_point`.
    """
    if spec.range_max is not None:
        clips = clips.clamp(-spec.range_max, spec.range_max)
    if not spec.symmetric:
        return _affine_qparams(clips, spec)
    max_abs = clips.abs().amax()
    zero = torch.zeros((), dtype=torch.int32, device=clips.device)
    if spec.signed is True:
        return QParams(symmetric_scale(max_abs, spec), zero, spec.quant_min, spec.quant_max)
    unsigned = unsigned_scale(clips[1].abs(), spec)
    if spec.signed is False:
        return QParams(unsigned, zero, spec.quant_min, spec.quant_max)
    negative = clips[0] < 0
    scale = torch.where(negative, symmetric_scale(max_abs, spec), unsigned)
    zero_point = torch.where(negative, zero, zero + spec.quant_min)
    return QParams(scale, zero_point, spec.quant_min, spec.quant_max)


def _affine_qparams(clips: Tensor, spec: QuantSpec) -> QParams:
    """``s = (max - min) / (q_max - q_min)``, ``z = q_min - round(min / s)``; 0.0 is on the grid."""
    low = torch.zeros_like(clips[0]) if spec.signed is False else clips[0].clamp_max(0.0)
    high = clips[1].clamp_min(0.0)
    quant_min, quant_max = spec.quant_min, spec.quant_max
    scale = (high - low).clamp_min(MIN_RANGE) / (quant_max - quant_min)
    if not spec.power_of_two:
        zero_point = quant_min - torch.round(low / scale)
    else:
        # Even: ties are frequent here, and kernels that add the zero point before they round to
        # even must do as those that add it afterwards.
        scale = ceil_power_of_two(scale)
        zero_point = quant_min - 2 * torch.round(low / scale / 2)
    zero_point = zero_point.clamp(quant_min, quant_max)
    return QParams(scale, zero_point.to(torch.int32), quant_min, quant_max)


def weight_scale(max_abs: Tensor, spec: QuantSpec, min_scale: Tensor | None = None) -> Tensor:
    """Scales of a layer's weight from the largest magnitude of each output channel.

    Args:
        max_abs: ``max |w|`` of each output channel, shape ``(C,)``.
        spec: Signed symmetric spec; per tensor, all channels get the same scale.
        min_scale: Coarsen to at least this scale, shape ``(C,)`` (what the bias needs).

    Returns:
        float32, shape ``(C,)``.
    """
    if spec.range_max is not None:
        max_abs = max_abs.clamp_max(spec.range_max)
    if spec.fixed_range is not None:
        max_abs = torch.full_like(max_abs, max(abs(v) for v in spec.fixed_range))
    if spec.granularity == "per_tensor":
        max_abs = max_abs.amax().expand_as(max_abs)
        min_scale = None if min_scale is None else min_scale.amax().expand_as(max_abs)
    scale = symmetric_scale(max_abs, spec)
    if spec.granularity == "per_channel":
        floor = scale.amax() / spec.max_scale_ratio
        scale = torch.maximum(scale, _on_scale_grid(floor, spec))
    if min_scale is not None:
        min_scale = min_scale.clamp_min(torch.finfo(torch.float32).tiny)
        scale = torch.maximum(scale, _on_scale_grid(min_scale, spec))
    return scale
