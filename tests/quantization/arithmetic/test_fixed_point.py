import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeailite.quantization.arithmetic.fixed_point import (
    average_requantization,
    batch_norm_requantization,
    multiplier_and_shift,
)


@given(st.floats(2.0**-20, 255.0), st.sampled_from([4, 8, 12]), st.booleans())
def test_multiplier_and_shift_are_near_the_factor(factor, bits, negative):
    factor = min(factor, float((1 << bits) - 1)) * (-1 if negative else 1)
    multiplier, shift = multiplier_and_shift(torch.tensor(factor, dtype=torch.float64), bits)
    assert 1 <= abs(multiplier) < 1 << bits
    assert 0 <= shift <= 31
    assert float(multiplier) * 2.0 ** -float(shift) == pytest.approx(factor, rel=2.0**-bits)


@pytest.mark.parametrize("exponent", range(-24, 8))
def test_powers_of_two_are_exact_shifts(exponent):
    multiplier, shift = multiplier_and_shift(torch.tensor(2.0**exponent), 8)
    assert (float(multiplier), float(shift)) == (128.0, 7.0 - exponent)


def test_shifts_stay_within_their_limits():
    multiplier, shift = multiplier_and_shift(torch.tensor([0.0, 2.0**-31, 1000.0, -1000.0]), 8)
    assert shift.tolist() == [31, 31, 0, 0]
    assert multiplier.tolist() == [1, 1, 1000, -1000]
    multiplier, shift = multiplier_and_shift(torch.tensor(1000.0), 8, min_shift=-8)
    assert (float(multiplier), float(shift)) == (250.0, -2.0)


@given(st.integers(1, 4000), st.integers(-7, 8))
def test_an_average_is_within_a_step_of_the_true_one(area, exponent):
    steps = average_requantization(
        torch.tensor(float(area)).double(), torch.tensor(1.0), torch.tensor(2.0**exponent)
    )
    assert 1 <= steps.multiplier <= 255
    assert 0 <= steps.shift <= 31
    gain = float(steps.multiplier) * 2.0 ** -float(steps.shift) * area * 2.0**exponent
    assert float(steps.factor) == float(steps.multiplier) * 2.0 ** -float(steps.shift)
    bits = min(8, max(1, 24 - 8 - max(area - 1, 0).bit_length()))
    assert abs(gain - 1) <= 2.0**-bits


@pytest.mark.parametrize("area", [1, 2, 4, 64, 1024])
def test_an_area_that_is_a_power_of_two_is_exact(area):
    steps = average_requantization(
        torch.tensor(float(area)).double(), torch.tensor(1.0), torch.tensor(1.0)
    )
    assert float(steps.multiplier) * area == 2.0 ** float(steps.shift)


@given(st.floats(-50, 50), st.floats(-50, 50), st.integers(-6, 3))
def test_a_normalisation_follows_the_batch_norm(gain, offset, exponent):
    scale = torch.tensor(2.0**exponent)
    steps = batch_norm_requantization(torch.tensor([gain]), torch.tensor([offset]), None, scale, 12)
    assert 1 <= steps.multiplier.abs() <= 4095
    for x in (-2.0, 0.0, 1.5):
        factor = steps.multiplier.double() * 2.0 ** -steps.shift.double()
        y = torch.floor((x + steps.offset.double()) * factor)
        exact = (gain * x + offset) / float(scale)
        assert (
            abs(float(y) + 0.5 - (exact + 0.5)) <= 0.51 + abs(gain * x / float(scale)) / 2048 + 1e-3
        )


def test_tiny_raw_values_are_shifted_up():
    ones = torch.ones(1)
    steps = batch_norm_requantization(1e6 * ones, 0 * ones, None, torch.tensor(2.0**-5), 12)
    assert 2048 <= steps.multiplier <= 4095
    assert steps.shift < 0
    assert float(torch.floor((3e-6 + steps.offset) * steps.factor)) == 96


def test_a_zero_gain_leaves_the_constant():
    zero = torch.zeros(1)
    for input_scale in (None, torch.tensor(0.25)):
        steps = batch_norm_requantization(
            zero, torch.tensor([3.0]), input_scale, torch.tensor(0.5), 12
        )
        x = torch.tensor([-128.0, 0.0, 255.0])
        assert (torch.floor((x + steps.offset) * steps.factor) == 6).all()
