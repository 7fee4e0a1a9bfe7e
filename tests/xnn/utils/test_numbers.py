import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeailite.xnn.utils import make_divisible


@given(channels=st.floats(0.01, 5000), divisor=st.integers(1, 64))
def test_result_is_a_multiple_that_loses_at_most_a_tenth(channels, divisor):
    result = make_divisible(channels, divisor)
    assert result % divisor == 0
    assert result >= max(divisor, 0.9 * channels)
    assert result <= max(divisor, channels + divisor)


@pytest.mark.parametrize(("channels", "expected"), [(32, 32), (8.1, 8), (12, 16), (18, 24), (3, 8)])
def test_examples(channels, expected):
    assert make_divisible(channels) == expected


def test_least_replaces_the_divisor_as_the_floor():
    assert make_divisible(3, 8, least=16) == 16


@pytest.mark.parametrize("arguments", [(0, 8), (-3, 8), (8, 0)])
def test_not_positive_raises(arguments):
    with pytest.raises(
        ValueError, match=f"must be positive, got {arguments[0]} and {arguments[1]}"
    ):
        make_divisible(*arguments)
