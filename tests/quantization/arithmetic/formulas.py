"""The formulas of fake quantization in NumPy, written down again for the tests."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ROUNDINGS = ["half_even", "half_up", "half_away"]
TIES = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]
EXPECTED_TIES = {
    "half_even": [-2, -2, 0, 0, 2, 2],
    "half_up": [-2, -1, 0, 1, 2, 3],
    "half_away": [-3, -2, -1, 1, 2, 3],
}


def rounded(x: np.ndarray, rounding: str) -> np.ndarray:
    if rounding == "half_even":
        return np.rint(x)
    if rounding == "half_up":
        return np.floor(x + 0.5)
    assert rounding == "half_away"
    return np.sign(x) * np.floor(np.abs(x) + 0.5)


def integers(
    x: Tensor, scale: Tensor | float, low: int, high: int, rounding: str, zero_point: int = 0
) -> np.ndarray:
    """``clamp(round(x / s) + z, q_min, q_max)`` in the precision of `x`."""
    values = x.detach().numpy()
    step = np.asarray(scale, values.dtype)
    return np.clip(rounded(values / step, rounding) + zero_point, low, high)


def quantized(
    x: Tensor, scale: Tensor | float, low: int, high: int, rounding: str, zero_point: int = 0
) -> Tensor:
    """``(clamp(round(x / s) + z, q_min, q_max) - z) * s`` in the precision of `x`."""
    values = x.detach().numpy()
    steps = integers(x, scale, low, high, rounding, zero_point) - zero_point
    return torch.from_numpy(np.asarray(steps * np.asarray(scale, values.dtype), values.dtype))


def inside(
    x: Tensor, scale: Tensor | float, low: int, high: int, rounding: str, zero_point: int = 0
) -> Tensor:
    """1 where a value is rounded to an integer of the grid, 0 where it is clipped."""
    values = x.detach().numpy()
    steps = rounded(values / np.asarray(scale, values.dtype), rounding) + zero_point
    return torch.from_numpy(((steps >= low) & (steps <= high)).astype(values.dtype))
