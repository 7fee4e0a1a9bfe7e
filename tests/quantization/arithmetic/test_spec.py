import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeailite.quantization.arithmetic.spec import (
    MAX_BIT_WIDTH,
    MIN_BIT_WIDTH,
    BiasSpec,
    QConfig,
    QuantSpec,
)


@pytest.mark.parametrize("bit_width", [-1, 0, 1, 17, 8.0, True, "8", None])
def test_bit_width_outside_of_2_to_16_is_refused(bit_width):
    with pytest.raises(ValueError, match=r"bit_width is .*whole number from 2 to 16"):
        QuantSpec(bit_width=bit_width)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("granularity", "per_row", "'per_tensor', 'per_channel'"),
        ("rounding", "up", "'half_even', 'half_up', 'half_away'"),
        ("range_rule", "kl", "'min_max', 'percentile', 'mse'"),
    ],
)
def test_unknown_choice_lists_what_is_allowed(field, value, allowed):
    with pytest.raises(ValueError, match=f"{field} is '{value}'; allowed: {allowed}"):
        QuantSpec(**{field: value})


@pytest.mark.parametrize("percentile", [-0.1, 50, float("nan")])
def test_percentile_outside_of_its_range_is_refused(percentile):
    with pytest.raises(ValueError, match=r"range_shrink_percentile is .* 0 up to"):
        QuantSpec(range_shrink_percentile=percentile)


@pytest.mark.parametrize("fixed_range", [(1.0, 1.0), (2.0, -2.0), (float("nan"), 1.0)])
def test_empty_fixed_range_is_refused(fixed_range):
    with pytest.raises(ValueError, match=r"fixed_range is .* low < high"):
        QuantSpec(fixed_range=fixed_range)


@pytest.mark.parametrize("range_max", [0.0, -1.0, float("nan")])
def test_range_max_must_be_positive(range_max):
    with pytest.raises(ValueError, match=r"range_max is .* must be positive"):
        QuantSpec(range_max=range_max)


def test_max_scale_ratio_below_one_is_refused():
    with pytest.raises(ValueError, match=r"max_scale_ratio is 0\.5; it must be at least 1"):
        QuantSpec(max_scale_ratio=0.5)


@pytest.mark.parametrize("bit_width", [7, 33])
def test_bias_bit_width_outside_of_8_to_32_is_refused(bit_width):
    with pytest.raises(ValueError, match=r"bias bit_width is .*; allowed: 8 to 32"):
        BiasSpec(bit_width=bit_width)


def test_unknown_bias_rule_lists_what_is_allowed():
    with pytest.raises(ValueError, match="bias rule is 'clip'; allowed: 'none', 'saturate'"):
        BiasSpec(rule="clip")


def test_specs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        QuantSpec().bit_width = 4


@given(
    st.integers(MIN_BIT_WIDTH, MAX_BIT_WIDTH), st.sampled_from([True, False, None]), st.booleans()
)
def test_a_grid_has_two_to_the_bits_integers(bit_width, signed, symmetric):
    spec = QuantSpec(bit_width=bit_width, signed=signed, symmetric=symmetric)
    assert spec.quant_max - spec.quant_min + 1 == 2**bit_width
    assert spec.quant_min in (0, -(2 ** (bit_width - 1)))
    if signed is not None:
        assert (spec.quant_min < 0) == signed


def test_with_activation_changes_a_copy():
    config = QConfig()
    assert config.with_activation(bit_width=4).activation == QuantSpec(bit_width=4)
    assert config.activation == QuantSpec()
    assert QConfig(activation=None).with_activation(bit_width=4).activation is None


@pytest.mark.parametrize(("bits", "power_of_two"), [(8, True), (0, False), (17, False)])
def test_scale_bits_need_a_free_scale(bits, power_of_two):
    with pytest.raises(ValueError, match=rf"scale_bits is {bits}; allowed: 1 to 16, with power_of"):
        QuantSpec(scale_bits=bits, power_of_two=power_of_two)
