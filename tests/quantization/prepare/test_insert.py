import copy
import pickle

import pytest
import torch
from torch import nn

from edgeailite.quantization.arithmetic.presets import get_preset
from edgeailite.quantization.graph.calls import traits_of
from edgeailite.quantization.graph.capture import capture
from edgeailite.quantization.graph.model import module_of
from edgeailite.quantization.graph.operations import LAYERS
from edgeailite.quantization.graph.patterns import quantizer_of
from edgeailite.quantization.graph.registry import modules_of
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.functional_layer import QuantFunctionalLayer
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.modules.layer_calls import float_arithmetic
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.prepare.annotate import annotate
from edgeailite.quantization.prepare.insert import insert
from edgeailite.quantization.prepare.policy import Policy
from edgeailite.quantization.targets.registry import get_target
from tests.quantization.helpers import batch, outputs, randomize_batch_norms
from tests.quantization.zoo import ZOO, Residual

POLICY = Policy(get_preset("PACT2"))


def prepared(model: nn.Module):
    graph = capture(model)
    annotate(graph, POLICY, get_target("tidl"))
    insert(graph)
    return graph


@pytest.mark.parametrize("name", list(ZOO))
def test_insertion_is_lint_clean_idempotent_and_keeps_float_arithmetic(name):
    model, inputs = randomize_batch_norms(ZOO[name].make()).eval(), batch(ZOO[name].shapes, 2)
    float_keys = set(model.state_dict())
    expected = outputs(model(*inputs))
    graph = prepared(model)
    assert graph.graph.lint() is None
    assert float_keys <= set(graph.state_dict())

    code, keys = graph.graph.python_code("self").src, list(graph.state_dict())
    annotate(graph, POLICY, get_target("tidl"))
    insert(graph)
    assert graph.graph.python_code("self").src == code
    assert list(graph.state_dict()) == keys

    with float_arithmetic(graph):
        for actual, e in zip(outputs(graph(*inputs)), expected, strict=True):
            torch.testing.assert_close(actual, e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["residual", "functional_layers", "conv_transpose2d", "linear"])
def test_every_layer_quantizes_itself(name):
    graph = prepared(ZOO[name].make())
    for module in graph.modules():
        assert isinstance(module, QuantLayer) or type(module) not in modules_of(*LAYERS)
    layers = [n for n in graph.graph.nodes if traits_of(n).has_weight]
    assert all("input_quantizer" in n.kwargs for n in layers)


def test_functional_layers_become_modules():
    graph = prepared(ZOO["functional_layers"].make())
    lifted = {p for p, m in graph.named_modules() if isinstance(m, QuantFunctionalLayer)}
    assert lifted == {"conv2d", "conv2d_1", "conv_transpose2d", "linear"}


def test_each_call_site_has_its_own_quantizer():
    graph = prepared(Residual())
    assert {"relu", "relu_1", "relu_2"} <= set(quantizers(graph))
    x = torch.randn(4, 3, 8, 8)
    graph(x)
    ranges = {float(q.clips_act[1]) for p, q in quantizers(graph).items() if p.startswith("relu")}
    assert len(ranges) == 3


def test_quantizers_know_their_paths():
    graph = prepared(Residual())
    assert all(q.name == path for path, q in quantizers(graph).items())


def test_quantizer_of_looks_through_moves():
    graph = prepared(nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.Flatten()))
    (output,) = graph.graph.find_nodes(op="output")
    found = quantizer_of(output.args[0])
    assert isinstance(module_of(graph, found), FakeQuantize)
    assert quantizer_of(None) is None
    (placeholder,) = graph.graph.find_nodes(op="placeholder")
    assert quantizer_of(placeholder) is None


@pytest.mark.parametrize("name", list(ZOO))
def test_overwriting_inputs_changes_no_value_and_no_gradient(name):
    """Quantizers work in place where nothing else reads their input: the same as if none did."""
    model, inputs = prepared(randomize_batch_norms(ZOO[name].make())), batch(ZOO[name].shapes, 2)
    plain = copy.deepcopy(model)
    for quantizer in quantizers(plain).values():
        quantizer.inplace = False
    results = []
    for m in (model, plain):
        torch.manual_seed(0)  # dropout
        values = outputs(m(*inputs))
        sum(v.square().sum() for v in values).backward()
        results.append((values, [p.grad for p in m.parameters() if p.grad is not None]))
    for a, b in zip(*(r[0] for r in results), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(*(r[1] for r in results), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("name", ["residual", "functional_layers", "shuffle_unit", "two_inputs"])
def test_copies_compute_the_same(name, duplicate):
    graph, inputs = prepared(ZOO[name].make()), batch(ZOO[name].shapes, 2)
    graph(*inputs)
    twin = duplicate(graph).eval()
    assert list(twin.state_dict()) == list(graph.state_dict())
    graph.eval()
    for a, b in zip(outputs(twin(*inputs)), outputs(graph(*inputs)), strict=True):
        assert torch.equal(a, b)
