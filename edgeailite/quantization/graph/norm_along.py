"""Layer norm and RMS norm along any axes, which torch's functions have for the last ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NormAlong(nn.Module):
    """``(x - m) / sqrt(mean((x - m)^2) + eps) * weight + bias``; `m` is 0 if it is not centered.

    Args:
        dim: The axes.
        eps: Added to the mean of the squares.
        centered: Subtract the mean: layer norm. False: RMS norm.
    """

    def __init__(self, dim: tuple[int, ...], eps: float = 0.0, centered: bool = True) -> None:
        super().__init__()
        self.dim, self.eps, self.centered = dim, eps, centered

    def forward(
        self, input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Any shape that has the axes; `weight` and `bias` broadcast to it."""
        x = input - input.mean(self.dim, keepdim=True) if self.centered else input
        y = x * torch.rsqrt(x.square().mean(self.dim, keepdim=True) + self.eps)
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    def extra_repr(self) -> str:
        """The three numbers."""
        return f"dim={self.dim}, eps={self.eps:g}, centered={self.centered}"
