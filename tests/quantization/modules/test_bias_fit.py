"""Biases that do not fit: coarser weight scales, cut biases, and their words."""

import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule, QuantCalibrateModule, TINPUTinyMLPTQFxModule
from edgeailite.quantization.arithmetic.sqnr import sqnr
from edgeailite.quantization.modules.bias_fit import bias_fits, describe_coarser, describe_cut
from edgeailite.quantization.modules.layer_calls import layer_calls

X = torch.rand(8, 3, 4, 4)


def model(bias):
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        layers[0].weight.fill_(0.01)
        layers[0].bias.fill_(0.0)
        layers[0].bias[1] = bias
        layers[2].bias.fill_(0.0)
    return layers


def calibrated(bias, **options):
    wrapper = QuantCalibrateModule(model(bias), X, bias_calibration=False, **options)
    return wrapper.calibrate([X])


def test_biases_that_fit_say_nothing():
    assert bias_fits(calibrated(0.01).module) == {}


@pytest.mark.parametrize("constrain_bias", [None, "REDUCE_WEIGHT_SCALE"])
@pytest.mark.parametrize("per_channel_q", [False, "all"])
def test_a_coarser_scale_and_its_factor(constrain_bias, per_channel_q):
    # The weight's own scale is 2^-13, the input's 2^-8: 16 bits reach up to 2^-6.
    wrapper = calibrated(0.1, constrain_bias=constrain_bias, per_channel_q=per_channel_q)
    fits = bias_fits(wrapper.module)
    assert list(fits) == ["0"]
    assert (fits["0"].factor, fits["0"].num_cut, fits["0"].bit_width) == (8.0, 0, 16)
    words = "up to 8 times in 1 of 4 channels" if per_channel_q else "8 times"
    assert f"'0' ({words})" in describe_coarser(list(fits.values()))
    call = layer_calls(wrapper.module)[0]
    integers = call.quantized_parameters()[1] / call.folded().scale / 2.0**-8
    assert 2**14 < float(integers.detach().abs().max()) < 2**15


def test_a_cut_bias_is_counted():
    fits = bias_fits(calibrated(0.1, constrain_bias="SATURATE").module)
    assert (fits["0"].factor, fits["0"].num_cut, fits["0"].num_biases) == (1.0, 1, 4)
    assert "16 bits and are cut: '0' (1 of 4)" in describe_cut(list(fits.values()))


def test_wider_biases_fit():
    assert bias_fits(calibrated(0.1, constrain_bias="NONE").module) == {}


@pytest.mark.parametrize("wrapper_type", [PTCFxModule, TINPUTinyMLPTQFxModule])
def test_each_scheme_knows_its_biases(wrapper_type):
    for bias, fit in ((0.1, False), (1e9, True)):
        wrapper = wrapper_type(model(bias), verbose=False).calibrate([X])
        found = bias_fits(wrapper.module)
        assert ("0" in found) is fit
        assert all(f.factor > 1 and f.num_cut == 0 for f in found.values())


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (12, 8), (16, 16)])
@pytest.mark.parametrize("per_channel_q", [False, "all"])
def test_biases_have_the_bits_of_products(bits, per_channel_q):
    options = {"bitwidth_weights": bits[0], "bitwidth_activations": bits[1]}
    wrapper = calibrated(0.1, per_channel_q=per_channel_q, **options)
    call = layer_calls(wrapper.module)[0]
    assert call.layer.bias_spec.bit_width == max(sum(bits), 16)
    assert all(fit.factor <= 8 for fit in bias_fits(wrapper.module).values())


def test_small_classifiers_keep_their_accuracy():
    for seed in range(6):
        torch.manual_seed(seed)
        layers = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
        ).eval()
        x = torch.randn(16, 3, 9, 9)
        expected = layers(x).detach()
        wrapper = QuantCalibrateModule(layers, x).calibrate([x])
        with torch.no_grad():
            assert sqnr(expected, wrapper(x)) > 30
