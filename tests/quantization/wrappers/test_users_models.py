"""A wrapped model stays what it was: names, methods, attributes, an overridden train()."""

from __future__ import annotations

import copy

import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from edgeailite import xnn
from edgeailite.quantization import PTCFxModule, QATFxModule
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


@pytest.mark.parametrize("norm", [weight_norm, torch.nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_computed_weights_are_trained_loaded_and_quantized(norm, tmp_path):
    def make():
        return nn.Sequential(norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), norm(nn.Conv2d(8, 4, 3)))

    wrapper = xnn.quantize.QuantTrainModule(make(), dummy_input=X, total_epochs=2)
    keys = list(make().state_dict())
    assert set(keys) <= set(wrapper.module.state_dict())
    optimizer = torch.optim.SGD(wrapper.parameters(), 0.1)
    wrapper.train()(X).square().mean().backward()
    assert all(dict(wrapper.module.named_parameters())[key].grad is not None for key in keys)
    optimizer.step()
    wrapper.eval().export(X, tmp_path / "m.onnx")
    assert verify(wrapper, [X], tmp_path / "m.onnx").exact
    weights = [
        i
        for i in onnx.load(tmp_path / "m.onnx").graph.initializer
        if i.data_type == onnx.TensorProto.INT8 and len(i.dims) == 4
    ]
    assert len(weights) == 2
    fresh = xnn.quantize.QuantTestModule(make(), dummy_input=X)
    fresh.module.load_state_dict(wrapper.module.state_dict())
    assert torch.equal(fresh.convert()(X), wrapper.convert()(X))
