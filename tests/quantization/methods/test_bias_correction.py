import torch
from torch import nn

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.methods.bias_correction import correct_biases
from edgeailite.quantization.methods.channel_means import fit_bias
from edgeailite.quantization.modules.layer_calls import float_copy, layer_calls
from tests.quantization.methods.biases import calibrated_model


def _model():
    torch.manual_seed(0)
    return calibrated_model(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        )
    )


def _means_behind(model, x):
    """Mean per channel of each layer behind its ReLU; the last layer has none."""
    found = {}
    calls = layer_calls(model)
    hooks = [
        call.layer.register_forward_hook(
            lambda _m, _a, y, c=call: found.__setitem__(
                c.path, (y if c is calls[-1] else y.relu()).mean((0, 2, 3))
            )
        )
        for call in calls
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def test_sequential_correction_leaves_no_difference_of_means():
    model, x = _model(), torch.randn(16, 3, 8, 8)
    target, before = _means_behind(float_copy(model), x), _means_behind(model, x)
    corrected = correct_biases(model, [(x,)])
    after = _means_behind(model, x)
    assert corrected == [call.path for call in layer_calls(model)]
    for call in layer_calls(model):
        # What remains is that the bias is rounded to its own grid, before and after.
        step = call.folded().scale * call.input_quantizer.qparams().scale
        difference = (after[call.path] - target[call.path]).abs()
        assert (difference <= 1.01 * step + 1e-5).all(), call.path
    assert any((before[p] - target[p]).abs().max() > 1e-3 for p in corrected)


def test_batches_count_alike():
    """The float means are those of the model before any correction."""
    one, two = _model(), _model()
    x = torch.randn(8, 3, 8, 8)
    correct_biases(one, [(x,)])
    correct_biases(two, [(x,)] * 4)
    expected = _means_behind(one, x)
    for path, mean in _means_behind(two, x).items():
        torch.testing.assert_close(mean, expected[path], rtol=0.0, atol=2e-3)


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
