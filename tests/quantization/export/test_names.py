"""Tensor names in exported files."""

import onnx
import pytest
import torch
from torch import nn

from edgeailite.quantization.integer.grid import IntegerOperator
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.wrappers import QuantCalibrateModule
from tests.quantization.helpers import batch, run_onnx, trained
from tests.quantization.zoo import ZOO

NETS = ("residual", "shared_convolution", "shared_unit", "squeeze_and_excite", "shuffle_unit")


def export(wrapper, shapes, path, **options):
    file = wrapper.export(batch(shapes, 2), path / "model.onnx", dynamic_batch=False, **options)
    return file, onnx.load(str(file)).graph


def makers(graph) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph.node for name in node.output}


@pytest.mark.parametrize("form", ["QDQ_MODEL", "INT_MODEL", "FAKEQ_MODEL"])
@pytest.mark.parametrize("name", NETS)
def test_every_quantizer_has_the_tensor_of_its_name(name, form, tmp_path):
    case = ZOO[name]
    wrapper = trained(case.make(), case.shapes)
    _, graph = export(wrapper, case.shapes, tmp_path, format=form)
    made = makers(graph)
    for path in quantizers(wrapper.module):
        operator = made[path].op_type
        integer = form == "INT_MODEL" and (
            "QLinear" in operator or operator in ("QGemm", "Squeeze")
        )
        assert operator == "QuantizeLinear" or integer, path


@pytest.mark.parametrize("options", [{}, {"rounding": "half_up"}, {"bitwidth_activations": 4}])
@pytest.mark.parametrize("name", ["residual", "shared_convolution"])
def test_tensors_hold_the_integers_of_their_quantizers(name, options, tmp_path):
    case = ZOO[name]
    wrapper, inputs = trained(case.make(), case.shapes, **options), batch(case.shapes, 2)
    file = wrapper.export(inputs, tmp_path / "model.onnx", dynamic_batch=False)
    converted, expected = wrapper.convert().module, {}
    for module in converted.modules():
        if isinstance(module, IntegerOperator) and module.quantizer_path:
            module.register_forward_hook(
                lambda m, _, out: expected.__setitem__(m.quantizer_path, out)
            )
    with torch.no_grad():
        converted(*inputs)
    assert set(expected) == set(quantizers(wrapper.module))
    proto = onnx.load(str(file))
    names = list(expected)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names)
    onnx.save(proto, str(file))
    for path, actual in zip(names, run_onnx(file, inputs, "off"), strict=True):
        assert torch.equal(actual.float(), expected[path]), path


def test_weights_and_biases_are_named_after_their_layers(tmp_path):
    case = ZOO["residual"]
    wrapper = trained(case.make(), case.shapes)
    _, graph = export(wrapper, case.shapes, tmp_path, output_names=["logits"])
    names = {t.name for t in graph.initializer}
    layers = ("conv1", "conv2", "conv3", "fc")
    assert {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")} <= names
    assert not [n for n in makers(graph) if n.startswith("_symbolic")]


@pytest.mark.parametrize("form", ["QDQ_MODEL", "INT_MODEL"])
def test_names_that_the_user_gave_win(form, tmp_path):
    wrapper = QuantCalibrateModule(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.rand(1, 3, 8, 8)
    ).train()
    wrapper(torch.randn(4, 3, 8, 8))
    names = {"input_names": ["1"], "output_names": ["0.activation_in"]}
    file, graph = export(wrapper.eval(), [(3, 8, 8)], tmp_path, format=form, **names)
    assert [v.name for v in graph.input] == ["1"]
    assert [v.name for v in graph.output] == ["0.activation_in"]
    assert {"1_1", "0.activation_in_1", "2.activation_q"} <= set(makers(graph))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(run_onnx(file, (x,))[0], wrapper(x).detach())


def test_a_quantizer_that_is_called_twice_has_two_tensors(tmp_path):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()

        def forward(self, x):
            return self.relu(self.conv(self.relu(self.conv(x))))

    wrapper = trained(Twice(), [(3, 8, 8)])
    _, graph = export(wrapper, [(3, 8, 8)], tmp_path)
    assert {"relu", "relu_1"} <= set(makers(graph))
