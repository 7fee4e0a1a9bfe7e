"""Averages as sums over windows, and what each sum is divided by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def of_axes(option: Any, axes: int) -> list[int]:
    """Return one number for each axis: an option of windows is that, or one number for all."""
    given = option if isinstance(option, tuple | list) else [option]
    return list(given) * (axes if len(given) == 1 else 1)


class Mean(nn.Module):
    """``x.mean(dims, keepdim)`` as a module."""

    def __init__(self, dims: Sequence[int], keepdim: bool) -> None:
        super().__init__()
        self.dims, self.keepdim = tuple(dims), keepdim

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x.mean(self.dims, self.keepdim)


class Sum(Mean):
    """``x.sum(dims, keepdim)`` as a module: a mean that is not divided; without dims of all."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x.sum(self.dims, self.keepdim)


class WindowSum(nn.Module):
    """The sums that an average divides by its areas.

    Args:
        average: An average pooling, adaptive or not, :class:`Mean` or :class:`Sum`.
    """

    def __init__(self, average: nn.Module) -> None:
        super().__init__()
        self.average = average

    def forward(self, x: Tensor) -> Tensor:
        """Shape as the average's.

        Raises:
            ValueError: Adaptive windows of different sizes.
        """
        if isinstance(self.average, Mean):
            return x.sum(self.average.dims, self.average.keepdim)
        windows = self.windows(x.shape)
        if all(len(w.lengths) == 1 and w.lengths[0] == size for w, size in windows):
            return x.sum(tuple(range(2, x.dim())), keepdim=True)
        if all(w.stride == w.kernel and not w.padding and not w.missing for w, _ in windows):
            return _sum_blocks(x, [w for w, _ in windows])
        if x.dtype is torch.float64:  # which ONNX Runtime does not convolve
            return _multiply(x, [_mask_of(w, size) for w, size in windows])
        pads = [n for w, _ in reversed(windows) for n in (0, w.missing)]
        x = F.pad(x, pads) if any(pads) else x
        ones = torch.ones(x.shape[1], 1, *(w.kernel for w, _ in windows), device=x.device)
        stride, padding = [w.stride for w, _ in windows], [w.padding for w, _ in windows]
        return _CONVOLUTIONS[len(windows)](x, ones, None, stride, padding, 1, x.shape[1])

    def average_exactly(self, x: Tensor, areas: Tensor | None) -> Tensor:
        """Averages of integers, or multiples of a power of two: a sum in float64, one division.

        Args:
            x: Any shape.
            areas: As of :meth:`areas`; None for a mean, which may take the batch.
        """
        if areas is None:
            averages: Tensor = self.average(x.double())
            return averages.float()
        return (self(x.double()) / areas).float()

    def count(self, shape: Sequence[int]) -> int | None:
        """Largest number of values in a sum; None if it takes the batch, which has any size."""
        if not isinstance(self.average, Mean):
            return math.prod(window.kernel for window, _ in self.windows(shape))
        dims = {d % len(shape) for d in self.average.dims or range(len(shape))}
        return None if 0 in dims else math.prod(shape[d] for d in dims)

    def areas(self, shape: Sequence[int]) -> Tensor:
        """Divisor of each sum, for an input of `shape`; float64.

        Returns:
            Shape ``()``, or ``(1, 1, *output)`` where the places differ.
        """
        with _disable_current_modes():
            if isinstance(self.average, Sum):
                return torch.ones((), dtype=torch.float64)
            if isinstance(self.average, Mean):
                dims = [d % len(shape) for d in self.average.dims]
                if 0 in dims:
                    raise ValueError(
                        f"x.mean({self.average.dims}) of a value of shape {tuple(shape)} averages "
                        "over the batch, which has no fixed size. Leave dimension 0 out."
                    )
                return torch.tensor(float(math.prod(shape[d] for d in dims))).double()
            if divisor := getattr(self.average, "divisor_override", None):
                return torch.tensor(float(divisor)).double()
            area = torch.ones(1, 1).double()
            for window, _ in self.windows(shape):
                area = area.unsqueeze(-1) * torch.tensor(window.lengths).double()
            return area.flatten()[0] if bool((area == area.flatten()[0]).all()) else area

    def is_plain(self, shape: Sequence[int]) -> bool:
        """Return True if every sum of an input of `shape` is one of a whole window."""
        windows = [window for window, _ in self.windows(shape)]
        inside = not any(w.missing for w in windows)
        return inside and getattr(self.average, "divisor_override", None) is None

    def windows(self, shape: Sequence[int]) -> list[tuple[Windows, int]]:
        """The windows along each axis, and the axis' size."""
        spatial = [int(size) for size in shape[2:]]
        pool: Any = self.average
        if hasattr(pool, "output_size"):
            return list(zip(_adaptive(spatial, pool.output_size), spatial, strict=True))
        options = [
            _per_axis(v, len(spatial)) for v in (pool.kernel_size, pool.stride, pool.padding)
        ]
        return [
            (_windows(size, k, s, p, pool.ceil_mode, pool.count_include_pad), size)
            for size, k, s, p in zip(spatial, *options, strict=True)
        ]


class AdaptiveSum(WindowSum):
    """The sums of an adaptive average pool, whose windows may differ in size and overlap."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape as the average's."""
        if not self._differ(x.shape):
            return super().forward(x)
        return _multiply(x, self._masks(x.shape))

    def count(self, shape: Sequence[int]) -> int | None:
        """As of :class:`WindowSum`."""
        if not self._differ(shape):
            return super().count(shape)
        with _disable_current_modes():
            return math.prod(int(windows.sum(1).max()) for windows in self._masks(shape))

    def areas(self, shape: Sequence[int]) -> Tensor:
        """As of :class:`WindowSum`."""
        if not self._differ(shape):
            return super().areas(shape)
        area = torch.ones(1, 1, dtype=torch.float64)
        for windows in self._masks(shape):
            area = area.unsqueeze(-1) * windows.double().sum(1)
        return area

    def _sizes(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        """Input and output size of each axis."""
        spatial = [int(size) for size in shape[2:]]
        return list(zip(spatial, _wanted(spatial, self.average.output_size), strict=True))

    def _differ(self, shape: Sequence[int]) -> bool:
        return any(size % wanted for size, wanted in self._sizes(shape))

    def _masks(self, shape: Sequence[int]) -> list[Tensor]:
        """For each axis 1 where a value is in a window, else 0: ``(output, input)``."""
        with _disable_current_modes():
            return [_mask(size, wanted) for size, wanted in self._sizes(shape)]


def _mask(size: int, wanted: int) -> Tensor:
    """As torch's adaptive average pools lay their windows."""
    windows = torch.arange(wanted).unsqueeze(1)
    starts, ends = windows * size // wanted, ((windows + 1) * size + wanted - 1) // wanted
    return _between(starts, ends, size)


def _mask_of(window: Windows, size: int) -> Tensor:
    with _disable_current_modes():
        starts = torch.arange(len(window.lengths)).unsqueeze(1) * window.stride - window.padding
        return _between(starts, starts + window.kernel, size)


def _between(starts: Tensor, ends: Tensor, size: int) -> Tensor:
    """1 at places of windows, else 0: ``(windows, size)``."""
    places = torch.arange(size)
    return ((places >= starts) & (places < ends)).float()


def _multiply(x: Tensor, masks: list[Tensor]) -> Tensor:
    """Sums of windows along each axis of an image."""
    for axis, windows in enumerate(masks, 2):
        x = (windows.to(x.device, x.dtype) @ x.movedim(axis, -2)).movedim(-2, axis)
    return x


def _sum_blocks(x: Tensor, windows: list[Windows]) -> Tensor:
    """Sums of windows that lie side by side."""
    shape = list(x.shape[:2])
    for axis, window in enumerate(windows, 2):
        count = len(window.lengths)
        x = x.narrow(axis, 0, count * window.kernel)
        shape += [count, window.kernel]
    return x.reshape(shape).sum(tuple(range(3, len(shape), 2)))


class Windows(NamedTuple):
    """The windows along one axis.

    Attributes:
        kernel: Width.
        stride: Distance between two windows.
        padding: Zeros on either side.
        missing: Further zeros that the last window needs at the end.
        lengths: What counts of each.
    """

    kernel: int
    stride: int
    padding: int
    missing: int
    lengths: list[int]


def _windows(
    size: int, kernel: int, stride: int, padding: int, ceil_mode: bool, count_include_pad: bool
) -> Windows:
    """As torch's average pools lay them; see ``torch.nn.AvgPool2d``."""
    room = size + 2 * padding - kernel
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1
    lengths = []
    for start in range(-padding, -padding + count * stride, stride):
        end = min(start + kernel, size + padding)
        lengths.append(end - start if count_include_pad else min(end, size) - max(start, 0))
    missing = max((count - 1) * stride + kernel - size - 2 * padding, 0)
    return Windows(kernel, stride, padding, missing, lengths)


def _per_axis(value: Any, count: int) -> list[int]:
    values = list(value) if isinstance(value, tuple | list) else [value]
    return [int(v) for v in (values * count if len(values) == 1 else values)]


def _wanted(spatial: Sequence[int], output_size: Any) -> list[int]:
    given = output_size if isinstance(output_size, tuple | list) else [output_size] * len(spatial)
    return [size if out is None else int(out) for size, out in zip(spatial, given, strict=True)]


def _adaptive(spatial: Sequence[int], output_size: Any) -> list[Windows]:
    wanted = _wanted(spatial, output_size)
    if any(size % out for size, out in zip(spatial, wanted, strict=True)):
        raise ValueError(
            f"An adaptive average pool from {tuple(spatial)} to {tuple(wanted)} has windows of "
            "different sizes, which have no fixed-point form. Choose an input or an output size "
            "so that the one divides the other."
        )
    kernels = [size // out for size, out in zip(spatial, wanted, strict=True)]
    return [Windows(k, k, 0, 0, [k] * out) for k, out in zip(kernels, wanted, strict=True)]
