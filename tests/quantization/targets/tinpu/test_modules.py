import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeailite.quantization.arithmetic.fixed_point import (
    average_requantization,
    batch_norm_requantization,
)
from edgeailite.quantization.arithmetic.spec import QuantSpec
from edgeailite.quantization.graph.window_sums import WindowSum
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.targets.tinpu.modules import (
    FixedPointAverage,
    FixedPointBatchNorm,
    average_constants,
)


def quantizer(low, high):
    return FakeQuantize(QuantSpec(signed=low < 0, fixed_range=(low, high), rounding="floor"))


@given(st.integers(1, 4000), st.integers(-7, 8))
def test_an_average_is_within_a_step_of_the_true_one(area, exponent):
    steps = average_requantization(
        torch.tensor(float(area)).double(), torch.tensor(1.0), torch.tensor(2.0**exponent)
    )
    assert 1 <= steps.multiplier <= 255
    assert 0 <= steps.shift <= 31
    gain = float(steps.factor) * area * 2.0**exponent
    bits = min(8, max(1, 24 - 8 - max(area - 1, 0).bit_length()))
    assert abs(gain - 1) <= 2.0**-bits


@pytest.mark.parametrize("area", [1, 2, 4, 64, 1024])
def test_an_area_that_is_a_power_of_two_is_exact(area):
    steps = average_requantization(
        torch.tensor(float(area)).double(), torch.tensor(1.0), torch.tensor(1.0)
    )
    assert float(steps.factor) * area == 1.0


def test_products_of_large_sums_stay_exact_in_float32():
    for area in (12, 300, 1000, 4000):
        offset, factor, steps = average_constants(
            WindowSum(nn.AdaptiveAvgPool1d(1)), (1, 1, area), 1.0, 1.0
        )
        total = area * 255 + offset
        assert float(torch.tensor(total) * factor) == total * int(steps.multiplier) * 2.0 ** -int(
            steps.shift
        )


@given(st.floats(-50, 50), st.floats(-50, 50), st.integers(-6, 3))
def test_a_normalisation_follows_the_batch_norm(gain, offset, exponent):
    scale = torch.tensor(2.0**exponent)
    steps = batch_norm_requantization(torch.tensor([gain]), torch.tensor([offset]), None, scale, 12)
    assert 1 <= steps.multiplier.abs() <= 4095
    for x in (-2.0, 0.0, 1.5):
        y = torch.floor((x + steps.offset.double()) * steps.factor.double())
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


@pytest.mark.parametrize("twin", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_a_batch_norm_trains_as_ever_and_adds_the_half_step(twin):
    norm = twin(3)
    x = torch.randn(8, 3, 4, 4) if twin is nn.BatchNorm2d else torch.randn(8, 3)
    expected = twin(3)(x)
    norm = FixedPointBatchNorm.from_float(norm, 12)
    output = quantizer(-4.0, 4.0)
    torch.testing.assert_close(norm(x, output), expected + output.qparams().scale / 2)
    output.fake_quant_enabled = False
    torch.testing.assert_close(norm.train(False)(x, output), twin.forward(norm, x))


def test_gradients_of_a_frozen_normalisation_are_the_batch_norms():
    norm = nn.BatchNorm2d(2).eval()
    norm = FixedPointBatchNorm.from_float(norm, 12)
    x = torch.randn(4, 2, 3, 3, requires_grad=True)
    norm(x, quantizer(-4.0, 4.0)).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x) / (1 + norm.eps) ** 0.5)
    torch.testing.assert_close(norm.bias.grad, torch.full((2,), 36.0))


def test_an_average_in_float_is_the_average():
    module = FixedPointAverage(nn.AvgPool2d(3))
    source, output = quantizer(0.0, 4.0), quantizer(0.0, 4.0)
    x = torch.rand(2, 3, 9, 9)
    output.fake_quant_enabled = False
    assert torch.equal(module(x, output, source), nn.AvgPool2d(3)(x))
