import copy

import pytest
import torch
from torch import nn

from edgeailite.quantization.methods.bias_corrector import BiasCorrector
from edgeailite.quantization.methods.channel_means import correctable_bias
from edgeailite.quantization.modules.layer_calls import (
    float_arithmetic,
    layer_calls,
)
from tests.quantization.methods.biases import calibrated_model, means
from tests.quantization.zoo import FunctionalLayers


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
    before = {call.path: correctable_bias(call).detach().clone() for call in layer_calls(model)}
    output = BiasCorrector(model, 0.3).run((x,), {})
    assert not output.requires_grad
    for call in layer_calls(model):
        expected = before[call.path] + 0.3 * (target[call.path] - actual[call.path])
        torch.testing.assert_close(correctable_bias(call).detach(), expected)
    assert correctable_bias(layer_calls(model)[1]) is model.get_submodule("3").bias


def test_the_float_reference_does_not_follow_the_corrections():
    model, x = calibrated_model(FunctionalLayers()), torch.randn(8, 3, 8, 8)
    correction = BiasCorrector(model, 0.5)
    with float_arithmetic(model):
        expected = means(model, x, first=True)
    start = correctable_bias(layer_calls(model)[0]).detach().clone()
    for _ in range(3):
        actual = means(model, x, first=True)
        before = correctable_bias(layer_calls(model)[0]).detach().clone()
        correction.run((x,), {})
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
    BiasCorrector(model, 1.0).run((x,), {})
    after = (means(model, x, first=True) - target).abs().sum()
    assert float(after) < 0.5 * float(before)


@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_without_affine_has_nothing_to_correct(affine):
    model = calibrated_model(
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=affine), nn.ReLU())
    )
    (call,) = layer_calls(model)
    assert (correctable_bias(call) is None) == (not affine)
    BiasCorrector(model, 0.1).run((torch.randn(2, 3, 8, 8),), {})


@pytest.mark.parametrize("part", ["", "0"])
def test_loaded_weights_make_it_stale(part):
    model, x = (
        calibrated_model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())),
        torch.randn(2, 3, 8, 8),
    )
    correction = BiasCorrector(model, 0.5)
    correction.run((x,), {})
    with torch.no_grad():
        model.get_submodule("0").weight.mul_(0.9)  # as an optimizer does
    assert not correction.is_stale
    model.get_submodule(part).load_state_dict(model.get_submodule(part).state_dict())
    assert correction.is_stale
    assert not BiasCorrector(model, 0.5).is_stale


def test_it_leaves_no_hook_behind():
    model = calibrated_model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    correction = BiasCorrector(model, 0.5)
    hooks = [m._load_state_dict_post_hooks for m in model.modules()]
    assert all(hooks)
    copied = copy.deepcopy(model)
    copied.load_state_dict(model.state_dict())
    assert not correction.is_stale
    del correction
    assert not any(hooks)
