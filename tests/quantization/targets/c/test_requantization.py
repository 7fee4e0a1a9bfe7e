"""Requantization in integers equals float32 for every sum that can occur."""

import pytest
import torch

from edgeailite.quantization.arithmetic.rounding import round_to_integer
from edgeailite.quantization.integer.grid import Grid
from edgeailite.quantization.targets.c.requantization import (
    Problem,
    breakpoints,
    of_function,
    of_layer,
)

ENDS = 60_000


def problem(factors, rounding, zero_point=3):
    factors = torch.tensor(factors, dtype=torch.float32)
    grid = Grid(0.1, zero_point, -128, 127, rounding=rounding)

    def requantized(sums):
        u = sums.double().float() * factors[:, None]
        return (round_to_integer(u, rounding) + zero_point).clamp(-128, 127).long()

    ends = torch.full((len(factors),), -ENDS), torch.full((len(factors),), ENDS)
    return Problem(requantized, factors.double(), grid, *ends)


@pytest.mark.parametrize("rounding", ["half_even", "half_up", "half_away"])
def test_breakpoints_are_those_of_all_sums(rounding):
    given = problem([2**-8, 0.0123, 0.7, 3.0], rounding)
    sums = torch.arange(-ENDS, ENDS + 1).expand(4, -1)
    results = given.function(sums)
    for column, y in enumerate(range(-127, 128)):
        wanted = (results >= y).int().argmax(1) - ENDS
        wanted[results.amax(1) < y] = ENDS + 1
        assert torch.equal(breakpoints(given)[:, column], wanted)


@pytest.mark.parametrize(
    ("factors", "rounding", "kind"),
    [
        ([2**-8, 2**-3], "half_even", "SHIFT"),
        ([1.0, 4.0], "half_even", "SHIFT"),
        ([2**-8, 2**-3], "half_up", "SCALE"),
        ([2**-8, 2**-3], "half_away", "SCALE"),
        ([0.0123 * 1.01**i for i in range(200)], "half_even", "EXACT"),
    ],
)
def test_the_cheapest_form_that_is_equal_is_chosen(factors, rounding, kind):
    assert of_layer(problem(factors, rounding)).fields["kind"] == f"EDGEAILITE_{kind}"


def test_any_monotone_function_has_a_form():
    given = problem([0.01], "half_even")
    cubic = given._replace(function=lambda sums: (sums / 2000).pow(3).clamp(-128, 127).long())
    found = of_function(cubic)
    assert found.fields["kind"] == "EDGEAILITE_STEPS"
    sums = torch.arange(-ENDS, ENDS + 1)
    thresholds = found.fields["multiplier"].values
    counted = torch.searchsorted(thresholds, sums, right=True) + found.fields["zero"]
    assert torch.equal(counted, cubic.function(sums))


def test_a_rounding_without_a_form_is_refused():
    with pytest.raises(ValueError, match="its results are rounded by 'floor'"):
        of_layer(problem([0.01], "floor"))
