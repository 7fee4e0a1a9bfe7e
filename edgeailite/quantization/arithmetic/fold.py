"""Batch norm into weights: the maths, and which batch norms it applies to."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norm_gain(batch_norm: nn.Module) -> tuple[Tensor, Tensor]:
    """``f = gamma / sqrt(var + eps)`` and ``beta - mean * f``, which evaluation mode computes with.

    Args:
        batch_norm: With running statistics; without affine parameters ``gamma = 1`` and
            ``beta = 0``.

    Returns:
        Gain and offset with ``y = f * x + offset`` in evaluation mode, shape ``(C,)`` each;
        differentiable with respect to ``gamma`` and ``beta``.
    """
    assert isinstance(batch_norm, _BatchNorm)
    mean, var = batch_norm.running_mean, batch_norm.running_var
    assert mean is not None
    assert var is not None
    gain = torch.rsqrt(var + batch_norm.eps)
    if batch_norm.weight is not None:
        gain = gain * batch_norm.weight
    offset = -mean * gain
    return gain, offset if batch_norm.bias is None else offset + batch_norm.bias


def fold_bias(bias: Tensor | None, gain: Tensor, offset: Tensor) -> Tensor:
    """``bias * f + offset``, shape ``(C,)``."""
    return offset if bias is None else bias * gain + offset


def channel_view(vector: Tensor, weight: Tensor, transposed: bool, groups: int) -> Tensor:
    """A vector over the output channels, shaped to multiply a layer's weight.

    Args:
        vector: Shape ``(C_out,)``.
        weight: ``(C_out, C_in / groups, ...)``, or ``(C_in, C_out / groups, ...)`` if `transposed`.
        transposed: Whether the weight is a transposed convolution's.
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
    """All weights of each output channel as one row: shape ``(C_out, n)``."""
    if not transposed:
        return weight.flatten(1)
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return grouped.transpose(1, 2).reshape(groups * weight.shape[1], -1)


def is_foldable(batch_norm: nn.Module) -> bool:
    """Only a batch norm with running statistics has an evaluation mode that is linear."""
    return getattr(batch_norm, "running_mean", None) is not None
