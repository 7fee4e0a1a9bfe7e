"""Pointwise functions of integers with more than 8 bits: two tables, and lines between results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edgeailite.quantization.arithmetic.rounding import round_to_integer
from edgeailite.quantization.integer.grid import (
    Constants,
    Dequantize,
    Grid,
    Quantize,
    Requantize,
    packed_bytes,
)
from edgeailite.quantization.integer.table import TabledOperator, look_up

# Digits behind the point of tabled results, which have 16 before it: integers of 32 bits.
_FRACTION, _LARGEST = 1 << 14, float(1 << 16)
_FEWEST_BITS, _MOST_BITS = 8, 13


class Lines(NamedTuple):
    """A function, a line in each segment.

    Attributes:
        width: Bits of the length of a segment.
        base: Results where the segments begin, ``(segments,)`` in float64.
        slope: What one step of the input adds.
    """

    width: int
    base: Tensor
    slope: Tensor


class IntegerInterpolation(TabledOperator):
    """A function on a grid of 9 to 16 bits: ``round((b[h] + d[h] r) / 2^14) + z_y``.

    ``q - z = h 2^m + r``: the high bits choose a segment, in which the result is a line. ``b`` and
    ``d`` are integers of 32 bits, and so is ``b + d r``, which float64 holds. Segments begin at
    zero, where many functions have a kink.

    There are as few segments, 256 to 8192, as leave no result more than a step from ``round(f((q -
    z) s) / s_y) + z_y``: all inputs are tried. Where 8192 do not suffice, at jumps and poles, the
    tables hold the results of all integers, which takes no more memory than more segments.

    Args:
        function: Pointwise, of real values, and perhaps of numbers that sizes give.
        source: Grid of the input.
        output: Grid of the result.
    """

    def __init__(self, function: Callable[..., Tensor], source: Grid, output: Grid) -> None:
        super().__init__()
        self.function = function
        self.input, self.output = Dequantize(source), Quantize(output)
        self.steps = Requantize(replace(output, scale=1.0))

    @property
    def output_grid(self) -> Grid:
        """Grid of the result."""
        return self.output.grid

    def lines(self, *numbers: Any) -> Lines:
        """The tables, for numbers that the function reads."""
        device = self.input.scale.device
        return self.made_once((*numbers, device), lambda: self._fewest_lines(*numbers))

    def _fewest_lines(self, *numbers: Any) -> Lines:
        source, device = self.input.grid, self.input.scale.device
        held = source.integers
        q = torch.arange(held.start, held.stop, dtype=torch.float32, device=device)
        exact = self._exact(q, numbers)
        wanted = self.steps.integers(exact).float()
        bits = (len(held) - 1).bit_length()
        for width in range(bits - _FEWEST_BITS, max(bits - _MOST_BITS, 1) - 1, -1):
            lines = self._lines(width, numbers)
            segment, rest = self._places(q, width)
            steps = self._steps(lines.base[segment], lines.slope[segment], rest)
            if float((self.steps.integers(steps).float() - wanted).abs().max()) <= 1:
                return lines
        base = (wanted - self.output.grid.zero_point).double() * _FRACTION
        return Lines(0, base, torch.zeros_like(base))

    def _lines(self, width: int, numbers: tuple[Any, ...]) -> Lines:
        grid, device = self.input.grid, self.input.scale.device
        ends = (q - grid.zero_point >> width for q in (grid.integers[0], grid.integers[-1]))
        first, last = ends
        knots = torch.arange(first, last + 2, dtype=torch.float32, device=device) * (1 << width)
        exact = self._exact(knots + grid.zero_point, numbers) * _FRACTION
        return Lines(width, exact[:-1].round(), (exact.diff() / (1 << width)).round())

    def _exact(self, q: Tensor, numbers: tuple[Any, ...]) -> Tensor:
        """Results in steps of the output's grid, in float64: a last bit of float32 would count."""
        real = self.function(self.input(q).double(), *numbers)
        return (real / self.output.grid.scale).nan_to_num(nan=0.0).clamp(-_LARGEST, _LARGEST)

    def forward(self, q: Tensor, *numbers: Any) -> Tensor:
        """Integers in and out; any shape."""
        lines = self.lines(*numbers)
        segment, rest = self._places(q, lines.width)
        bases, slopes = look_up(lines.base, segment), look_up(lines.slope, segment)
        return self.steps(self._steps(bases, slopes, rest))

    def _places(self, q: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The segments of inputs, and their distances to where those begin."""
        length, grid = 1 << width, self.input.grid
        first = (grid.integers[0] - grid.zero_point) >> width
        place = q.float() - (grid.zero_point + first * length)
        segment = torch.floor(place / length)
        return segment.to(torch.int64), (place - segment * length).double()

    def _steps(self, base: Tensor, slope: Tensor, rest: Tensor) -> Tensor:
        """Results in steps of the output's grid, rounded."""
        sums = (base + slope * rest) / _FRACTION
        return round_to_integer(sums, self.output.grid.rounding).float()

    def constants(self, input_shape: torch.Size | None) -> Constants:
        """The tables of 32 bits, or the results of all integers."""
        made = next(iter(self._tables.values()), None)
        width = 0 if made is None else made.width
        count = len(self.input.grid.integers)
        if width == 0:
            return Constants(packed_bytes(count, self.output.grid.bit_width))
        return Constants(2 * 4 * ((count >> width) + 1))
