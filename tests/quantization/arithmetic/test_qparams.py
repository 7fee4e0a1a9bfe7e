import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeailite.quantization.arithmetic.fake_quantize import fake_quantize_reference
from edgeailite.quantization.arithmetic.qparams import (
    MIN_RANGE,
    activation_qparams,
    ceil_power_of_two,
    ceil_significant,
    symmetric_scale,
    weight_scale,
)
from edgeailite.quantization.arithmetic.spec import QuantSpec

float32 = st.floats(min_value=-1e6, max_value=1e6, width=32)
positive = st.floats(min_value=2.0**-120, max_value=2.0**120, width=32)
specs = st.builds(
    QuantSpec,
    bit_width=st.integers(2, 16),
    signed=st.sampled_from([True, False, None]),
    symmetric=st.booleans(),
    power_of_two=st.booleans(),
)


def is_power_of_two(x: torch.Tensor) -> bool:
    return all(math.frexp(v)[0] == 0.5 for v in x.flatten().tolist())


@given(st.lists(positive, min_size=1, max_size=8))
def test_ceil_power_of_two_is_exact(values):
    expected = []
    for value in values:
        mantissa, exponent = math.frexp(value)
        expected.append(2.0 ** (exponent - 1 if mantissa == 0.5 else exponent))
    assert ceil_power_of_two(torch.tensor(values)).tolist() == expected


@pytest.mark.parametrize("exponent", range(-120, 121, 8))
def test_ceil_power_of_two_around_a_power(exponent):
    power = torch.tensor(2.0**exponent)
    above = torch.nextafter(power, torch.tensor(torch.inf))
    below = torch.nextafter(power, torch.tensor(0.0))
    assert ceil_power_of_two(torch.stack([below, power, above])).tolist() == [
        2.0**exponent, 2.0**exponent, 2.0 ** (exponent + 1)
    ]  # fmt: skip


@given(float32, float32, specs)
def test_zero_lies_on_every_grid_of_an_activation(a, b, spec):
    grid = activation_qparams(torch.tensor([min(a, b), max(a, b)]), spec)
    zero = fake_quantize_reference(torch.zeros(()), *grid)
    assert float(zero) == 0.0
    assert grid.quant_min <= int(grid.zero_point) <= grid.quant_max


@given(float32, float32, specs, st.floats(0, 1))
def test_error_of_a_value_in_range_is_at_most_half_a_step(a, b, spec, part):
    low, high = min(a, b), max(a, b)
    if spec.signed is False:
        low, high = max(low, 0.0), max(high, 0.0)
    scale, zero_point, quant_min, quant_max = activation_qparams(torch.tensor([low, high]), spec)
    x = torch.tensor(low + part * (high - low), dtype=torch.float64)
    y = fake_quantize_reference(x, scale.double(), zero_point, quant_min, quant_max)
    # A symmetric power-of-two grid covers [-2^m, 2^m): its upper end is one step further in. A
    # free affine grid moves by up to half a step for zero to lie on it.
    top = float((quant_max - zero_point) * scale.double())
    bottom = float((quant_min - zero_point) * scale.double())
    step = float(scale)
    assert abs(float(y) - min(max(float(x), bottom), top)) <= 0.5 * step * (1 + 1e-6)
    assert top >= high - step * (1 + 1e-4)
    assert bottom <= low + step * (1 + 1e-4)


@given(float32, float32, specs)
def test_scales_of_power_of_two_specs_are_exact_powers(a, b, spec):
    grid = activation_qparams(torch.tensor([min(a, b), max(a, b)]), spec)
    assert float(grid.scale) > 0
    if spec.power_of_two:
        assert is_power_of_two(grid.scale)


@pytest.mark.parametrize("bit_width", [2, 4, 8, 16])
def test_documented_scales_of_pact2(bit_width):
    signed = QuantSpec(bit_width=bit_width, signed=True)
    unsigned = QuantSpec(bit_width=bit_width, signed=False)
    clips = torch.tensor([-3.0, 2.5])
    assert float(activation_qparams(clips, signed).scale) == 4.0 / 2 ** (bit_width - 1)
    assert float(activation_qparams(clips, unsigned).scale) == 4.0 / 2**bit_width


def test_sign_by_statistics_is_carried_as_signed_integers():
    spec = QuantSpec(signed=None)
    positive_only = activation_qparams(torch.tensor([0.5, 3.0]), spec)
    assert float(positive_only.scale) == 4.0 / 256
    assert int(positive_only.zero_point) == positive_only.quant_min == -128
    with_negative = activation_qparams(torch.tensor([-0.1, 3.0]), spec)
    assert float(with_negative.scale) == 4.0 / 128
    assert int(with_negative.zero_point) == 0


def test_all_positive_narrow_range_includes_zero():
    """A grid of [100, 101] with a step of 1/255 around 100 would leave zero padding off it."""
    spec = QuantSpec(symmetric=False, power_of_two=False)
    scale, zero_point, quant_min, quant_max = activation_qparams(torch.tensor([100.0, 101.0]), spec)
    assert float(scale) == pytest.approx(101.0 / 255)
    assert int(zero_point) == quant_min
    assert float((quant_max - zero_point) * scale) == pytest.approx(101.0)


def test_range_has_a_floor():
    for signed in (True, False, None):
        scale = activation_qparams(torch.zeros(2), QuantSpec(signed=signed)).scale
        assert float(scale) in (MIN_RANGE / 128, MIN_RANGE / 256)


def test_range_max_limits_the_range():
    spec = QuantSpec(signed=True, range_max=2.0)
    assert float(activation_qparams(torch.tensor([-100.0, 100.0]), spec).scale) == 2.0 / 128


@given(st.lists(st.floats(2.0**-20, 1e4, width=32), min_size=1, max_size=6), st.booleans())
def test_weight_scales_cover_each_channel(max_abs, power_of_two):
    spec = QuantSpec(signed=True, granularity="per_channel", power_of_two=power_of_two)
    values = torch.tensor(max_abs)
    scale = weight_scale(values, spec)
    assert scale.shape == values.shape
    top = scale * (128 if power_of_two else 127)
    assert bool((top >= values * (1 - 1e-6)).all())
    assert float(scale.max() / scale.min()) <= spec.max_scale_ratio * (1 + 1e-6)
    if power_of_two:
        assert is_power_of_two(scale)


def test_per_tensor_weights_have_one_scale():
    scale = weight_scale(torch.tensor([0.1, 3.0, 1.0]), QuantSpec(signed=True))
    assert scale.tolist() == [4.0 / 128] * 3


def test_a_channel_is_at_most_256_times_finer_than_the_coarsest():
    spec = QuantSpec(signed=True, granularity="per_channel")
    scale = weight_scale(torch.tensor([1.0, 1e-9]), spec)
    assert (scale * 128).tolist() == [1.0, 1.0 / 256]


def test_min_scale_coarsens_only_where_it_must():
    spec = QuantSpec(signed=True, granularity="per_channel")
    scale = weight_scale(torch.ones(3), spec, min_scale=torch.tensor([0.0, 0.01, 0.5]))
    assert scale.tolist() == [1 / 128, 1 / 64, 0.5]


def test_fixed_range_of_a_weight():
    spec = QuantSpec(signed=True, fixed_range=(-2.0, 2.0))
    assert weight_scale(torch.tensor([0.1, 5.0]), spec).tolist() == [2 / 128] * 2


def test_free_symmetric_scale_uses_the_largest_integer():
    spec = QuantSpec(signed=True, power_of_two=False)
    assert float(symmetric_scale(torch.tensor(127.0), spec)) == 1.0


@given(st.floats(1e-30, 1e30), st.integers(1, 16))
def test_significant_bits_are_rounded_up(value, bits):
    x = torch.tensor(value, dtype=torch.float32)
    y = ceil_significant(x, bits)
    mantissa, _ = math.frexp(float(y))
    assert (mantissa * 2**bits).is_integer()
    assert x <= y <= x * (1 + 2.0 ** (1 - bits))
    assert torch.equal(ceil_significant(y, bits), y)


def test_free_scales_of_few_bits_cover_the_range():
    spec = QuantSpec(
        4, signed=True, granularity="per_channel", power_of_two=False, scale_bits=5,
        quant_range=(-7, 7),
    )  # fmt: skip
    max_abs = torch.rand(100) + 0.01
    scale = weight_scale(max_abs, spec)
    assert (scale * 7 >= max_abs).all()
    assert (scale * 7 <= max_abs.clamp_min(float(max_abs.max()) / 256) * (1 + 1 / 16)).all()
    assert all((math.frexp(float(s))[0] * 32).is_integer() for s in scale)
    floored = weight_scale(max_abs, spec, min_scale=torch.full((100,), 0.3))
    assert (floored >= 0.3).all()
    assert all((math.frexp(float(s))[0] * 32).is_integer() for s in floored)
