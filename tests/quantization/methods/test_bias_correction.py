import math

import pytest
import torch
from torch import nn

from edgeailite.quantization.methods.bias_correction import (
    BiasCorrection,
    clipped_normal_mean,
    correct_biases,
    correct_biases_analytically,
    correctable_bias,
)
from edgeailite.quantization.modules.layer_calls import (
    float_arithmetic,
    layer_calls,
    recorded_outputs,
)
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.wrappers import QuantCalibrateModule
from tests.quantization.helpers import randomize_batch_norms
from tests.quantization.zoo import FunctionalLayers


def calibrated_model(model: nn.Module, **options) -> nn.Module:
    randomize_batch_norms(model)
    wrapper = QuantCalibrateModule(
        model, torch.randn(1, 3, 8, 8), bitwidth_weights=4, bias_calibration=False,
        histogram_range=False, **options,
    )  # fmt: skip
    wrapper.train()
    wrapper(torch.randn(8, 3, 8, 8))
    for quantizer in quantizers(wrapper.module).values():
        quantizer.observer_enabled = False
    return wrapper.module


def means(model: nn.Module, x: torch.Tensor, first: bool = False):
    """Mean output per channel of each layer, or of the first alone."""
    found, units = {}, layer_calls(model)[: 1 if first else None]

    def record(unit, y):
        found[unit.path] = y.mean((0, 2, 3))

    with recorded_outputs(units, record):
        model(x)
    return found[units[0].path] if first else found


def test_one_step_moves_the_bias_by_its_law():
    """bias += rate * (mean_float - mean_quantized), on the convolution's and on a batch norm's."""
    model = calibrated_model(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)
        )
    )
    x = torch.randn(8, 3, 8, 8)
    with float_arithmetic(model):
        target = means(model, x)
    actual = means(model, x)
    before = {u.path: correctable_bias(u).detach().clone() for u in layer_calls(model)}
    output = BiasCorrection(model, 0.3).step((x,), {})
    assert not output.requires_grad
    for unit in layer_calls(model):
        expected = before[unit.path] + 0.3 * (target[unit.path] - actual[unit.path])
        torch.testing.assert_close(correctable_bias(unit).detach(), expected)
    assert correctable_bias(layer_calls(model)[1]) is model.get_submodule("3").bias


def test_the_float_reference_does_not_follow_the_corrections():
    model, x = calibrated_model(FunctionalLayers()), torch.randn(8, 3, 8, 8)
    correction = BiasCorrection(model, 0.5)
    with float_arithmetic(model):
        expected = means(model, x, first=True)
    start = correctable_bias(layer_calls(model)[0]).detach().clone()
    for _ in range(3):
        actual = means(model, x, first=True)
        before = correctable_bias(layer_calls(model)[0]).detach().clone()
        correction.step((x,), {})
        change = correctable_bias(layer_calls(model)[0]).detach() - before
        torch.testing.assert_close(change, 0.5 * (expected - actual), atol=1e-6, rtol=1e-4)
    path = layer_calls(model)[0].path
    torch.testing.assert_close(correction.corrections[path], before + change - start)


def test_one_step_at_full_rate_halves_the_error_of_the_first_layer_at_least():
    """On the very data: what is left is the rounding of the bias to its integers."""
    model, x = calibrated_model(FunctionalLayers()), torch.randn(16, 3, 8, 8)
    with float_arithmetic(model):
        target = means(model, x, first=True)
    before = (means(model, x, first=True) - target).abs().sum()
    BiasCorrection(model, 1.0).step((x,), {})
    after = (means(model, x, first=True) - target).abs().sum()
    assert float(after) < 0.5 * float(before)


@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_without_affine_has_nothing_to_correct(affine):
    model = calibrated_model(
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=affine), nn.ReLU())
    )
    (unit,) = layer_calls(model)
    assert (correctable_bias(unit) is None) == (not affine)
    BiasCorrection(model, 0.1).step((torch.randn(2, 3, 8, 8),), {})


def test_sequential_correction_leaves_no_difference_of_means():
    torch.manual_seed(0)
    model = calibrated_model(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        )
    )
    batches = [(torch.randn(8, 3, 8, 8),), (torch.randn(8, 3, 8, 8),)]
    joint = torch.cat([b[0] for b in batches])
    with float_arithmetic(model):
        target = means(model, joint)
    before = means(model, joint)
    corrected = correct_biases(model, batches)
    after = means(model, joint)
    assert corrected
    units = {unit.path: unit for unit in layer_calls(model)}
    for path in corrected:
        # What remains is that the bias is rounded to its own grid, before and after.
        unit = units[path]
        step = unit.folded().scale * unit.input_quantizer.qparams().scale
        assert ((after[path] - target[path]).abs() <= 1.01 * step + 1e-6).all(), path
    assert any((before[p] - target[p]).abs().max() > 1e-3 for p in corrected)


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
