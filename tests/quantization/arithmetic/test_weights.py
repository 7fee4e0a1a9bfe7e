import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeailite.quantization.arithmetic.weights import (
    fake_quantize_bias,
    fake_quantize_weight,
    quantize_bias,
    soft_quantize_weight,
)
from tests.quantization.arithmetic.formulas import integers

ROUNDINGS = ["half_even", "half_up", "half_away"]
roundings = st.sampled_from(ROUNDINGS)


def limits(bits: int, signed: bool) -> tuple[int, int]:
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


@given(
    st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4),
    st.lists(st.sampled_from([-2.0, -0.5, -0.01, 0.01, 0.7, 3.0]), min_size=4, max_size=4),
    st.integers(2, 16),
    roundings,
)
def test_weight_grid_divided_by_a_gain_is_the_grid_of_the_folded_weight(w, gain, bits, rounding):
    """quantize(W f, s) / f == quantize(W, s / f), for negative gains too (the grid is mirrored)."""
    low, high = limits(bits, True)
    w, gain = torch.tensor(w).double(), torch.tensor(gain).double()
    step = torch.tensor(4.0).double() / 2 ** (bits - 1)
    folded = fake_quantize_weight(w * gain, step, low, high, rounding)
    training = fake_quantize_weight(w, step / gain, low, high, rounding) * gain
    # The two divisions may round a tie differently: one step at the most, and only there.
    difference = (folded - training).abs() / step
    assert bool((difference < 1.000001).all())
    tie = ((w * gain / step).abs() % 1 - 0.5).abs() < 1e-9
    assert bool(((difference < 1e-6) | tie).all())


def test_weight_gradient_is_one_inside_and_zero_outside():
    w = torch.tensor([-10.0, -0.3, 0.0, 0.3, 10.0], requires_grad=True)
    fake_quantize_weight(w, torch.tensor(1 / 128), -128, 127, "half_away").sum().backward()
    assert w.grad.tolist() == [0, 1, 1, 1, 0]


@given(
    st.lists(st.floats(-1e5, 1e5, width=32), min_size=1, max_size=10),
    st.integers(-24, 0), st.sampled_from([8, 16, 32]), roundings,
)  # fmt: skip
def test_bias_is_a_clamped_integer_of_the_accumulator(values, exponent, bits, rounding):
    bias, limit = torch.tensor(values), 1 << (bits - 1)
    scale = torch.full_like(bias, 2.0**exponent)
    q = quantize_bias(bias, scale, limit, rounding)
    assert q.dtype == torch.float64
    assert bool((q == q.round()).all())
    assert -limit <= float(q.min()) <= float(q.max()) < limit
    expected = integers(bias.double(), 2.0**exponent, -limit, limit - 1, rounding)
    assert q.tolist() == expected.tolist()


def test_bias_of_32_bits_is_exact_at_its_ends():
    q = quantize_bias(torch.tensor([1e30, -1e30]), torch.ones(2), 1 << 31, "half_even")
    assert q.to(torch.int32).tolist() == [2**31 - 1, -(2**31)]


def test_fake_quantized_bias_passes_the_gradient():
    b = torch.tensor([0.3, 1e9], requires_grad=True)
    y = fake_quantize_bias(b, torch.tensor([0.25, 0.25]), 1 << 15, "half_even")
    assert y.tolist() == [0.25, 32767 * 0.25]
    y.sum().backward()
    assert b.grad.tolist() == [1.0, 1.0]


@given(st.floats(0.02, 1.0))
def test_a_soft_step_keeps_the_grid_and_the_middles(softness):
    scale = torch.tensor(0.5)
    fixed = torch.tensor([-1.0, -0.75, -0.5, 0.0, 0.25, 0.5, 9.0])
    soft = soft_quantize_weight(fixed, scale, -2, 2, softness)
    torch.testing.assert_close(soft, torch.tensor([-1.0, -0.75, -0.5, 0.0, 0.25, 0.5, 1.0]))
    x = torch.linspace(-1.2, 1.2, 97)
    soft = soft_quantize_weight(x, scale, -2, 2, softness)
    assert (soft.diff() >= -1e-6).all()  # no value overtakes another
    hard = (x / scale).round().clamp(-2, 2) * scale
    assert ((soft - hard).abs() <= (x.clamp(-1, 1) - hard).abs() + 1e-6).all()


def test_a_soft_step_passes_the_gradient_inside_of_the_range():
    w = torch.tensor([-2.0, -0.9, 0.1, 1.6], requires_grad=True)
    soft_quantize_weight(w, torch.tensor(1.0), -1, 1, 0.5).sum().backward()
    assert w.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
