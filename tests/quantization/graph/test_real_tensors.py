"""Whatever changed a model's tensors, its export sees them as they are."""

import io

import pytest
import torch
from torch import nn

from edgeailite.quantization import QuantCalibrateModule
from edgeailite.quantization.export.clip import clip_model
from edgeailite.quantization.graph.real_tensors import with_real_tensors
from edgeailite.quantization.methods.equalization import equalize
from edgeailite.quantization.methods.weight_ranges import search_weight_ranges
from tests.quantization.helpers import quiet_onnx_export, run_onnx

SHAPE = (2, 3, 8, 8)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.last = nn.Conv2d(8, 4, 1)
        self.register_buffer("offset", torch.ones(4, 1, 1), persistent=False)

    def forward(self, x):
        return self.last(self.relu(self.norm(self.conv(x)))) + self.offset


class Application(nn.Module):
    """A user's module around the wrapper."""

    def __init__(self, wrapper):
        super().__init__()
        self.wrapper, self.gain = wrapper, nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        return self.wrapper(x) * self.gain


@pytest.fixture
def wrapper():
    torch.manual_seed(0)
    wrapper = QuantCalibrateModule(Network(), torch.rand(SHAPE)).train()
    wrapper(torch.randn(8, 3, 8, 8))
    return wrapper.eval()


def search(wrapper):
    with torch.no_grad():
        wrapper.module.last.weight[0, 0] = 20.0  # an outlier that a search cuts off
    search_weight_ranges(wrapper.module, [(torch.randn(SHAPE),)])


def replace_parameter(wrapper):
    wrapper.module.conv.weight = nn.Parameter(torch.randn(8, 3, 3, 3))


def replace_parameter_of_the_users_layer(wrapper):
    wrapper.module.get_submodule("last").bias = nn.Parameter(torch.randn(4))


def convert_type(wrapper):
    wrapper.double()
    with torch.no_grad():
        wrapper.module.conv.weight.mul_(-1.5)
    wrapper.to(torch.float32)


def assign(wrapper):
    state = {
        k: torch.rand_like(v) if "conv.weight" in k else v
        for k, v in wrapper.module.state_dict().items()
    }
    wrapper.module.load_state_dict(state, assign=True)


def load_a_part(wrapper):
    wrapper.module.last.load_state_dict(nn.Conv2d(8, 4, 1).state_dict(), strict=False)


def equalize_channels(wrapper):
    with torch.no_grad():
        wrapper.module.last.weight[:, 0] *= 30.0
    equalize(wrapper.module, [(torch.randn(SHAPE),)])


def replace_buffer(wrapper):
    wrapper.module.offset = torch.full((4, 1, 1), 0.5)


CHANGES = [
    search,
    replace_parameter,
    replace_parameter_of_the_users_layer,
    convert_type,
    assign,
    load_a_part,
    equalize_channels,
    replace_buffer,
]


def export_program(model, x):
    return torch.export.export(model, (x,), strict=False).module()


@pytest.mark.parametrize("change", CHANGES)
def test_an_export_sees_the_tensors_as_they_are(wrapper, change):
    x = torch.randn(SHAPE)
    before = export_program(wrapper.module, x)(x)
    change(wrapper)
    expected = clip_model(wrapper.module)(x)
    assert not torch.equal(before, expected)
    assert torch.equal(export_program(wrapper.module, x)(x), expected)


@pytest.mark.parametrize("change", [search, replace_parameter])
def test_an_onnx_export_sees_the_tensors_as_they_are(wrapper, change, tmp_path):
    x, path = torch.randn(SHAPE), tmp_path / "m.onnx"
    change(wrapper)
    quiet_onnx_export(wrapper.module, (x,), path, dynamo=True)
    assert torch.allclose(run_onnx(path, (x,))[0], clip_model(wrapper.module)(x), atol=1e-5)


def test_a_users_module_exports_the_wrapper_in_it(wrapper):
    x, application = torch.randn(SHAPE), Application(wrapper).eval()
    replace_parameter(wrapper)
    expected = clip_model(wrapper.module)(x)
    assert torch.equal(export_program(wrapper, x)(x), expected)
    assert torch.equal(export_program(application, x)(x), expected * 3)


def test_the_model_is_the_same_after_an_export(wrapper):
    x = torch.randn(SHAPE)
    tensors = {**dict(wrapper.named_parameters()), **dict(wrapper.named_buffers())}
    expected = wrapper(x)
    export_program(wrapper, x)
    found = {**dict(wrapper.named_parameters()), **dict(wrapper.named_buffers())}
    assert all(found[name] is tensor for name, tensor in tensors.items())
    assert torch.equal(wrapper(x), expected)


def fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def test_some_tensors_may_be_real():
    layer = nn.Linear(3, 2)
    weight, bias = layer.weight, layer.bias
    fake = fake_tensors().from_tensor(weight)
    layer._parameters["weight"] = fake
    with with_real_tensors(layer):
        assert layer.weight is weight
        assert layer.bias is bias
    assert layer._parameters["weight"] is fake
    assert layer.bias is bias


def test_a_tensor_without_values_is_named():
    layer = nn.Linear(3, 2)
    with fake_tensors():
        layer._parameters["weight"] = torch.zeros(2, 3)
    message = "'weight' are computed while it is traced"
    with pytest.raises(RuntimeError, match=message), with_real_tensors(layer):
        pass


def test_a_copy_and_a_pickle_export_too(wrapper):
    x, file = torch.randn(SHAPE), io.BytesIO()
    torch.save(wrapper, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(export_program(loaded, x)(x), clip_model(wrapper.module)(x))
