import copy

import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.methods.bias_correction import BiasCorrector, correct_biases
from edgeailite.quantization.methods.bias_fitting import correctable_bias, fit_bias, nearest_bias
from edgeailite.quantization.modules.layer_calls import (
    float_arithmetic,
    float_copy,
    layer_calls,
)
from tests.quantization.methods.biases import calibrated_model, means


def _model():
    torch.manual_seed(0)
    return calibrated_model(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        )
    )


def _outputs(model, x):
    """Output of each layer behind its ReLU; the last layer has none."""
    found = {}
    calls = layer_calls(model)
    hooks = [
        call.layer.register_forward_hook(
            lambda _m, _a, y, c=call: found.__setitem__(c.path, y if c is calls[-1] else y.relu())
        )
        for call in calls
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def _errors(model, reference, x):
    """Squared error of each layer behind its ReLU, per channel; the last layer has none."""
    found, wanted = _outputs(model, x), _outputs(reference, x)
    return {path: (found[path] - y).square().mean((0, 2, 3)) for path, y in wanted.items()}


def test_a_correction_lowers_the_error_of_every_layer():
    model, x = _model(), torch.randn(16, 3, 8, 8)
    reference = float_copy(model)
    before = _errors(model, reference, x)
    corrected = correct_biases(model, [(x,)])
    after = _errors(model, reference, x)
    assert corrected == [call.path for call in layer_calls(model)]
    assert all(after[path].sum() < before[path].sum() for path in corrected)
    assert sum(e.sum() for e in after.values()) < 0.95 * sum(e.sum() for e in before.values())


def test_the_nearest_bias_has_the_least_squared_error():
    torch.manual_seed(0)
    wanted = torch.randn(500, 4).relu()
    made = wanted + torch.randn(500, 4) * 0.2 + torch.tensor([0.5, -0.3, 0.0, 0.1])
    best = nearest_bias(torch.relu, made, wanted)

    def error(shift):
        return (torch.relu(made + shift) - wanted).square().mean(0)

    for other in (-0.05, 0.05):
        assert (error(best) < error(best + other)).all()


def test_batches_count_alike():
    """The float means are those of the model before any correction."""
    one, two = _model(), _model()
    x = torch.randn(8, 3, 8, 8)
    correct_biases(one, [(x,)])
    correct_biases(two, [(x,)] * 4)
    expected = _outputs(one, x)
    for path, y in _outputs(two, x).items():
        means = (values.mean((0, 2, 3)) for values in (y, expected[path]))
        torch.testing.assert_close(*means, rtol=0.0, atol=2e-3)


def test_a_bias_moves_what_its_activation_function_lets_through():
    """A value beyond the bound is off by far, and no reason to move the others."""
    wanted = torch.tensor([[1.0], [2.0], [3.0], [9.0]])
    made = wanted + torch.tensor([[0.5], [0.5], [0.5], [-2.0]])

    def relu6(y):
        return y.clamp(0.0, 6.0)

    bias = fit_bias(relu6, made, relu6(wanted).mean(0), torch.zeros(1))
    torch.testing.assert_close(bias, torch.tensor([-0.5]))


def test_a_bias_that_is_computed_stays_and_is_not_reported():
    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.ones(4))

        def forward(self, x):
            return nn.functional.linear(x, self.weight, self.bias * 2)

    torch.manual_seed(0)
    x = torch.randn(8, 3)
    wrapper = PTCFxModule(Computed(), qconfig_type="WC4_AT8", example_inputs=x, verbose=False)
    wrapper.calibrate([x], quality=("activation_ranges", "biases"))
    assert [gain.num_changed for gain in wrapper.post_training][1] == 0
    assert torch.equal(wrapper.module.bias, torch.ones(4))


def _linear():
    """Layers with nothing that cuts values off behind them; the second one's bias is a norm's."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4))
    return calibrated_model(nn.Sequential(*layers))


def _biases(model):
    return {c.path: correctable_bias(c).detach().clone() for c in layer_calls(model)}


def test_a_rate_is_the_part_of_the_difference_that_a_batch_corrects():
    """The first layer's ``bias += rate * (mean_float - mean_quantized)``, the next one's on top."""
    model, x = _linear(), torch.randn(8, 3, 8, 8)
    with float_arithmetic(model):
        target = means(model, x, first=True)
    actual, before = means(model, x, first=True), _biases(model)
    output = BiasCorrector(model, 0.3).run((x,), {})
    after, first = _biases(model), layer_calls(model)[0].path
    assert not output.requires_grad
    torch.testing.assert_close(after[first], before[first] + 0.3 * (target - actual))
    assert correctable_bias(layer_calls(model)[1]) is model.get_submodule("2").bias
    assert all(not torch.equal(before[path], after[path]) for path in before)


@pytest.mark.parametrize("rate", [0.5, None])
def test_the_float_reference_does_not_follow_the_corrections(rate):
    model, x = _linear(), torch.randn(8, 3, 8, 8)
    correction = BiasCorrector(model, rate)
    with float_arithmetic(model):
        expected = means(model, x, first=True)
    path = layer_calls(model)[0].path
    start = _biases(model)[path]
    for number in range(1, 4):
        actual, before = means(model, x, first=True), _biases(model)[path]
        correction.run((x,), {})
        change = _biases(model)[path] - before
        part = 1 / number if rate is None else rate
        torch.testing.assert_close(change, part * (expected - actual), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(correction.corrections[path], before + change - start)
    assert correction.num_batches == 3


def test_without_a_rate_the_correction_is_the_mean_over_the_batches():
    batches = torch.randn(3, 8, 3, 8, 8)
    each = []
    for x in batches:
        single = BiasCorrector(_linear())
        single.run((x,), {})
        each.append(single.corrections["0"])
    together = BiasCorrector(_linear())
    for x in batches:
        together.run((x,), {})
    expected = torch.stack(each).mean(0)
    # What a batch still lacks is measured with the bias on its grid, half a step off at most.
    call = layer_calls(_linear())[0]
    step = call.folded().scale * call.input_quantizer.qparams().scale
    assert ((together.corrections["0"] - expected).abs() <= 1.01 * step).all()
    assert (torch.stack(each).std(0) > 0).any()


@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_without_affine_has_nothing_to_correct(affine):
    model = calibrated_model(
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=affine), nn.ReLU())
    )
    (call,) = layer_calls(model)
    assert (correctable_bias(call) is None) == (not affine)
    BiasCorrector(model).run((torch.randn(2, 3, 8, 8),), {})


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
