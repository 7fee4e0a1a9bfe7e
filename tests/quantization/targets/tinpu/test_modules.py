import pytest
import torch
from torch import nn

from edgeailite.quantization.arithmetic.spec import QuantSpec
from edgeailite.quantization.graph.window_sums import WindowSum
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.targets.tinpu.modules import (
    OffsetScaleShiftAverage,
    OffsetScaleShiftBatchNorm,
    average_constants,
)


def quantizer(low, high):
    return FakeQuantize(QuantSpec(signed=low < 0, fixed_range=(low, high), rounding="floor"))


def test_products_of_large_sums_stay_exact_in_float32():
    for area in (12, 300, 1000, 4000):
        offset, factor, steps = average_constants(
            WindowSum(nn.AdaptiveAvgPool1d(1)), (1, 1, area), 1.0, 1.0
        )
        total = area * 255 + offset
        assert float(torch.tensor(total) * factor) == total * int(steps.multiplier) * 2.0 ** -int(
            steps.shift
        )


@pytest.mark.parametrize("twin", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_a_batch_norm_trains_as_ever_and_adds_the_half_step(twin):
    norm = twin(3)
    x = torch.randn(8, 3, 4, 4) if twin is nn.BatchNorm2d else torch.randn(8, 3)
    expected = twin(3)(x)
    norm = OffsetScaleShiftBatchNorm.from_float(norm, 12)
    output = quantizer(-4.0, 4.0)
    torch.testing.assert_close(norm(x, output), expected + output.qparams().scale / 2)
    output.fake_quant_enabled = False
    torch.testing.assert_close(norm.train(False)(x, output), twin.forward(norm, x))


def test_gradients_of_a_frozen_normalisation_are_the_batch_norms():
    norm = nn.BatchNorm2d(2).eval()
    norm = OffsetScaleShiftBatchNorm.from_float(norm, 12)
    x = torch.randn(4, 2, 3, 3, requires_grad=True)
    norm(x, quantizer(-4.0, 4.0)).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x) / (1 + norm.eps) ** 0.5)
    torch.testing.assert_close(norm.bias.grad, torch.full((2,), 36.0))


def test_an_average_in_float_is_the_average():
    module = OffsetScaleShiftAverage(nn.AvgPool2d(3))
    source, output = quantizer(0.0, 4.0), quantizer(0.0, 4.0)
    x = torch.rand(2, 3, 9, 9)
    output.fake_quant_enabled = False
    assert torch.equal(module(x, output, source), nn.AvgPool2d(3)(x))
