"""Functions of two 8-bit integers as one sum of products, compared for all pairs."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from edgeailite.quantization.integer.grid import Grid
from edgeailite.quantization.targets.c.program import Array, Struct, offset_of

_BITS, _MOST_LISTED = 30, 4096


class Pairs(NamedTuple):
    """A sum of two values that C shall compute.

    Attributes:
        left: Grid of the first operand.
        right: Grid of the second operand.
        output: Grid of the sum.
        results: Integers for all pairs, ``(left, right)``.
        weights: Of the real values of the operands.
    """

    left: Grid
    right: Grid
    output: Grid
    results: Tensor
    weights: tuple[float, float]


def _sums(pairs: Pairs, left: int, right: int) -> Tensor:
    """``a * left + b * right`` of stored integers."""
    a, b = (
        torch.arange(g.integers.start, g.integers.stop) - offset_of(g)
        for g in (pairs.left, pairs.right)
    )
    return a[:, None] * left + b[None] * right


def _struct(pairs: Pairs, factors: tuple[int, int], offset: int, shift: int, even: bool) -> Struct:
    grid, stored = pairs.output, offset_of(pairs.output)
    sums = _sums(pairs, *factors) + offset
    found = sums >> shift
    if even:
        found -= torch.where(sums & ((1 << shift) - 1) == 0, found & 1, 0)
    found = (found + grid.zero_point).clamp(grid.quant_min, grid.quant_max)
    return Struct(
        "edgeailite_sum",
        left=factors[0],
        right=factors[1],
        offset=offset,
        shift=shift,
        even=int(even),
        zero=grid.zero_point - stored,
        low=grid.quant_min - stored,
        high=grid.quant_max - stored,
        listed=listed(pairs, found),
    )


def listed(pairs: Pairs, found: Tensor) -> Struct:
    """List the pairs whose result is not the `found` one."""
    a, b = (found != pairs.results).nonzero(as_tuple=True)
    if len(a) > _MOST_LISTED:
        raise ValueError(f"{len(a)} pairs of its operands have results that no rule gives")
    first, second = (
        (places + g.integers.start - offset_of(g)) & 255
        for places, g in ((a, pairs.left), (b, pairs.right))
    )
    keys, order = torch.sort(first * 256 + second)
    results = pairs.results[a, b][order] - offset_of(pairs.output)
    arrays = {"pairs": Array("uint16_t", keys), "results": Array("int8_t", results)}
    return Struct("edgeailite_list", count=len(a), **(arrays if len(a) else {}))


def _centre(pairs: Pairs, factors: tuple[int, int]) -> int:
    """Sum of products of the zero points."""
    zeros = (g.zero_point - offset_of(g) for g in (pairs.left, pairs.right))
    return sum(z * f for z, f in zip(zeros, factors, strict=True))


def fitted(pairs: Pairs) -> Struct:
    """Factors, offset and shift, with a list of the pairs that give another result.

    Between powers of two the sum is exact, and no pair is listed.

    Raises:
        ValueError: The scales are too far apart.
    """
    ratios = [
        w * g.scale / pairs.output.scale
        for w, g in zip(pairs.weights, (pairs.left, pairs.right), strict=True)
    ]
    if all(math.frexp(abs(r))[0] == 0.5 for r in ratios):
        shift = max(1, *(1 - math.frexp(abs(r))[1] for r in ratios))
        factors = int(ratios[0] * 2**shift), int(ratios[1] * 2**shift)
        if shift < 24 and max(map(abs, factors)) < 1 << 20:
            offset = (1 << (shift - 1)) - _centre(pairs, factors)
            even = pairs.output.rounding == "half_even"
            return _struct(pairs, factors, offset, shift, even)
    shift = math.floor(_BITS - math.log2(1024 * max(map(abs, ratios))))
    if not 1 <= shift <= 30:
        raise ValueError("the scales of its operands and of its result are too far apart")
    factors = round(ratios[0] * 2**shift), round(ratios[1] * 2**shift)
    offset = _best_offset(pairs, factors, shift)
    return _struct(pairs, factors, offset, shift, False)


def exact_sum(left: Grid, right: Grid, output: Grid, weights: tuple[float, float]) -> Struct:
    """A sum between powers of two that float32 holds exactly, of up to 16 bits.

    Raises:
        ValueError: A scale is free, or float32 rounds sums.
    """
    ratios = [w * g.scale / output.scale for w, g in zip(weights, (left, right), strict=True)]
    given = [abs(r) for r in ratios if r]
    shift = max(1, *(1 - math.frexp(r)[1] for r in given))
    factors = [int(r * 2**shift) for r in ratios]
    is_exact = all(math.frexp(r)[0] == 0.5 for r in given) and shift < 24
    bound = sum(abs(f) * g.max_magnitude for f, g in zip(factors, (left, right), strict=True))
    unit = min(abs(f) for f in factors if f) if is_exact else 1
    if not is_exact or bound // unit >= 1 << 24 or output.rounding == "half_away":
        raise ValueError("it adds integers of more than 8 bits, whose sums float32 rounds")
    zeros = (g.zero_point - offset_of(g) for g in (left, right))
    centre = sum(z * f for z, f in zip(zeros, factors, strict=True))
    stored = offset_of(output)
    return Struct(
        "edgeailite_sum",
        left=factors[0],
        right=factors[1],
        offset=(1 << (shift - 1)) - centre,
        shift=shift,
        even=int(output.rounding == "half_even"),
        zero=output.zero_point - stored,
        low=output.quant_min - stored,
        high=output.quant_max - stored,
    )


def _best_offset(pairs: Pairs, factors: tuple[int, int], shift: int) -> int:
    """An offset with which all pairs are right, if there is one; else half a step."""
    grid, sums = pairs.output, _sums(pairs, *factors)
    steps = (pairs.results - grid.zero_point) << shift
    above = (steps - sums)[pairs.results > grid.quant_min]
    below = (steps + (1 << shift) - 1 - sums)[pairs.results < grid.quant_max]
    half = (1 << (shift - 1)) - _centre(pairs, factors)
    low = int(above.max()) if above.numel() else half
    high = int(below.min()) if below.numel() else half
    return min(max(half, low), high) if low <= high else half
