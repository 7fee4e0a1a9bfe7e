"""Sums with a product or a quotient in one call are opened."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.arithmetic.sqnr import sqnr
from edgeailite.quantization.report import build_report

CALLS = {
    "addcmul": lambda x, y, p: torch.addcmul(x, y, y.flip(1)),
    "addcmul_value": lambda x, y, p: x.addcmul(y, p, value=-0.5),
    "addcmul_parameter": lambda x, y, p: torch.addcmul(p, x, y, value=1),
    "addcdiv": lambda x, y, p: torch.addcdiv(x, y, y.abs() + 1, value=2),
}


class Calls(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.values, self.call = nn.Parameter(torch.randn(4, 1, 1)), call

    def forward(self, x):
        return self.call(self.one(x), self.other(x), self.values)


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_an_opened_sum_is_integers(name, example):
    torch.manual_seed(0)
    model, x = Calls(CALLS[name]), torch.randn(4, 3, 5, 4)
    original = copy.deepcopy(model)
    wrapper = PTCFxModule(model, example_inputs=x if example else None, verbose=False)
    wrapper.calibrate([x])
    assert not build_report(wrapper, [x]).floats
    with torch.no_grad():
        assert float(sqnr(original(x), wrapper(x))) > 30
