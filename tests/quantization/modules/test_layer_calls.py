import torch
from torch import nn

from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.modules.layer_calls import (
    float_arithmetic,
    layer_calls,
)
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.wrappers import QuantTrainModule
from tests.quantization.zoo import FunctionalLayers, SharedConvolution


def wrapped(model: nn.Module) -> nn.Module:
    return QuantTrainModule(model, torch.randn(1, 3, 8, 8), total_epochs=4).module


def test_units_know_what_belongs_to_them():
    model = wrapped(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    )
    first, second = layer_calls(model)
    assert (first.path, second.path) == ("0", "3")
    assert first.batch_norm is model.get_submodule("1")
    assert first.input_quantizer is model.get_submodule("0.activation_in")
    assert second.batch_norm is None
    assert second.input_quantizer is model.get_submodule("2")
    assert second.weight is model.get_submodule("3").weight


def test_units_of_functional_layers_resolve_their_parameters():
    model = wrapped(FunctionalLayers())
    conv, depthwise, transposed, linear = layer_calls(model)
    assert conv.weight is model.w1
    assert conv.bias is model.b1
    assert conv.batch_norm is model.norm
    assert depthwise.bias is None
    assert transposed.bias is None
    assert (linear.weight, linear.bias) == (model.w4, model.b4)
    assert [u.channel_axis for u in (conv, linear)] == [1, -1]


def test_a_shared_layer_has_one_unit_for_each_call():
    calls = layer_calls(wrapped(SharedConvolution()))
    assert [call.path for call in calls] == ["stem", "conv", "conv"]
    assert calls[1].input_quantizer is not calls[2].input_quantizer
    assert calls[1].weight is calls[2].weight


def test_float_arithmetic_restores_every_flag():
    model = wrapped(FunctionalLayers())
    some = next(iter(quantizers(model).values()))
    some.observer_enabled = False
    flags = [q.observer_enabled for q in quantizers(model).values()]
    layers = [m for m in model.modules() if isinstance(m, QuantLayer)]
    clips = some.clips_act.clone()
    with float_arithmetic(model):
        model(100 * torch.randn(2, 3, 8, 8))
        assert not any(q.fake_quant_enabled for q in quantizers(model).values())
    assert all(q.fake_quant_enabled for q in quantizers(model).values())
    assert [q.observer_enabled for q in quantizers(model).values()] == flags
    assert torch.equal(some.clips_act, clips)
    assert all(layer.fake_quant_enabled for layer in layers)
