"""Statistics of values: streamed over batches, memory does not grow with their number."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgeailite.quantization.arithmetic.ranges import SAMPLE_SIZE
from edgeailite.quantization.arithmetic.sqnr import decibel, signal_and_noise
from edgeailite.quantization.report.entries import Histogram

NUM_BINS = 64
PERCENTILE = 0.999


def histogram(values: Tensor, low: float, high: float, num_bins: int = NUM_BINS) -> Histogram:
    """Histogram of `values` from `low` to `high`; the outermost bins take what lies beyond."""
    if not low < high:
        low, high = low - 0.5, high + 0.5
    values = values.detach().float().cpu().flatten().clamp(low, high)
    counts = torch.histc(values, bins=num_bins, min=low, max=high)
    return Histogram(low, high, [int(c) for c in counts.tolist()])


class Statistics:
    """Statistics of one place of the graph over the batches so far.

    Attributes:
        low: Smallest float value of all.
        high: Largest float value of all.
        count: Number of float values.
        num_clipped: Number of float values outside of the grid.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.count = self.num_clipped = 0
        self._signal = self._noise = self._own_signal = self._own_noise = 0.0
        self._sample: list[Tensor] = []
        self._stride = 1

    @property
    def sqnr(self) -> float:
        """SQNR of the quantized against the float model, in dB."""
        return decibel(self._signal, self._noise)

    @property
    def own_sqnr(self) -> float:
        """SQNR of the arriving values against themselves on the grid, in dB."""
        return decibel(self._own_signal, self._own_noise)

    @property
    def percentile(self) -> float:
        """Magnitude that :data:`PERCENTILE` of the float values do not exceed."""
        magnitudes = torch.cat(self._sample).abs()
        return float(magnitudes.sort().values[math.ceil(PERCENTILE * magnitudes.numel()) - 1])

    def add_float(self, values: Tensor, limits: tuple[float, float] | None) -> None:
        """Add a batch of the float model's values; `limits` are the ends of a quantizer's grid."""
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        self.count += values.numel()
        if limits is not None:
            outside = (values < limits[0]) | (values > limits[1])
            self.num_clipped += int(outside.sum())

    def keep(self, values: Tensor) -> None:
        """Keep a sample of one batch; when samples get too large, all batches are thinned alike."""
        self._sample.append(values[:: self._stride].cpu())
        while sum(s.numel() for s in self._sample) > 2 * SAMPLE_SIZE:
            self._stride *= 2
            self._sample = [torch.cat(self._sample)[::2]]

    def add_error(self, reference: Tensor, values: Tensor) -> None:
        """Add a batch's sample of the float and of the quantized model."""
        signal, noise = signal_and_noise(reference, values)
        self._signal, self._noise = self._signal + signal, self._noise + noise

    def add_own_error(self, arriving: Tensor, values: Tensor) -> None:
        """Add a batch's sample before and behind a grid."""
        signal, noise = signal_and_noise(arriving, values)
        self._own_signal, self._own_noise = self._own_signal + signal, self._own_noise + noise

    def histogram(self, limits: tuple[float, float]) -> Histogram:
        """Return the histogram over data and grid, at most a grid's width beyond the grid."""
        low, high = limits
        width = high - low
        window = min(low, max(self.low, low - width)), max(high, min(self.high, high + width))
        return histogram(torch.cat(self._sample), *window)
