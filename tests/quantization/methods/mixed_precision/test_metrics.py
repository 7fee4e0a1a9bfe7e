import pytest
import torch
from torch import nn

from edgeailite.quantization.methods.mixed_precision.metrics import accuracy, r_squared


def test_metrics():
    x, y = torch.randn(20, 3), torch.randn(20, 1)
    assert r_squared(lambda_module(lambda _: y), [(x, y)]) == pytest.approx(1.0)
    mean = y.mean(0, keepdim=True).expand_as(y)
    assert r_squared(lambda_module(lambda _: mean), [(x, y)]) == pytest.approx(0.0, abs=1e-6)
    labels = x.argmax(1)
    assert accuracy(nn.Identity(), [(x[:10], labels[:10]), (x[10:], labels[10:])]) == 100.0


def lambda_module(function):
    module = nn.Identity()
    module.forward = function
    return module
