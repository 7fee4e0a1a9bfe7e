"""Forward hooks: refused where a device would lose them, part of the graph where it holds them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeailite.quantization.graph.capture import capture
from edgeailite.quantization.graph.guard import TraceError
from edgeailite.quantization.graph.structure import Example


def network():
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Conv2d(4, 2, 3)).eval()


X = torch.randn(2, 3, 8, 8)


def test_a_hook_of_a_layer_that_changes_its_value_is_refused():
    model = network()
    model[1].register_forward_hook(lambda _module, _args, output: output * 2)
    with pytest.raises(TraceError, match="hook of '1' changes its value"):
        capture(model, example=Example((X,)))
    with pytest.raises(TraceError, match="hook of '1' changes its value"):
        capture(model)(X)


def test_a_hook_of_a_layer_that_looks_on_goes_on():
    model, seen = network(), []
    model[1].register_forward_hook(lambda _module, _args, output: seen.append(output.shape))
    captured = capture(model, example=Example((X,)))
    seen.clear()
    captured(X)
    assert seen == [(2, 2, 4, 4)]


@pytest.mark.parametrize("path", ["", "0"])
@pytest.mark.parametrize("before", [True, False])
def test_what_hooks_of_containers_change_is_part_of_the_graph(path, before):
    model = network()
    if before:
        model.get_submodule(path).register_forward_pre_hook(lambda _module, args: (args[0] * 2,))
    else:
        model.get_submodule(path).register_forward_hook(lambda _module, _args, y: y + 1)
    expected = model(X)
    if path:  # nobody calls a container any more
        with pytest.warns(UserWarning, match="'0'.*are part of the graph"):
            captured = capture(model, example=Example((X,)))
    else:
        captured = capture(model, example=Example((X,)))
    assert torch.equal(captured(X), expected)


def test_hooks_of_the_model_that_look_on_go_on():
    model, seen = network(), []
    model.register_forward_pre_hook(lambda _module, args: seen.append(tuple(args[0].shape)))
    model.register_forward_hook(lambda _module, _args, y: y + 1)
    expected = model(X)
    captured = capture(model, example=Example((X,)))
    seen.clear()
    assert torch.equal(captured(X), expected)
    assert seen == [(2, 3, 8, 8)]


@pytest.mark.parametrize("path", ["", "0", "1"])
def test_a_forward_that_is_an_attribute_is_captured(path):
    model = network()
    module = model.get_submodule(path)
    own = module.forward
    module.forward = lambda x: own(x) * 2
    expected = model(X)
    captured = capture(model, example=Example((X,)))
    assert torch.equal(captured(X), expected)
