"""The fake-quantize autograd functions, and beside each the plain reference that its tests compare with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgeailite.quantization.spec import Rounding


def round_to_integer(x: Tensor, rounding: Rounding) -> Tensor:
    """Round to whole numbers; `rounding` says where ties go.

    Args:
        x: Any shape, floating point.
        rounding: ``half_even`` (2.5 -> 2), ``half_up`` (-2.5 -> -2, 2.5 -> 3) or ``half_away`` (-2.5 -> -3).
    """
    if rounding == "half_even":
        return torch.round(x)
    if rounding == "half_up":
        return torch.floor(x + 0.5)
    return torch.trunc(x + torch.copysign(torch.full_like(x, 0.5), x))


def fake_quantize_reference(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    rounding: Rounding = "half_even",
) -> Tensor:
    """Round to the grid and back: ``(clamp(round(x / s) + z, q_min, q_max) - z) * s``.

    Args:
        x: Values to quantize, any shape.
        scale: Grid step, same unit as `x`. Shape ``()``, or broadcastable to `x`.
        zero_point: Integer that stands for 0.0; shape of `scale`.
        quant_min: Smallest integer, inclusive.
        quant_max: Largest integer, inclusive.
        rounding: Where ties go.

    Returns:
        Values on the grid; shape and dtype of `x`.

    Reference: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, eq. 12.
    """
    q = (round_to_integer(x / scale, rounding) + zero_point).clamp(quant_min, quant_max)
    return ((q - zero_point) * scale).to(x.dtype)


class _FakeQuantize(torch.autograd.Function):
    """Any rounding; the gradient passes where the rounded value was not clamped."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        quant_min: int,
        quant_max: int,
        rounding: Rounding,
    ) -> Tensor:
        q = round_to_integer(x * (1.0 / scale), rounding)
        low, high = quant_min - zero_point, quant_max - zero_point
        ctx.save_for_backward((q >= low) & (q <= high) if ctx.needs_input_grad[0] else None)
        return torch.clamp(q, low, high, out=q).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (mask,) = ctx.saved_tensors
        return grads[0] * mask, None, None, None, None, None


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    rounding: Rounding = "half_even",
) -> Tensor:
    """Simulate a per-tensor grid; straight-through gradient: 1 inside the range, 0 outside.

    Args:
        x: Activations, any shape. Half precision is computed, and returned, in float32.
        scale: Shape ``()``, float32.
        zero_point: Shape ``()``, int32.
        quant_min: Smallest integer, inclusive.
        quant_max: Largest integer, inclusive.
        rounding: ``half_even`` runs torch's fused kernel.

    Returns:
        Values on the grid, shape of `x`.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if rounding == "half_even":
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, quant_min, quant_max)
    return _FakeQuantize.apply(x, scale, zero_point, quant_min, quant_max, rounding)


def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """``quantized`` in the forward pass, the identity's gradient in the backward pass."""
    return _StraightThrough.apply(x, quantized)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _FakeQuantizeWeight(torch.autograd.Function):
    """Signed channel steps: a negative one mirrors the grid, as a negative batch-norm gain does."""

    @staticmethod
    def forward(
        ctx: Any, w: Tensor, scale: Tensor, quant_min: int, quant_max: int, rounding: Rounding
    ) -> Tensor:
        q = round_to_integer(w / scale, rounding)
        ctx.save_for_backward(
            (q >= quant_min) & (q <= quant_max) if ctx.needs_input_grad[0] else None
        )
        return q.clamp_(quant_min, quant_max).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (mask,) = ctx.saved_tensors
        return grads[0] * mask, None, None, None, None


def fake_quantize_weight(
    w: Tensor, scale: Tensor, quant_min: int, quant_max: int, rounding: Rounding
) -> Tensor:
    """Symmetric weight grid: ``clamp(round(w / s), q_min, q_max) * s``.

    Args:
        w: Weight, any shape.
        scale: Steps, broadcastable to `w`; may be negative.
        quant_min: Smallest integer, inclusive.
        quant_max: Largest integer, inclusive.
        rounding: Where ties go.

    Returns:
        Values on the grid, shape of `w`; gradient 1 inside the range, 0 outside.
    """
    return _FakeQuantizeWeight.apply(w, scale, quant_min, quant_max, rounding)


def quantize_bias(b: Tensor, scale: Tensor, limit: int, rounding: Rounding) -> Tensor:
    """Bias as integers of the accumulator: ``clamp(round(b / s), -limit, limit - 1)``.

    Args:
        b: Bias, shape ``(C,)``.
        scale: ``s_in * s_w``, shape ``(C,)``.
        limit: ``2^(bits - 1)``.
        rounding: Where ties go.

    Returns:
        Whole numbers in float64 (the largest int32 has more digits than float32), shape ``(C,)``.
    """
    return round_to_integer(b.detach().double() / scale.detach().double(), rounding).clamp_(
        -limit, limit - 1
    )


def fake_quantize_bias(b: Tensor, scale: Tensor, limit: int, rounding: Rounding) -> Tensor:
    """:func:`quantize_bias` and back, straight-through gradient; dtype of `b`."""
    return straight_through(
        b, (quantize_bias(b, scale, limit, rounding) * scale.detach().double()).to(b.dtype)
    )
