"""Requantization in integers, proven equal to the integer graph's float32.

A monotone function of integers is known by its breakpoints: for each result the smallest integer
that gives it or more. Two monotone functions that agree at every breakpoint of one of them, at the
integer before it and at both ends agree everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from edgeailite.quantization.targets.c.program import Array, Struct, offset_of

if TYPE_CHECKING:
    from edgeailite.quantization.integer.grid import Grid

Function = Callable[[Tensor], Tensor]
"""From sums, int64 of shape ``(C, n)``, to integers of a grid, of the same shape."""
_ROUNDINGS = {"half_even": "HALF_EVEN", "half_up": "HALF_UP", "half_away": "HALF_AWAY"}
_INT32 = 1 << 31
# With more results, the float32 product is followed step by step, which needs no proof.
_MOST_RESULTS = 256
_MOST_WINDOW = 1 << 14
# Shifts have 1 to 31 bits. With smaller factors all results are 0, with larger ones at an end.
_BELOW_A_QUARTER, _SMALLEST, _LARGEST = 0.25 - 2.0**-34, 2.0**-32, 2.0**18


class Problem(NamedTuple):
    """A function of sums that C shall compute.

    Attributes:
        function: Monotone.
        factor: Real factor that it nearly is before the zero point, float64, shape ``(C,)``.
        grid: Of the results.
        low: Smallest sum that can occur, int64, shape ``(C,)``.
        high: Largest sum.
    """

    function: Function
    factor: Tensor
    grid: Grid
    low: Tensor
    high: Tensor


def results(problem: Problem) -> Tensor:
    """Results of which a breakpoint is sought: all but the smallest."""
    return torch.arange(problem.grid.quant_min + 1, problem.grid.quant_max + 1)


def breakpoints(problem: Problem) -> Tensor:
    """Smallest sum whose result is at least each of :func:`results`.

    Returns:
        int64, shape ``(C, results)``; one more than the largest sum where there is none.
    """
    wanted = results(problem)
    low = problem.low[:, None].expand(-1, len(wanted)).clone()
    high = (problem.high[:, None] + 1).expand(-1, len(wanted)).clone()
    while bool((low < high).any()):
        middle = torch.div(low + high, 2, rounding_mode="floor")
        reached = problem.function(middle) >= wanted
        high = torch.where(reached, middle, high)
        low = torch.where(reached, low, torch.minimum(middle + 1, high))
    return high


def tested(problem: Problem, points: Tensor) -> Tensor:
    """Sums at which functions must agree to be equal, ``(C, 2 * results + 2)``."""
    ends = problem.low[:, None], problem.high[:, None]
    both = torch.cat([points, points - 1], 1)
    return torch.cat([both.clamp(*ends), *ends], 1)


def _clamped(y: Tensor, grid: Grid) -> Tensor:
    return (y + grid.zero_point).clamp(grid.quant_min, grid.quant_max)


def _left(problem: Problem, largest_factor: float) -> int:
    """Bits by which sums are shifted to the left so that no factor exceeds the given one."""
    left = 0
    while float(problem.factor.max()) * 2.0**-left > largest_factor:
        left += 1
    return left


def _shifted_left(x: Tensor, left: int) -> Tensor:
    limit = 1 << (30 - left)
    return x.clamp(-limit, limit) << left if left else x


def rounding_of(grid: Grid) -> str:
    """Rule for ties, as the kernels name it.

    Raises:
        ValueError: They have none.
    """
    if grid.rounding not in _ROUNDINGS:
        raise ValueError(f"its results are rounded by '{grid.rounding}'")
    return f"EDGEAILITE_{_ROUNDINGS[grid.rounding]}"


def _fields(kind: str, grid: Grid, left: int, shift: Tensor, multiplier: Tensor | None) -> Struct:
    """One factor for all channels where they are the same."""
    columns = [shift, *([] if multiplier is None else [multiplier])]
    same = all(bool((c == c[0]).all()) for c in columns)
    kept = [c[:1] if same else c for c in columns]
    offset = offset_of(grid)
    return Struct(
        "edgeailite_output",
        **({} if multiplier is None else {"multiplier": Array("int32_t", kept[1])}),
        shift=Array("uint8_t", kept[0]),
        kind=f"EDGEAILITE_{kind}",
        rounding=rounding_of(grid),
        each=int(not same),
        left=left,
        wide=int(grid.bit_width > 8),
        zero=grid.zero_point - offset,
        low=grid.quant_min - offset,
        high=grid.quant_max - offset,
    )


def by_shift(problem: Problem, points: Tensor) -> Struct | None:
    """Shift with ties to even, where factors are powers of two; None if it is not equal."""
    grid, (mantissa, exponent) = problem.grid, torch.frexp(problem.factor)
    if grid.rounding != "half_even" or bool((mantissa != 0.5).any()):
        return None
    left = _left(problem, 0.5)
    shift = (1 - exponent + left).clamp(max=30).long()
    half = (1 << (shift - 1))[:, None]
    x = _shifted_left(points, left)
    if left > 20 or int((x.abs() + half).max()) >= _INT32:
        return None
    y = (x + half) >> shift[:, None]
    y = y - torch.where((x + half) & (2 * half - 1) == 0, y & 1, 0)
    if not torch.equal(_clamped(y, grid), problem.function(points)):
        return None
    return _fields("SHIFT", grid, left, shift, None)


def by_scale(problem: Problem, points: Tensor) -> Struct | None:
    """A multiplier of 31 bits and a shift; None if it is not equal."""
    left = _left(problem, _BELOW_A_QUARTER)
    mantissa, exponent = torch.frexp(problem.factor * 2.0**-left)
    shift = (-1 - exponent).clamp(max=31).long()
    x = _shifted_left(points, left)
    if left > 20 or int(x.abs().max()) >= _INT32:
        return None
    rounded = torch.round(torch.ldexp(mantissa, torch.tensor(31))).long().clamp(max=_INT32 - 1)
    wanted = problem.function(points)
    for more in (0, 1, -1):  # ties away from zero need a larger one
        multiplier = (rounded + more).clamp(max=_INT32 - 1)
        high = (x * multiplier[:, None]) >> 32
        y = (high + (1 << (shift - 1))[:, None]) >> shift[:, None]
        if torch.equal(_clamped(y, problem.grid), wanted):
            return _fields("SCALE", problem.grid, left, shift, multiplier)
    return None


def by_float32(problem: Problem) -> Struct:
    """The float32 product and its rounding, step by step in 64 bits: equal by construction.

    Raises:
        ValueError: The product may need more than 63 bits.
    """
    factor = problem.factor.clamp(_SMALLEST, _LARGEST)
    problem = problem._replace(factor=factor)
    left = _left(problem, _BELOW_A_QUARTER)
    mantissa, exponent = torch.frexp(factor * 2.0**-left)
    multiplier = torch.ldexp(mantissa, torch.tensor(24)).long()
    largest = torch.maximum(problem.low.abs(), problem.high.abs()).double()
    if float((largest * multiplier).max()) >= 2.0**62:
        raise ValueError("its sums have too many bits for its scale")
    return _fields("EXACT", problem.grid, left, -1 - exponent.long(), multiplier << 7)


def by_steps(problem: Problem, points: Tensor) -> Struct:
    """Count the breakpoints that a sum reaches: equal by construction, of one function alone."""
    reached = points[0][points[0] <= problem.high[0]]
    smallest = int(problem.function(problem.low[:1, None]))
    grid, offset = problem.grid, offset_of(problem.grid)
    below = smallest - grid.quant_min
    return Struct(
        "edgeailite_output",
        multiplier=Array("int32_t", reached[below:]),
        shift=Array("uint8_t", [len(reached) - below]),
        kind="EDGEAILITE_STEPS",
        wide=0,
        zero=smallest - offset,
        low=grid.quant_min - offset,
        high=grid.quant_max - offset,
    )


def by_quotient(problem: Problem, points: Tensor) -> Struct | None:
    """Quotient with ties to even, of a factor ``2^-shift / n``; None if it is not equal."""
    factor = float(problem.factor)
    divisors = torch.arange(1, _MOST_WINDOW, 2)
    mantissa, exponent = torch.frexp(factor * divisors.double())
    found = ((mantissa - 0.5).abs() < 2.0**-40).nonzero()
    if problem.grid.rounding != "half_even" or len(found) == 0:
        return None
    divisor, power = divisors[found[0]], 1 - int(exponent[found[0]])
    left, shift = max(-power, 0), max(power, 0)
    by = (divisor << shift) * 2
    over = 2 * _shifted_left(points, left) + torch.div(by, 2, rounding_mode="floor")
    y = torch.div(over, by, rounding_mode="floor")
    y = torch.where(over % by == 0, y & ~1, y)
    if (
        left > 20
        or shift > 30
        or not torch.equal(_clamped(y, problem.grid), problem.function(points))
    ):
        return None
    return _fields("QUOTIENT", problem.grid, left, torch.tensor([shift]), divisor)


def of_layer(problem: Problem) -> Struct:
    """Requantization of a layer, whose function is one float32 product and its rounding."""
    found: Struct | None = None
    if len(results(problem)) < _MOST_RESULTS:
        points = tested(problem, breakpoints(problem))
        found = by_shift(problem, points) or by_scale(problem, points)
    else:
        ends = torch.stack([problem.low, problem.high], 1)
        found = by_shift(problem, ends) if float(ends.abs().max()) < 1 << 24 else None
    return found or by_float32(problem)


def of_function(problem: Problem) -> Struct:
    """Requantization by any monotone function, one for all channels.

    Raises:
        ValueError: The result has more than 8 bits, and no multiplier gives it.
    """
    points = breakpoints(problem)
    at = tested(problem, points)
    found = by_shift(problem, at) or by_scale(problem, at)
    if found is None and len(results(problem)) >= _MOST_RESULTS:
        found = by_quotient(problem, at)
        if found is None:
            raise ValueError("no integer arithmetic gives its results of more than 8 bits")
    return found or by_steps(problem, points)
