import pytest
import torch

from edgeailite.quantization.arithmetic.fake_quantize import fake_quantize
from edgeailite.quantization.arithmetic.rounding import round_to_integer, straight_through
from tests.quantization.arithmetic.formulas import EXPECTED_TIES, ROUNDINGS, TIES


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_rounding_of_ties(rounding):
    assert round_to_integer(torch.tensor(TIES), rounding).tolist() == EXPECTED_TIES[rounding]


def test_straight_through():
    x = torch.randn(5, requires_grad=True)
    y = straight_through(x, torch.ones(5))
    assert y.tolist() == [1.0] * 5
    (y * torch.arange(5.0)).sum().backward()
    assert x.grad.tolist() == [0, 1, 2, 3, 4]


def test_floor_rounds_everything_down():
    x = torch.tensor([-1.5, -0.1, 0.9, 2.0])
    assert round_to_integer(x, "floor").tolist() == [-2.0, -1.0, 0.0, 2.0]
    y = fake_quantize(x, torch.tensor(0.5), torch.tensor(0), -128, 127, "floor")
    assert y.tolist() == [-1.5, -0.5, 0.5, 2.0]
