import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from edgeailite.quantization.graph.capture import TraceError, capture
from edgeailite.quantization.graph.model import (
    GraphModel,
    add_module_at,
    free_path,
    module_of,
    tidy,
)
from edgeailite.quantization.graph.structure import Example
from edgeailite.quantization.report import build_report
from edgeailite.quantization.wrappers import QuantTrainModule
from tests.quantization.helpers import batch, train_a_little
from tests.quantization.zoo import ZOO, FunctionalLayers, Residual


class Branches(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # the line that the message shows
            return x
        return -x


class WithBranches(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.inner, self.head = nn.Conv2d(3, 4, 1), Branches(), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.inner(self.conv(x)))


class Unused(nn.Module):
    """Holds modules, parameters and buffers that its forward never touches."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.auxiliary = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.spare = nn.Parameter(torch.ones(3))
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("dropped", torch.ones(2), persistent=False)

    def forward(self, x):
        return F.relu(self.conv(x))


@pytest.mark.parametrize("name", list(ZOO))
def test_capture_computes_the_same(name):
    model, inputs = ZOO[name].make().eval(), batch(ZOO[name].shapes, 2)
    # torch's kernel of attention adds in another order than the operations it is opened into.
    tolerance = 1e-5 if name == "transformer" else 0.0
    ours, theirs = capture(model)(*inputs), model(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["residual", "dense", "functional_layers", "shuffle_unit"])
def test_capture_keeps_every_key(name):
    model = ZOO[name].make()
    assert list(capture(model).state_dict()) == list(model.state_dict())


@pytest.mark.parametrize(
    "duplicate", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_unused_submodules_stay(duplicate):
    model = Unused()
    keys = list(model.state_dict())
    captured = duplicate(capture(model))
    assert list(captured.state_dict()) == keys
    assert "dropped" in dict(captured.named_buffers())
    x = torch.randn(1, 3, 4, 4)
    assert torch.equal(captured(x), model(x))


def test_capturing_twice_is_the_same_object():
    captured = capture(Unused())
    assert capture(captured) is captured


def test_arguments_that_default_to_none_keep_their_defaults():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x, mask=None, scale: bool = False):
            x = self.conv(x)
            if mask is not None:
                x = x * mask
            return -x if scale else x

    model, x = Optional(), torch.randn(1, 3, 4, 4)
    assert torch.equal(capture(model, example=Example((x,)))(x), model(x))
    mask = torch.rand(1, 4, 4, 4)
    assert torch.equal(capture(model, example=Example((x, mask)))(x, mask), model(x, mask))
    wrapped = QuantTrainModule(copy.deepcopy(model), x, total_epochs=4)
    assert wrapped(x).shape == (1, 4, 4, 4)


def test_trace_error_names_path_line_and_way_out():
    with pytest.raises(TraceError) as info:
        capture(WithBranches())
    message = str(info.value)
    assert "module 'inner' (Branches)" in message
    assert "test_model.py:" in message
    assert "if x.sum() > 0:" in message
    assert "leaf_modules=['inner']" in message


def test_trace_error_in_the_model_itself():
    with pytest.raises(TraceError, match=r"Branches\.forward at .*leaf_modules=\[\.\.\.\]"):
        capture(Branches())


@pytest.mark.parametrize("leaf", ["inner", Branches])
def test_a_leaf_stays_float_and_is_in_the_report(leaf):
    x = torch.randn(4, 3, 4, 4)
    model = QuantTrainModule(WithBranches(), x, total_epochs=4, leaf_modules=[leaf])
    train_a_little(model, [(3, 4, 4)])
    assert "inner" in build_report(model).floats
    assert torch.equal(model.convert()(x), model(x))


def test_a_leaf_that_runs_its_children_does_not_run_a_quantizer():
    """A quantizer beside a leaf Sequential, not in it: it would run twice."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), nn.Conv2d(4, 2, 1)
    )
    wrapped = QuantTrainModule(model, torch.randn(1, 3, 4, 4), total_epochs=4, leaf_modules=["1"])
    train_a_little(wrapped, [(3, 4, 4)])
    assert len(wrapped.module.get_submodule("1")) == 2
    x = torch.randn(4, 3, 4, 4)
    assert torch.equal(wrapped.convert()(x), wrapped(x))
    first = QuantTrainModule(
        nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Conv2d(4, 2, 1)),
        torch.randn(1, 3, 4, 4), total_epochs=4, leaf_modules=["0"],
    )  # fmt: skip
    assert len(first.module.get_submodule("0")) == 1


def test_functions_know_their_owner():
    owners = {n.name: n.meta["owner"] for n in capture(WithBlock()).graph.nodes}
    assert owners["add"] == "block"
    assert owners["relu"] == ""


class Block(nn.Module):
    def forward(self, x):
        return x + x


class WithBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()

    def forward(self, x):
        return F.relu(self.block(x))


def test_free_path():
    model = capture(Unused())
    assert free_path(model, "conv.activation_q") == "conv.activation_q"
    add_module_at(model, "conv.activation_q", nn.Identity())
    assert free_path(model, "conv.activation_q") == "conv.activation_q_1"
    assert free_path(model, "conv") == "conv_1"


class Pools(nn.Module):
    def forward(self, x):
        return F.adaptive_max_pool2d(F.max_pool2d(x, 2), 1)

    def name(self):
        return "pools"


def test_a_graph_is_linted_and_pickles_with_max_pool_functions():
    model, x = capture(Pools()), torch.randn(1, 2, 8, 8)
    model.graph.lint()
    pickled = pickle.loads(pickle.dumps(model))
    assert torch.equal(pickled(x), Pools()(x))
    assert isinstance(pickled, Pools)
    assert pickled.name() == "pools"


def test_a_class_that_no_other_process_finds_is_left_out_of_a_pickle():
    class Local(Pools):
        pass

    model, x = capture(Local()), torch.randn(1, 2, 8, 8)
    with pytest.warns(UserWarning, match="Local cannot be imported"):
        pickled = pickle.loads(pickle.dumps(model))
    assert torch.equal(pickled(x), Pools()(x))
    assert isinstance(model, Local)
    assert isinstance(copy.deepcopy(model), Local)


def test_module_of_and_calls():
    model = capture(Residual())
    calls = [n for n in model.graph.nodes if n.op == "call_module"]
    assert isinstance(module_of(model, calls[0]), nn.Conv2d)
    assert all("call" in n.meta for n in model.graph.nodes)


def test_a_broken_rewrite_is_found():
    model = capture(FunctionalLayers())
    assert isinstance(model, GraphModel)
    node = next(n for n in model.graph.nodes if n.op == "call_module")
    node.target = "nowhere"
    with pytest.raises(RuntimeError, match="nowhere"):
        tidy(model)
    assert isinstance(model.graph, fx.Graph)


def test_a_model_that_is_part_of_a_wrapper_is_refused_and_its_graph_is_not():
    model, x = Residual(), torch.randn(1, 3, 8, 8)
    wrapped = QuantTrainModule(model, x, total_epochs=4)
    with pytest.raises(ValueError, match=r"'conv1' is quantized already: Residual .* \.module"):
        QuantTrainModule(model, x, total_epochs=4)
    again = QuantTrainModule(wrapped.module, x, total_epochs=4)
    assert list(again.module.state_dict()) == list(wrapped.module.state_dict())
