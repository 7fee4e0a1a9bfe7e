"""Resizing of feature maps that exports as one ONNX ``Resize``."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ResizeWith", "resize_with"]

_MODES = ("nearest", "bilinear")


def _check(size: Any, scale_factor: Any, mode: str) -> None:
    if (size is None) == (scale_factor is None):
        raise ValueError(
            f"Resizing takes exactly one of size and scale_factor, got size={size} and "
            f"scale_factor={scale_factor}."
        )
    if mode not in _MODES:
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(map(repr, _MODES))}.")


def resize_with(
    x: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
) -> Tensor:
    """Resize the height and width of a feature map.

    Pixels are areas, not points (``align_corners=False``): resizing by a power of two then has
    dyadic bilinear weights, which integer hardware computes exactly.

    Exports as one ONNX ``Resize`` with constant scales or sizes. If the batch axis is symbolic,
    use `scale_factor`: a fixed `size` then needs the batch axis looked up in the graph.

    Args:
        x: Feature map, ``(N, C, H, W)``.
        size: Output ``(height, width)`` in pixels; one number means both.
        scale_factor: Output size over input size, ``(height, width)``; one number means both.
        mode: ``"nearest"`` or ``"bilinear"``.

    Returns:
        The resized feature map, ``(N, C, H', W')``.

    Raises:
        ValueError: Not exactly one of `size` and `scale_factor` is given, or `mode` is unknown.
    """
    _check(size, scale_factor, mode)
    return F.interpolate(
        x,
        size=size if size is None or isinstance(size, int) else tuple(size),
        scale_factor=_as_floats(scale_factor),
        mode=mode,
        align_corners=None if mode == "nearest" else False,
    )


def _as_floats(factor: float | Sequence[float] | None) -> float | list[float] | None:
    if factor is None or isinstance(factor, int | float):
        return None if factor is None else float(factor)
    return [float(f) for f in factor]


class ResizeWith(nn.Module):
    """Module form of :func:`resize_with`; see there for the meaning of the arguments.

    Args:
        size: Output ``(height, width)`` in pixels; one number means both.
        scale_factor: Output size over input size; one number means both axes.
        mode: ``"nearest"`` or ``"bilinear"``.

    Raises:
        ValueError: Not exactly one of `size` and `scale_factor` is given, or `mode` is unknown.
    """

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        scale_factor: float | Sequence[float] | None = None,
        mode: str = "nearest",
    ) -> None:
        super().__init__()
        _check(size, scale_factor, mode)
        self.size, self.scale_factor, self.mode = size, scale_factor, mode

    def forward(self, x: Tensor) -> Tensor:
        """Resize ``(N, C, H, W)`` to ``(N, C, H', W')``."""
        return resize_with(x, self.size, self.scale_factor, self.mode)

    def extra_repr(self) -> str:
        """Format the target for ``print(model)``."""
        target = (
            f"size={self.size}" if self.size is not None else f"scale_factor={self.scale_factor}"
        )
        return f"{target}, mode={self.mode!r}"
