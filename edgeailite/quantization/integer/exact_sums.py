"""Averages and resizing of integers: exact sums, one factor, one rounding, with every scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeailite.quantization.arithmetic.fixed_point import EXACT_BITS
from edgeailite.quantization.graph.average_calls import spatial_axes
from edgeailite.quantization.graph.window_sums import AdaptiveSum, WindowSum
from edgeailite.quantization.integer.grid import Dequantize, Grid, Quantize, Requantize
from edgeailite.quantization.integer.table import TabledOperator

_DOUBLE_BITS = 53
# More weights than a cubic function has, each rounded, need the precision of float64.
_FEW_WEIGHTS = 4
# Interpolation between neighbours, and the number of its axes.
_DIMENSIONS = {"linear": 1, "bilinear": 2, "trilinear": 3}


class ExactSums(TabledOperator):
    """Sums of ``q - z`` that are exact, then factors that round alike everywhere.

    A file does the same: ``DequantizeLinear, sum, Mul, QuantizeLinear``, the first and the last
    with scale 1. So no library can order the float operations in another way.

    Args:
        source: Grid of the input.
        output: Grid of the result.
    """

    def __init__(self, source: Grid, output: Grid) -> None:
        super().__init__()
        self.input, self.output = Dequantize(source), Requantize(output)

    @property
    def output_grid(self) -> Grid:
        """Grid of the result."""
        return self.output.grid

    @property
    def multiplier(self) -> Tensor:
        """``s_x / s_y`` in float32."""
        return self.input.scale / self.output.scale


class IntegerAverage(ExactSums):
    """Averages: ``round(sum(q - z) / n * M) + z_y`` with ``M = s_x / s_y``.

    The division comes first: ONNX Runtime multiplies a factor behind a convolution of ones into the
    ones, whose sum is not exact then. Sums that may need more than 24 bits, as the shape says, are
    in float64, and so is their division.

    Args:
        average: An average pooling, adaptive or not, a mean or a sum.
        source: Grid of the input.
        output: Grid of the averages.
    """

    def __init__(self, average: nn.Module, source: Grid, output: Grid) -> None:
        super().__init__(source, output)
        adaptive = hasattr(average, "output_size")
        self.sums = AdaptiveSum(average) if adaptive else WindowSum(average)
        self.axes = spatial_axes(average)

    def forward(self, q: Tensor) -> Tensor:
        """Integers in and out, shapes as the average's."""
        u = self.input.steps(q)
        if self.axes is not None and q.dim() == self.axes + 1:  # no batch axis
            return self.output.steps(self._average(u.unsqueeze(0)).squeeze(0))
        return self.output.steps(self._average(u))

    def _average(self, u: Tensor) -> Tensor:
        is_wide = self.is_wide(u.shape)
        if is_wide and self.axes is None:
            return self.sums.average_exactly(u, None) * self.multiplier
        areas = self.made_once((*u.shape[1:], u.device), lambda: self.sums.areas(u.shape))
        if is_wide:
            return self.sums.average_exactly(u, areas.to(u.device)) * self.multiplier
        return self.sums(u) / areas.float().to(u.device) * self.multiplier

    def is_wide(self, shape: Sequence[int]) -> bool:
        """Return True if float32 may not hold a sum of an input of this shape."""
        count = self.sums.count(shape)
        return count is None or count * self.input.grid.max_magnitude > 1 << EXACT_BITS


class PowerOfTwoAverage(IntegerAverage):
    """Averages between power-of-two scales, in the operation itself where float32 holds its sums.

    Args:
        average: As of :class:`IntegerAverage`.
        source: Grid of the input.
        output: Grid of the averages.
    """

    def __init__(self, average: nn.Module, source: Grid, output: Grid) -> None:
        super().__init__(average, source, output)
        self.quantize = Quantize(output)

    def forward(self, q: Tensor) -> Tensor:
        """Integers in and out, shapes as the average's."""
        is_image = self.axes is not None and q.dim() == self.axes + 1
        if self.is_wide((1, *q.shape) if is_image else q.shape):
            return super().forward(q)
        return self.quantize(self.sums.average(self.input(q)))


class IntegerFold(ExactSums):
    """Sums of overlapping windows: ``round(sum(q - z) * M) + z_y`` with ``M = s_x / s_y``.

    Args:
        source: Grid of the input.
        output: Grid of the sums.
        options: `kernel_size`, `dilation`, `padding` and `stride` of ``torch.nn.functional.fold``.
    """

    def __init__(self, source: Grid, output: Grid, options: Mapping[str, Any]) -> None:
        super().__init__(source, output)
        self.options = dict(options)

    def forward(self, q: Tensor, output_size: Any) -> Tensor:
        """Integers ``(N, C * windows, places)`` in, ``(N, C, *output_size)`` out."""
        sums = F.fold(self.input.steps(q), output_size, **self.options)
        return self.output.steps(sums * self.multiplier)


class Step(NamedTuple):
    """Resizing along one axis: ``round(A u / 2^shift)``, with integers in `matrix`."""

    axis: int
    matrix: Tensor
    shift: int


class IntegerResize(ExactSums):
    """Resizing: ``round(sum(w (q - z)) M) + z_y`` with dyadic weights and ``M = s_x / s_y``.

    Torch's weights along each axis are rounded to multiples of 2^-k that sum to 1. Between two axes
    values are rounded to multiples of 2^-f. Both are as fine as it goes with sums that float32
    holds exactly, in any order; windows of many values and grids of many bits take float64. The
    sums lie within half a step of torch's.

    Where all axes grow or shrink by powers of two and pixels are areas, torch's own weights are
    dyadic: see :func:`has_dyadic_weights`. A file then has one ``Resize``.

    Args:
        source: Grid of the input.
        output: Grid of the result.
        options: `mode`, `align_corners`, `recompute_scale_factor` and `antialias` of
            ``torch.nn.functional.interpolate``.
    """

    def __init__(self, source: Grid, output: Grid, options: Mapping[str, Any]) -> None:
        super().__init__(source, output)
        self.options = dict(options)

    def forward(self, q: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
        """Integers in and out, ``(N, C, *spatial)``; `size`, `scale_factor` as of interpolate."""
        if self._is_dyadic(_axes(q.shape, size, scale_factor)):
            return self._resize_as_torch(q, size, scale_factor)
        weights = self.weights(q.shape, size, scale_factor)
        u = self.input.steps(q)
        for step in weights.steps:
            u = _multiply(step.matrix, u.to(step.matrix.dtype), step.axis)
            u = torch.round(u * 2.0**-step.shift) if step.shift else u
        return self.output.steps((u * (self.multiplier * 2.0**-weights.bits).to(u.dtype)).float())

    def _is_dyadic(self, axes: list[_Axis]) -> bool:
        factors = [axis.factor(self.options["recompute_scale_factor"]) for axis in axes]
        return has_dyadic_weights(self.options, factors, self.input.grid.max_magnitude)

    def weights(self, shape: Sequence[int], size: Any, scale_factor: Any) -> ResizeWeights:
        """Weights as integers, for an input of this shape."""
        axes, device = _axes(shape, size, scale_factor), self.input.scale.device

        def make() -> ResizeWeights:
            real = [axis.weights(self.options) for axis in axes]
            if self._is_dyadic(axes):
                made = _dyadic_steps(real)
            else:
                made = _steps(real, self.input.grid.max_magnitude)
            steps = [s._replace(matrix=s.matrix.to(device)) for s in made.steps]
            return made._replace(steps=steps)

        return self.made_once((*axes, device), make)

    def of_sums(self, u: Tensor, weights: ResizeWeights) -> Tensor:
        """Integers of the result for weighted sums, which are integers too."""
        wide = any(step.matrix.dtype == torch.float64 for step in weights.steps)
        u = u.double() if wide else u.float()
        return self.output.integers(
            (u * (self.multiplier * 2.0**-weights.bits).to(u.dtype)).float()
        )

    def _resize_as_torch(self, q: Tensor, size: Any, scale_factor: Any) -> Tensor:
        def resize(x: Tensor) -> Tensor:
            return F.interpolate(x, size=size, scale_factor=scale_factor, **self.options)

        ends = self.input, self.output
        if all(m.exports_onnx_form and m.grid.is_power_of_two for m in ends):
            return self.output(resize(self.input(q)))
        return self.output.steps(resize(self.input.steps(q)) * self.multiplier)


class ResizeWeights(NamedTuple):
    """Integer weights of a resizing.

    Attributes:
        steps: For each axis that changes.
        bits: That the result has behind its point.
    """

    steps: list[Step]
    bits: int


def unchanged(length: int) -> Step:
    """Resize the first axis of an image to what it is."""
    return Step(2, torch.eye(length), 0)


def has_dyadic_weights(
    options: Mapping[str, Any], factors: Sequence[float], magnitude: int
) -> bool:
    """Return True if interpolation sums multiples of powers of two that float32 holds.

    Args:
        options: As of :class:`IntegerResize`.
        factors: Size of the output over size of the input, for each axis.
        magnitude: Largest value, in steps of its grid.
    """
    interpolates = options["mode"] in _DIMENSIONS and not options["antialias"]
    parts = [math.frexp(factor) for factor in factors]
    if not interpolates or options["align_corners"] or any(m != 0.5 for m, _ in parts):
        return False
    return magnitude << sum(max(exponent, 1) for _, exponent in parts) <= 1 << EXACT_BITS


def always_has_dyadic_weights(given: Mapping[str, Any], bit_width: int) -> bool:
    """Return True if a call of interpolate has dyadic weights with every image size.

    Args:
        given: Its arguments.
        bit_width: Of the values.
    """
    factor, dimensions = given["scale_factor"], _DIMENSIONS.get(str(given["mode"]))
    factors = list(factor) if isinstance(factor, tuple | list) else [factor] * (dimensions or 0)
    if not factors or not all(isinstance(f, int | float) for f in factors):
        return False
    if given["recompute_scale_factor"] and min(factors) < 1:
        return False  # of an odd size
    return has_dyadic_weights(given, factors, 1 << bit_width)


class _Axis(NamedTuple):
    """An axis to resize: its size, and the wanted size or factor."""

    length: int
    size: int | None
    scale_factor: float | None

    def factor(self, recomputed: bool | None) -> float:
        """Size of the output over size of the input, as torch counts it."""
        if self.size is not None:
            return self.size / self.length
        assert self.scale_factor is not None
        exact = math.floor(self.length * self.scale_factor) / self.length
        return exact if recomputed else self.scale_factor

    def weights(self, options: Mapping[str, Any]) -> Tensor:
        """Torch's weights: what interpolation makes of the unit vectors; float64, ``(out, in)``."""
        mode = "bilinear" if options["mode"] in _DIMENSIONS else options["mode"]
        given: dict[str, Any] = (
            {"scale_factor": (1.0, self.scale_factor)}
            if self.size is None
            else {"size": (self.length, self.size)}
        )
        # Along the last axis: torch's antialias is wrong along the first one of (L, 1).
        units = torch.eye(self.length, dtype=torch.float64)[None, None]
        return F.interpolate(units, **{**options, **given, "mode": mode})[0, 0].T.contiguous()


def _axes(shape: Sequence[int], size: Any, scale_factor: Any) -> list[_Axis]:
    spatial = [int(n) for n in shape[2:]]
    per_axis = [
        list(value) if isinstance(value, tuple | list) else [value] * len(spatial)
        for value in (size, scale_factor)
    ]
    return [
        _Axis(n, None if s is None else int(s), None if f is None else float(f))
        for n, s, f in zip(spatial, *per_axis, strict=True)
    ]


def _dyadic_steps(weights: list[Tensor]) -> ResizeWeights:
    """Weights that are multiples of powers of two, as they are."""
    steps, bits = [], 0
    for axis, w in enumerate(weights, 2):
        if not _is_identity(w):
            fine = next(b for b in range(64) if bool((w * 2.0**b == torch.round(w * 2.0**b)).all()))
            steps.append(Step(axis, (w * 2.0**fine).float(), 0))
            bits += fine
    return ResizeWeights(steps, bits)


def _steps(weights: list[Tensor], magnitude: int) -> ResizeWeights:
    """Integer matrices of the axes that change, and how many bits the result has behind its point.

    The axis that grows least comes first. `magnitude` bounds the input.
    """
    changed = [(axis, w) for axis, w in enumerate(weights, 2) if not _is_identity(w)]
    changed.sort(key=lambda pair: pair[1].shape[0] / pair[1].shape[1])
    wide = any(int((w != 0).sum(1).max()) > _FEW_WEIGHTS for _, w in changed)
    limit, dtype = EXACT_BITS, torch.float32
    if wide or magnitude > 256:
        limit, dtype = _DOUBLE_BITS, torch.float64
    steps, bits, bound = [], 0, float(magnitude)
    for axis, w in changed:
        needed = math.ceil(math.log2(bound * float(w.abs().sum(1).max())) - 1e-9)
        fine = limit - needed
        matrix = _integers(w, fine)
        while bound * float(matrix.abs().sum(1).max()) > 2.0**limit:
            fine -= 1
            matrix = _integers(w, fine)
        kept = fine if axis == changed[-1][0] else min(fine, limit // 2 - needed)
        bound = bound * float(matrix.abs().sum(1).max()) / 2.0 ** (fine - kept) + 0.5
        steps.append(Step(axis, matrix.to(dtype), fine - kept))
        bits += kept
    return ResizeWeights(steps, bits)


def _is_identity(w: Tensor) -> bool:
    return w.shape[0] == w.shape[1] and torch.equal(w, torch.eye(len(w), dtype=w.dtype))


def _integers(weights: Tensor, bits: int) -> Tensor:
    """Multiples of 2^-bits whose rows sum to 1: the largest weight takes the rest."""
    rounded = torch.round(weights * 2.0**bits)
    rest = 2.0**bits - rounded.sum(1, keepdim=True)
    return rounded.scatter_add(1, weights.argmax(1, keepdim=True), rest)


def _multiply(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """Multiply a matrix with the vectors along an axis."""
    if axis == x.dim() - 1:
        return x @ matrix.T
    if axis == x.dim() - 2:
        return matrix @ x
    return (matrix @ x.flatten(axis + 1)).unflatten(-1, x.shape[axis + 1 :])
