"""Batch norm into weights: pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def batch_norm_gain(
    mean: Tensor, var: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``f = gamma / sqrt(var + eps)`` and ``beta - mean * f``: batch norm in evaluation mode.

    Args:
        mean: Running mean, shape ``(C,)``.
        var: Running variance, shape ``(C,)``.
        eps: Added to the variance.
        weight: ``gamma``, shape ``(C,)``; None: 1.
        bias: ``beta``, shape ``(C,)``; None: 0.

    Returns:
        Gain and offset with ``y = f * x + offset``, shape ``(C,)`` each; differentiable with
        respect to ``gamma`` and ``beta``.
    """
    gain = torch.rsqrt(var + eps)
    if weight is not None:
        gain = gain * weight
    offset = -mean * gain
    return gain, offset if bias is None else offset + bias


def fold_bias(bias: Tensor | None, gain: Tensor, offset: Tensor) -> Tensor:
    """``bias * f + offset``, shape ``(C,)``."""
    return offset if bias is None else bias * gain + offset


def channel_view(vector: Tensor, weight: Tensor, transposed: bool, groups: int) -> Tensor:
    """Shape a vector over the output channels so that it multiplies a layer's weight.

    Args:
        vector: Shape ``(C_out,)``.
        weight: ``(C_out, C_in / groups, ...)``, or ``(C_in, C_out / groups, ...)`` if `transposed`.
        transposed: True for a transposed convolution's weight.
        groups: The convolution's groups.

    Returns:
        Shape ``(C_out, 1, ...)``, or ``(C_in, C_out / groups, 1, ...)``.
    """
    tail = [1] * (weight.dim() - 2)
    if not transposed:
        return vector.reshape(-1, 1, *tail)
    per_input = vector.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, dim=0)
    return per_input.reshape(*weight.shape[:2], *tail)


def weight_rows(weight: Tensor, transposed: bool, groups: int) -> Tensor:
    """Weights of each output channel as one row: shape ``(C_out, n)``."""
    if not transposed:
        return weight.flatten(1)
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return grouped.transpose(1, 2).reshape(groups * weight.shape[1], -1)
