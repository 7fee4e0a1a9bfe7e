import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization.arithmetic.spec import BiasSpec, QuantSpec
from edgeailite.quantization.modules.functional_layer import QuantFunctionalLayer
from edgeailite.quantization.modules.layer import QUANT_LAYERS, QuantLayer
from edgeailite.quantization.modules.pact2 import PACT2
from tests.quantization.arithmetic.test_fold import LAYERS, make
from tests.quantization.helpers import randomize_batch_norms

SPEC = QuantSpec(signed=True, rounding="half_away")


def input_quantizer(x: torch.Tensor) -> PACT2:
    quantizer = PACT2(range_shrink_activations=0.0)
    quantizer(x.float())
    return quantizer


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("name", list(LAYERS))
def test_training_weight_is_on_the_grid_of_the_folded_weight(name, granularity):
    """With running statistics equal to the batch's, training and folded weights are the same."""
    layer, norm, _ = make(name)
    spec = QuantSpec(signed=True, granularity=granularity, rounding="half_away")
    layer = QuantLayer.from_float(layer, spec, BiasSpec())
    weight, _, scale = layer.folded(layer.weight, layer.bias, norm, None)
    quantized, _ = layer.quantized_parameters(layer.weight, layer.bias, norm, None)
    steps = quantized / layer.channels(scale, weight)
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-9)
    training = layer._training_weight(layer.weight, layer.bias, norm, None)
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    torch.testing.assert_close(
        training * layer.channels(gain, training), quantized, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("name", list(LAYERS))
def test_frozen_batch_norm_is_folded_completely(name):
    layer, norm, x = make(name)
    layer = QuantLayer.from_float(layer, QuantSpec(signed=True, bit_width=16), BiasSpec())
    with torch.no_grad():
        reference = norm(layer.operate(x, layer.weight, layer.bias))
        folded = layer(x, norm)
    assert float((folded - reference).abs().max()) < 2e-3 * float(reference.abs().max() + 1)


def test_frozen_batch_norm_never_sees_an_activation():
    layer, norm = (
        QuantLayer.from_float(nn.Conv2d(3, 4, 1), SPEC, BiasSpec()),
        nn.BatchNorm2d(4).eval(),
    )
    norm.register_forward_hook(lambda *_: pytest.fail("batch norm ran"))
    layer(torch.randn(2, 3, 4, 4), norm)


def test_training_batch_norm_updates_its_statistics_from_the_quantized_convolution():
    layer, norm = QuantLayer.from_float(nn.Conv2d(3, 4, 1), SPEC, BiasSpec()), nn.BatchNorm2d(4)
    x, before = torch.randn(8, 3, 4, 4), norm.running_mean.clone()
    y = layer(x, norm)
    assert not torch.equal(norm.running_mean, before)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)


def test_disabled_quantization_is_the_float_layer():
    float_layer, norm = nn.Conv2d(3, 4, 3), randomize_batch_norms(nn.BatchNorm2d(4)).eval()
    x = torch.randn(2, 3, 8, 8)
    expected = norm(float_layer(x))
    layer = QuantLayer.from_float(copy.deepcopy(float_layer), SPEC, BiasSpec())
    assert not torch.equal(layer(x, norm), expected)
    layer.fake_quant_enabled = False
    assert torch.equal(layer(x, norm), expected)


def test_bias_lies_on_the_accumulators_grid():
    layer = QuantLayer.from_float(nn.Linear(6, 4), SPEC, BiasSpec())
    quantizer = input_quantizer(torch.randn(100))
    _, bias = layer.quantized_parameters(layer.weight, layer.bias, None, quantizer)
    step = quantizer.qparams().scale * layer.folded(layer.weight, layer.bias, None, None).scale
    assert torch.equal(bias / step, (bias / step).round())
    assert not torch.equal(bias, layer.bias)


@pytest.mark.parametrize(
    ("rule", "bits"), [("saturate", 16), ("reduce_weight_scale", 16), ("none", 32)]
)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_bias_rules_for_a_bias_too_large(rule, bits, granularity):
    spec = QuantSpec(signed=True, granularity=granularity)
    layer = QuantLayer.from_float(nn.Linear(6, 4), spec, BiasSpec(bits, rule))
    with torch.no_grad():
        layer.bias[1] = 100.0
    quantizer = PACT2(clip_range=(-1.0, 1.0))
    _, bias = layer.quantized_parameters(layer.weight, layer.bias, None, quantizer)
    _, _, scale = layer.folded(layer.weight, layer.bias, None, quantizer)
    weight_scale = 2.0 ** math.ceil(math.log2(float(layer.weight.detach().abs().max()))) / 128
    if granularity == "per_channel":
        weight_scale = (
            2.0 ** math.ceil(math.log2(float(layer.weight[1].detach().abs().max()))) / 128
        )
    largest = weight_scale / 128 * (2**15 - 1)  # the input's range is 1
    if rule == "saturate":
        assert float(bias[1].detach()) == pytest.approx(largest)
        assert largest < 100
    else:
        assert float(bias[1].detach()) == pytest.approx(100.0, rel=1e-3)
    plain = layer.folded(layer.weight, None, None, None).scale
    assert bool((scale > plain).any()) == (rule == "reduce_weight_scale")
    if granularity == "per_channel" and rule == "reduce_weight_scale":
        assert float(scale[1]) > float(scale[0])


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_bias_of_a_nearly_dead_channel_does_not_overflow_32_bits(granularity):
    """A tiny weight scale times a tiny input scale once made biases wrap around."""
    spec = QuantSpec(signed=True, granularity=granularity, max_scale_ratio=2.0**40)
    layer = QuantLayer.from_float(nn.Linear(6, 4), spec, BiasSpec())
    with torch.no_grad():
        layer.weight[0] = 1e-8
        layer.bias[0] = 50.0
    quantizer = PACT2(clip_range=(-(2.0**-10), 2.0**-10))
    _, bias = layer.quantized_parameters(layer.weight, layer.bias, None, quantizer)
    assert float(bias[0].detach()) == pytest.approx(50.0, rel=1e-6)


def test_gradients_reach_the_float_parameters():
    layer, norm = QuantLayer.from_float(nn.Conv2d(3, 4, 3), SPEC, BiasSpec()), nn.BatchNorm2d(4)
    quantizer = PACT2(clip_range=(-1.0, 1.0))
    for training in (True, False):
        norm.train(training)
        layer.zero_grad()
        norm.zero_grad()
        layer(torch.randn(2, 3, 8, 8), norm, quantizer).square().sum().backward()
        for parameter in (layer.weight, norm.weight, norm.bias):
            assert float(parameter.grad.abs().sum()) > 0


def test_dead_channel_in_training_is_finite():
    layer, norm = QuantLayer.from_float(nn.Conv2d(3, 4, 3), SPEC, BiasSpec()), nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight[:2] = 0.0
        layer.weight[3] = 0.0
    y = layer(torch.randn(2, 3, 8, 8), norm)
    y.sum().backward()
    assert bool(y.isfinite().all())
    assert bool(layer.weight.grad.isfinite().all())


def test_a_twin_of_a_twin_is_itself():
    layer = QuantLayer.from_float(nn.Conv2d(3, 4, 3), SPEC, BiasSpec())
    kind = type(layer)
    assert kind is QUANT_LAYERS[nn.Conv2d]
    assert QuantLayer.from_float(layer, SPEC, BiasSpec()) is layer


def test_functional_layer_equals_the_module():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    x = torch.randn(2, 4, 8, 8)
    functional = QuantFunctionalLayer(
        F.conv2d, {"stride": 2, "padding": 1, "groups": 2}, SPEC, BiasSpec()
    )
    expected = QuantLayer.from_float(copy.deepcopy(conv), SPEC, BiasSpec())(x)
    assert torch.equal(functional(x, conv.weight, conv.bias), expected)


@pytest.mark.parametrize("size", [(7, 8), [2, 4, 8, 7]])
def test_the_output_size_of_a_transposed_convolution(size):
    up, norm = nn.ConvTranspose2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4).eval()
    x, seen = torch.randn(2, 3, 4, 4), []
    expected = norm(up(x, output_size=size))
    layer = QuantLayer.from_float(copy.deepcopy(up), SPEC, BiasSpec())
    for enabled in (False, True):
        layer.fake_quant_enabled = enabled
        y = layer(x, norm, output_size=size)
        torch.testing.assert_close(y, expected, rtol=0, atol=0.05 if enabled else 1e-6)
    with layer.computing_with(lambda x, *given: seen.append(given) or x):
        layer(x, norm, output_size=size)
    assert seen[0][-1] == size


def test_a_function_stands_in_for_a_layer_and_its_batch_norm():
    layer, norm = QuantLayer.from_float(nn.Conv2d(3, 4, 1), SPEC, BiasSpec()), nn.BatchNorm2d(4)
    x, seen = torch.randn(2, 3, 4, 4), []
    expected = layer(x, norm.eval())

    def double(x, weight, bias, batch_norm, input_quantizer, output_quantizer, output_size):
        seen.append((weight, bias, batch_norm, input_quantizer, output_quantizer))
        return layer.operate(x, 2 * weight, bias)

    with layer.computing_with(double):
        assert torch.equal(layer(x, norm), layer.operate(x, 2 * layer.weight, layer.bias))
        with layer.computing_with(lambda x, *_: x):
            assert layer(x, norm) is x
        assert torch.equal(layer(x, norm), layer.operate(x, 2 * layer.weight, layer.bias))
    assert seen[0] == (layer.weight, layer.bias, norm, None, None)
    assert torch.equal(layer(x, norm), expected)


def test_a_layer_computes_itself_again_after_an_error():
    layer = QuantLayer.from_float(nn.Linear(3, 2), SPEC, BiasSpec())
    x = torch.randn(2, 3)
    expected = layer(x)

    def fail(*_):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"), layer.computing_with(fail):
        layer(x)
    assert torch.equal(layer(x), expected)


def test_a_functional_layer_can_be_stood_in_for_too():
    layer = QuantFunctionalLayer(F.linear, {}, SPEC, BiasSpec())
    with layer.computing_with(lambda x, weight, *_: weight):
        assert layer(torch.zeros(1, 2), torch.ones(3, 2)).tolist() == [[1, 1]] * 3


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_has_a_weight_quantizer_of_its_own(duplicate, learned):
    spec = QuantSpec(4, True, learned=learned)
    layer = QuantLayer.from_float(nn.Linear(3, 2), spec, BiasSpec())
    layer.set_weight_range(torch.tensor([1.0, 2.0]))
    copied = duplicate(layer)
    assert [n for n, _ in copied.named_parameters()] == [n for n, _ in layer.named_parameters()]
    assert set(copied.state_dict()) == {"weight", "bias", "weight_range"}
    assert ("weight_range" in dict(layer.named_parameters())) == learned
    copied.choose_bits(3)
    copied.set_weight_range(torch.tensor([3.0, 3.0]))
    assert layer.weight_quantizer.spec.bit_width == 4
    assert layer.weight_range.tolist() == [1.0, 2.0]
    assert copied.double().weight_range.dtype is torch.float64
