"""Fake quantization of activations: autograd functions and their plain reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgeailite.quantization.arithmetic.rounding import round_to_integer

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import Rounding


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
        scale: Distance of two grid points, same unit as `x`. Shape ``()``, or broadcastable to `x`.
        zero_point: Integer that stands for 0.0; shape of `scale`.
        quant_min: Smallest integer, inclusive.
        quant_max: Largest integer, inclusive.
        rounding: Rule for ties.

    Returns:
        Values on the grid; shape and dtype of `x`.

    Reference: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, eq. 12.
    """
    q = (round_to_integer(x / scale, rounding) + zero_point).clamp(quant_min, quant_max)
    return ((q - zero_point) * scale).to(x.dtype)


# Elements that a thread works on at a time on CPU: div, round, clamp, compare and mul on a block
# that stays in its cache. One pass over memory instead of five: 2.5 times as fast as whole tensors,
# 6 times as torch's kernel.
BLOCK_SIZE = 1 << 16


def in_memory_order(x: Tensor) -> Tensor:
    """Flatten `x`, without a copy where memory has no gaps (NCHW and NHWC)."""
    dense = x.is_contiguous() or (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )
    return x.as_strided((x.numel(),), (1,)) if dense else x.reshape(-1)


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    size = BLOCK_SIZE * torch.get_num_threads()
    return zip(*(in_memory_order(t).split(size) for t in tensors), strict=True)


class _FakeQuantize(torch.autograd.Function):
    """Gradient that passes where nothing was clamped; one byte per value is kept for that."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        low: int | Tensor,
        high: int | Tensor,
        rounding: Rounding,
        inplace: bool,
    ) -> Tensor:
        low, high = low - zero_point, high - zero_point
        mask = torch.empty_like(x, dtype=torch.bool) if ctx.needs_input_grad[0] else None
        out = x if inplace else torch.empty_like(x)
        if _is_blockwise(x, out):
            _quantize_blocks(x, out, mask, scale, int(low), int(high), rounding)
        else:
            q = round_to_integer(x / scale, rounding)
            clamped = torch.clamp(q, low, high)
            mask = None if mask is None else clamped == q
            out = x.copy_(clamped * scale) if inplace else clamped * scale
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(mask)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (mask,) = grads, ctx.saved_tensors
        out = torch.empty_like(mask, dtype=grad.dtype)
        if _is_blockwise(mask, out) and grad.stride() == out.stride():
            for g, m, o in _blocks(grad, mask, out):
                torch.mul(g, m, out=o)
        else:
            out = grad * mask
        return out, None, None, None, None, None, None


def _is_blockwise(x: Tensor, out: Tensor) -> bool:
    """Return True for CPU tensors of one memory order without gaps, outside of a compiler."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or x.stride() != out.stride():
        return False
    return x.is_contiguous() or (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )


def _quantize_blocks(
    x: Tensor,
    out: Tensor,
    mask: Tensor | None,
    scale: Tensor,
    low: int,
    high: int,
    rounding: Rounding,
) -> None:
    buffer = torch.empty(min(x.numel(), BLOCK_SIZE * torch.get_num_threads()))
    for block in _blocks(x, out, *(() if mask is None else (mask,))):
        q = buffer[: block[0].numel()]
        _round_into(q, block[0], scale, rounding)
        torch.clamp(q, low, high, out=block[1])
        if mask is not None:
            torch.eq(q, block[1], out=block[2])
        block[1].mul_(scale)


def _round_into(q: Tensor, x: Tensor, scale: Tensor, rounding: Rounding) -> None:
    torch.div(x, scale, out=q)
    if rounding == "half_even":
        q.round_()
    elif rounding == "half_up":
        q.add_(0.5).floor_()
    elif rounding == "floor":
        q.floor_()
    else:
        q.copy_(round_to_integer(q, rounding))


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int | Tensor,
    quant_max: int | Tensor,
    rounding: Rounding = "half_even",
    inplace: bool = False,
) -> Tensor:
    """Simulate a per-tensor grid; straight-through gradient: 1 inside the range, 0 outside.

    Args:
        x: Activations, any shape. Half precision is computed, and returned, in float32.
        scale: Shape ``()``, float32.
        zero_point: Shape ``()``, int32.
        quant_min: Smallest integer, inclusive; a tensor of shape ``()`` where reading it would
            make the device wait.
        quant_max: Largest integer, inclusive; likewise.
        rounding: Rule for ties.
        inplace: Overwrite `x` (unless it is a view, a leaf, or half precision).

    Returns:
        Values on the grid, shape of `x`.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        x, inplace = x.float(), False
    if (
        x.device.type != "cpu"
        and rounding == "half_even"
        and isinstance(quant_min, int)
        and isinstance(quant_max, int)
    ):
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, quant_min, quant_max)
    inplace = inplace and not (
        x._is_view() or (x.is_leaf and x.requires_grad) or torch.compiler.is_compiling()
    )
    return _FakeQuantize.apply(x, scale, zero_point, quant_min, quant_max, rounding, inplace)


class _LearnedFakeQuantize(torch.autograd.Function):
    """Gradients for the values, the scale and the zero point; the values are kept for that."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        quant_min: int,
        quant_max: int,
        rounding: Rounding,
        gradient_scale: float,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.limits, ctx.rounding = (quant_min, quant_max), rounding
        ctx.gradient_scale = gradient_scale
        low, high = quant_min - zero_point, quant_max - zero_point
        out = torch.empty_like(x)
        if scale.dim() == 0 and _is_blockwise(x, out):
            _quantize_blocks(x, out, None, scale, int(low), int(high), rounding)
            return out
        return round_to_integer(x / scale, rounding).clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,), (x, scale, zero_point) = grads, ctx.saved_tensors
        low, high = (limit - zero_point for limit in ctx.limits)
        passed = torch.empty_like(x)
        is_scalar = scale.dim() == 0
        if is_scalar and _is_blockwise(x, passed) and grad.stride() == x.stride():
            scale_gradient = x.new_zeros(())
            for g, value, out in _blocks(grad, x, passed):
                scale_gradient += _scale_gradient(
                    g, value, scale, int(low), int(high), ctx.rounding, out
                ).sum()
        else:
            scale_gradient = _scale_gradient(grad, x, scale, low, high, ctx.rounding, passed)
        factor, origin = ctx.gradient_scale, None
        if ctx.needs_input_grad[2]:
            origin = (passed.sum() - grad.sum()) * scale * factor
        return (
            passed,
            scale_gradient.sum_to_size(scale.shape) * factor,
            origin,
            None,
            None,
            None,
            None,
        )


def _scale_gradient(
    grad: Tensor, x: Tensor, scale: Tensor, low: Any, high: Any, rounding: Rounding, passed: Tensor
) -> Tensor:
    """``grad * dy/ds`` of each value; `passed` becomes the gradient of `x`.

    Inside of the range ``dy/ds = round(x / s) - x / s``, outside it is the limit.
    """
    real = x / scale
    q = round_to_integer(real, rounding)
    clamped = q.clamp(low, high)
    inside = clamped == q
    torch.mul(grad, inside, out=passed)
    return clamped.sub_(real.mul_(inside)).mul_(grad)


def learned_fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    rounding: Rounding,
    gradient_scale: float,
) -> Tensor:
    """Simulate a grid whose scale and zero point receive gradients as well.

    Args:
        x: Values, any shape.
        scale: Broadcastable to `x`; a negative one mirrors the grid.
        zero_point: Float, shape ``()``; with a gradient only where `scale` has this shape too.
        quant_min: Smallest integer, inclusive.
        quant_max: Largest integer, inclusive.
        rounding: Rule for ties.
        gradient_scale: Factor of the gradients of `scale` and `zero_point`.

    Returns:
        Values on the grid, shape of `x`.

    Reference: Esser et al. 2020, https://arxiv.org/abs/1902.08153, eq. 3.
    """
    return _LearnedFakeQuantize.apply(
        x, scale, zero_point, quant_min, quant_max, rounding, gradient_scale
    )
