import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeailite.quantization.arithmetic.fake_quantize import fake_quantize, fake_quantize_reference
from tests.quantization.arithmetic.formulas import EXPECTED_TIES, ROUNDINGS, TIES, inside, quantized

tensors = st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=40).map(torch.tensor)
powers = st.integers(-8, 3).map(lambda e: torch.tensor(2.0**e))
roundings = st.sampled_from(ROUNDINGS)


def limits(bits: int, signed: bool) -> tuple[int, int]:
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_fake_quantize_rounds_ties_as_its_reference(rounding):
    x, scale = torch.tensor(TIES) * 0.25, torch.tensor(0.25)
    y = fake_quantize(x, scale, torch.tensor(0, dtype=torch.int32), -128, 127, rounding)
    assert (y / scale).tolist() == EXPECTED_TIES[rounding]


@given(tensors, powers, st.integers(2, 16), st.booleans(), roundings)
def test_fake_quantize_and_its_reference_are_the_formula(x, scale, bits, signed, rounding):
    low, high = limits(bits, signed)
    zero_point = torch.tensor(0, dtype=torch.int32)
    expected = quantized(x, scale, low, high, rounding)
    for function in (fake_quantize_reference, fake_quantize):
        assert torch.equal(function(x, scale, zero_point, low, high, rounding), expected)


@given(
    tensors, st.floats(2.0**-10, 16, width=32), st.integers(2, 16), st.floats(0, 1), roundings
)  # free scales, any zero point
def test_affine_grids_are_the_formula(x, scale, bits, part, rounding):
    low, high = limits(bits, True)
    scale = torch.tensor(scale)
    zero_point = torch.tensor(round(low + part * (high - low)), dtype=torch.int32)
    expected = quantized(x, scale, low, high, rounding, int(zero_point))
    for function in (fake_quantize_reference, fake_quantize):
        actual = function(x, scale, zero_point, low, high, rounding)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@given(tensors, powers, st.integers(2, 16), st.booleans(), roundings)
def test_fake_quantize_is_idempotent(x, scale, bits, signed, rounding):
    grid = (scale, torch.tensor(0, dtype=torch.int32), *limits(bits, signed), rounding)
    once = fake_quantize(x, *grid)
    assert torch.equal(fake_quantize(once, *grid), once)


@given(tensors, powers, st.integers(2, 16), st.booleans(), roundings)
def test_gradient_is_one_inside_and_zero_outside(x, scale, bits, signed, rounding):
    low, high = limits(bits, signed)
    x = x.clone().requires_grad_()
    y = fake_quantize(x, scale, torch.tensor(0, dtype=torch.int32), low, high, rounding)
    y.sum().backward()
    assert torch.equal(x.grad, inside(x, scale, low, high, rounding))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_large_tensors_in_any_layout(rounding, layout):
    """More than one block of the blocked kernel, with a last block that is not full."""
    x = (torch.randn(3, 17, 67, 53) * 3).to(memory_format=layout).requires_grad_()
    grid = (torch.tensor(2.0**-6), torch.tensor(0, dtype=torch.int32), -128, 127, rounding)
    y = fake_quantize(x, *grid)
    assert y.stride() == x.stride()
    assert torch.equal(y, quantized(x, 2.0**-6, -128, 127, rounding))
    weight = torch.randn_like(x)
    (y * weight).sum().backward()
    assert torch.equal(x.grad, weight * inside(x, 2.0**-6, -128, 127, rounding))


def test_strided_input():
    x = torch.randn(8, 10)[:, ::2]
    grid = (torch.tensor(0.25), torch.tensor(0, dtype=torch.int32), -4, 3)
    assert torch.equal(fake_quantize(x, *grid), quantized(x, 0.25, -4, 3, "half_even"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x = torch.randn(100).to(dtype)
    grid = (torch.tensor(2.0**-7), torch.tensor(0, dtype=torch.int32), -128, 127)
    y = fake_quantize(x, *grid)
    assert y.dtype == torch.float32
    assert torch.equal(y, quantized(x.float(), 2.0**-7, -128, 127, "half_even"))
