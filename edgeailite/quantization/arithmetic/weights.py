"""Fake quantization of weights and biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgeailite.quantization.arithmetic.rounding import round_to_integer, straight_through

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import Rounding


class _FakeQuantizeWeight(torch.autograd.Function):
    """Signed channel scales: a negative one, as of a negative gain, mirrors the grid."""

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
        scale: Broadcastable to `w`; may be negative.
        quant_min: Smallest integer, inclusive.
        quant_max: Largest integer, inclusive.
        rounding: Rule for ties.

    Returns:
        Values on the grid, shape of `w`; gradient 1 inside the range, 0 outside.
    """
    return _FakeQuantizeWeight.apply(w, scale, quant_min, quant_max, rounding)


def soft_quantize_weight(
    w: Tensor, scale: Tensor, quant_min: int, quant_max: int, softness: float
) -> Tensor:
    """Quantize with a slanted staircase between the identity and the weight's grid.

    ``s * (n + (g(r) - g(0)) / (g(1) - g(0)))`` with ``n + r = clamp(w / s, q_min, q_max)``, `n`
    whole, and ``g(r) = sigmoid((r - 1/2) * 4 / softness)``. Straight-through gradient: 1 inside of
    the range, 0 outside.

    Args:
        w: Weight, any shape.
        scale: Broadcastable to `w`; may be negative.
        quant_min: Smallest integer, inclusive.
        quant_max: Largest integer, inclusive.
        softness: Above 0 (nearly the grid) up to 1 (nearly the identity).

    Reference: Gong et al. 2019, https://arxiv.org/abs/1908.05033, eq. 6 (with its asymptotic limit
        reached by a schedule instead of by learning).
    """
    with torch.no_grad():
        u = (w / scale).clamp(quant_min, quant_max)
        whole = torch.floor(u)
        steepness = 4.0 / softness
        edge = torch.sigmoid(torch.tensor(-0.5 * steepness))
        rise = (torch.sigmoid((u - whole - 0.5) * steepness) - edge) / (1.0 - 2.0 * edge)
        inside = (w / scale >= quant_min - 0.5) & (w / scale <= quant_max + 0.5)
        soft = (whole + rise) * scale
    return straight_through(w * inside, soft)


def quantize_bias(b: Tensor, scale: Tensor, limit: int, rounding: Rounding) -> Tensor:
    """Bias as integers of the accumulator: ``clamp(round(b / s), -limit, limit - 1)``.

    Args:
        b: Bias, shape ``(C,)``.
        scale: ``s_in * s_w``, shape ``(C,)``.
        limit: ``2^(bits - 1)``.
        rounding: Rule for ties.

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


class _AddGradient(torch.autograd.Function):
    """Identity whose backward pass gives `extra` to `w`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, w: Tensor, extra: Tensor) -> Tensor:
        ctx.save_for_backward(extra)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        return grads[0], ctx.saved_tensors[0], None


def damped(
    quantized: Tensor, w: Tensor, scale: Tensor, quant_min: int, quant_max: int, strength: float
) -> Tensor:
    """Return `quantized`; its backward pass also draws `w` to its grid point.

    The gradient of ``strength * sum (Q(w) - clamp(w))^2`` with `Q(w)` held: weights that sit
    between two grid points and jump from one to the other in every iteration come to rest.

    Args:
        quantized: `w` on its grid.
        w: Weight, any shape.
        scale: Broadcastable to `w`.
        quant_min: Smallest integer, inclusive.
        quant_max: Largest integer, inclusive.
        strength: Of the pull; it adds up with whatever the loss is scaled by.

    Reference: Nagel et al. 2022, https://arxiv.org/abs/2203.11086, eq. 5.
    """
    with torch.no_grad():
        real = w / scale
        inside = (real >= quant_min) & (real <= quant_max)
        pull = (w - quantized) * inside * (2.0 * strength)
    return _AddGradient.apply(quantized, w, pull)
