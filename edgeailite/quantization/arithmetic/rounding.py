"""Rounding to whole numbers, and the straight-through gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import Rounding


def round_to_integer(x: Tensor, rounding: Rounding) -> Tensor:
    """Round to whole numbers; `rounding` says where ties go.

    Args:
        x: Any shape, floating point.
        rounding: ``half_even`` (2.5 -> 2), ``half_up`` (-2.5 -> -2, 2.5 -> 3) or ``half_away``
            (-2.5 -> -3); ``floor`` rounds everything down.
    """
    if rounding == "half_even":
        return torch.round(x)
    if rounding == "half_up":
        return torch.floor(x + 0.5)
    if rounding == "floor":
        return torch.floor(x)
    return torch.sign(x) * torch.floor(torch.abs(x) + 0.5)  # ONNX has no sign bit


def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """Return `quantized`; its gradient goes to `x` unchanged."""
    return _StraightThrough.apply(x, quantized)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
