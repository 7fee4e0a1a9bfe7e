"""Last step of every transform: pixels 0..255 to the normalized input of a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["NormalizeMeanScale", "ReverseChannels", "size_2d"]


class ReverseChannels(nn.Module):
    """RGB to BGR, or back."""

    def forward(self, image: Tensor) -> Tensor:
        """Reverse the channel dimension of an image (C, H, W)."""
        return image.flip(-3)


class NormalizeMeanScale(nn.Module):
    """``(x - mean) * scale`` per channel.

    Args:
        mean: One value per channel, in units of the pixels (0..255).
        scale: One value per channel, 1 / pixel.

    Raises:
        ValueError: `mean` and `scale` differ in length.
    """

    def __init__(self, mean: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(scale):
            raise ValueError(
                f"image_mean has {len(mean)} values and image_scale {len(scale)}; "
                f"both need one value per channel."
            )
        self.mean = torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1)
        self.scale = torch.tensor(scale, dtype=torch.float32).reshape(-1, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Normalize an image (C, H, W), any dtype, to float32."""
        return (image.to(torch.float32) - self.mean) * self.scale


def size_2d(values: Sequence[int]) -> tuple[int, int]:
    """Height and width from one number (both) or two.

    Raises:
        ValueError: Neither one nor two numbers.
    """
    if len(values) not in (1, 2):
        raise ValueError(f"A size is one or two numbers (height width), got {list(values)}.")
    return values[0], values[-1]
