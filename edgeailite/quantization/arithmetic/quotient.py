"""Quotients whose divisors lie on a grid, zero among them."""

from __future__ import annotations

import torch
from torch import Tensor


def quotient(x: Tensor, y: Tensor, half_step: Tensor | float) -> Tensor:
    """``x / y``, and ``x / half_step`` where `y` is zero.

    What a grid rounds to zero lies within half a step of it, so no quotient is smaller than that.

    Args:
        x: Dividend.
        y: Divisor, of a shape that broadcasts.
        half_step: Half the scale of the divisor's grid, positive.
    """
    return x / torch.where(y == 0, half_step, y)
