import math

import pytest
import torch
from torch import nn

from edgeailite.quantization.methods.analytic_bias_correction import (
    clipped_normal_mean,
    correct_biases_analytically,
)
from edgeailite.quantization.modules.layer_calls import (
    float_arithmetic,
    layer_calls,
)
from tests.quantization.methods.biases import calibrated_model, means


@pytest.mark.parametrize(("low", "high"), [(-math.inf, None), (0.0, None), (0.0, 6.0)])
def test_mean_of_a_clipped_normal_variable(low, high):
    mean, deviation = torch.tensor([-1.0, 0.0, 2.0, 7.0]), torch.tensor([0.5, 1.0, 3.0, 2.0])
    samples = mean + deviation * torch.randn(400_000, 4, generator=torch.Generator().manual_seed(0))
    expected = samples.clamp(low, high).mean(0)
    bounds = None if high is None else torch.full((4,), high)
    actual = clipped_normal_mean(mean, deviation, low, bounds)
    torch.testing.assert_close(actual, expected, atol=0.02, rtol=0.0)


def test_analytic_correction_needs_no_data_and_brings_means_closer():
    torch.manual_seed(0)
    model = calibrated_model(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 1)
        )
    )
    first, _ = layer_calls(model)
    # Batch norm's statistics are those of the data, as after training.
    x = torch.randn(64, 3, 8, 8)
    with torch.no_grad():
        y = nn.functional.conv2d(x, first.weight)
        first.batch_norm.running_mean.copy_(y.mean((0, 2, 3)))
        first.batch_norm.running_var.copy_(y.var((0, 2, 3)))
        first.batch_norm.weight.fill_(1.0)
    with float_arithmetic(model):
        target = means(model, x)["3"]
    before = means(model, x)["3"]
    assert correct_biases_analytically(model) == ["3"]
    after = means(model, x)["3"]
    assert (after - target).square().sum() < 0.3 * (before - target).square().sum()
