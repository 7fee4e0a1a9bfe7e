"""A wrapped model stays what it was: names, methods, attributes, an overridden train()."""

from __future__ import annotations

import copy

import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from edgeailite import xnn
from edgeailite.quantization import PTCFxModule, QATFxModule
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.report import build_report
from edgeailite.quantization.verify import verify

X = torch.randn(4, 3, 8, 8)


class Own(nn.Module):
    """Its names are those of the engine, of torch's graphs, and of nn.Module's methods."""

    def __init__(self):
        super().__init__()
        self.graph = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.tidy = nn.Conv2d(8, 4, 3)
        self.stage = "second"
        self.names = ["a", "b"]
        self.modules = [self.graph, self.tidy]

    def forward(self, x):
        for part in self.modules:
            x = part(x)
        return x

    def loss(self, x):
        return self(x).square().mean()

    def train(self, mode=True):
        super().train(mode)
        self.graph[1].eval()
        return self


def test_names_methods_and_the_training_mode_of_a_model_stay(tmp_path):
    model = Own()
    wrapper = QATFxModule(model, example_inputs=X, total_epochs=2, verbose=False)
    assert isinstance(wrapper.module, Own)
    assert (wrapper.names, wrapper.stage) == (["a", "b"], "second")
    assert isinstance(wrapper.module.graph, nn.Sequential)
    wrapper.train()
    before = wrapper.module.graph[1].running_mean.clone()
    wrapper.loss(X).backward()
    assert torch.equal(wrapper.module.graph[1].running_mean, before)
    assert wrapper.module.tidy.weight.grad is not None
    wrapper.eval().export(X, tmp_path / "m.onnx")
    assert verify(wrapper, [X], tmp_path / "m.onnx").num_values > 0
    assert torch.equal(copy.deepcopy(wrapper)(X), wrapper(X))


def test_an_attribute_that_nobody_has_is_an_error_of_the_wrapper():
    wrapper = PTCFxModule(nn.Sequential(nn.Conv2d(3, 4, 3)), example_inputs=X)
    with pytest.raises(AttributeError, match="PTCFxModule"):
        _ = wrapper.nothing


def test_a_module_that_is_replaced_after_wrapping_is_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    wrapper = QATFxModule(model, example_inputs=X, total_epochs=2)
    wrapper.module.add_module("2", nn.Linear(144, 3))
    with pytest.raises(ValueError, match=r"'2' was replaced .* Linear now.*then wrap it"):
        wrapper.train()


class Halves(nn.Module):
    """A parametrization that depends on the weight's values."""

    def forward(self, weight):
        return weight / 2 if weight.abs().max() < 10 else weight


def halved(layer):
    parametrize.register_parametrization(layer, "weight", Halves())
    return layer


class Opened(nn.Sequential):
    """Asks for a size: only torch.export can follow."""

    def forward(self, x):
        return super().forward(x if x.shape[2] > 1 else x * 2)


@pytest.mark.parametrize("container", [nn.Sequential, Opened])
@pytest.mark.parametrize(
    "norm", [weight_norm, torch.nn.utils.weight_norm, spectral_norm, orthogonal, halved]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_computed_weights_are_trained_loaded_and_quantized(norm, container, tmp_path):
    def make():
        return container(norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), norm(nn.Conv2d(8, 4, 3)))

    wrapper = xnn.quantize.QuantTrainModule(make(), dummy_input=X, total_epochs=2)
    assert set(make().state_dict()) <= set(wrapper.module.state_dict())
    optimizer = torch.optim.SGD(wrapper.parameters(), 0.1)
    wrapper.train()(X).square().mean().backward()
    parameters = dict(wrapper.module.named_parameters())
    assert all(parameters[name].grad is not None for name, _ in make().named_parameters())
    optimizer.step()
    wrapper.eval().export(X, tmp_path / "m.onnx")
    assert verify(wrapper, [X], tmp_path / "m.onnx").exact
    assert not build_report(wrapper, [X]).floats
    assert len([m for m in wrapper.module.modules() if isinstance(m, FakeQuantize)]) == 3
    weights = [
        i
        for i in onnx.load(tmp_path / "m.onnx").graph.initializer
        if i.data_type == onnx.TensorProto.INT8 and len(i.dims) == 4
    ]
    assert len(weights) == 2
    fresh = xnn.quantize.QuantTestModule(make(), dummy_input=X)
    fresh.module.load_state_dict(wrapper.module.state_dict())
    assert torch.equal(fresh.convert()(X), wrapper.convert()(X))


def test_spectral_norm_estimates_in_training_as_without_a_wrapper():
    model = nn.Sequential(spectral_norm(nn.Conv2d(3, 4, 3)))
    wrapper = QATFxModule(copy.deepcopy(model), example_inputs=X, total_epochs=2)
    names = ("0.parametrizations.weight.0._u", "0.parametrizations.weight.0._v")
    before = {name: model.state_dict()[name].clone() for name in names}
    for module in (model, wrapper):
        module.train()(X)
        after = {n: b.clone() for n, b in module.named_buffers()}
        module.eval()(X)
        assert all(torch.equal(after[n], b) for n, b in module.named_buffers())
    for name in names:
        assert not torch.equal(wrapper.module.state_dict()[name], before[name])
        assert torch.equal(wrapper.module.state_dict()[name], model.state_dict()[name])
