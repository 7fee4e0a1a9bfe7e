"""Both ways of capture keep what a model computes: in evaluation, in training, with gradients."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization.graph.behavior import difference, observe
from edgeailite.quantization.graph.capture import capture
from edgeailite.quantization.graph.guard import TraceError
from edgeailite.quantization.graph.model import graph_of, program_of
from edgeailite.quantization.graph.structure import Example
from tests.quantization.graph import tricky_networks
from tests.quantization.graph.tricky_networks import BY_EXPORT, BY_TRACING, Tricky


def behavior(model, x, training):
    example = Example((x,))
    return observe(model, example, training, lambda given: model(*given.args))


def assert_same(model, captured, x):
    for training in (False, True):
        wanted, found = (behavior(m, x, training) for m in (model, captured))
        assert difference(wanted, found) is None


@pytest.mark.parametrize("kind", BY_TRACING)
def test_traced_networks_compute_the_same(kind):
    model, x = kind(), torch.randn(3, 3, 8, 8)
    captured = capture(copy.deepcopy(model), example=Example((x,)))
    assert program_of(captured).way == "torch.fx"
    assert_same(model, captured, x)
    assert list(captured.state_dict()) == list(model.state_dict())
    without_example = capture(copy.deepcopy(model))
    without_example(x)  # compares with the model
    assert program_of(without_example).guard is None


@pytest.mark.parametrize("kind", BY_EXPORT)
def test_exported_networks_compute_the_same(kind):
    model, x = kind(), torch.randn(3, 3, 8, 8)
    captured = capture(copy.deepcopy(model), example=Example((x,)))
    assert program_of(captured).way == "torch.export"
    assert_same(model, captured, x)
    assert list(captured.state_dict()) == list(model.state_dict())
    copied = copy.deepcopy(captured)
    assert_same(captured, copied, x)
    if kind is not tricky_networks.CountedSteps:
        assert_same(captured, pickle.loads(pickle.dumps(captured)), x)


@pytest.mark.parametrize("kind", BY_EXPORT)
def test_without_an_example_what_needs_export_is_refused_or_found_on_the_first_batch(kind):
    model, x = kind(), torch.randn(3, 3, 8, 8)
    with pytest.raises(TraceError, match="example input"):
        capture(model)(x)


@pytest.mark.parametrize("size", [1, 2])
def test_exported_networks_take_any_batch_and_refuse_other_sizes(size):
    model = tricky_networks.AssignedItem().eval()
    captured = capture(copy.deepcopy(model), example=Example((torch.randn(size, 3, 8, 8),)))
    for count in (1, 2, 5):
        x = torch.randn(count, 3, 8, 8)
        assert torch.equal(captured.eval()(x), model(x))
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 7\).*captured with \(2, 3, 8, 8\)"):
        captured(torch.randn(2, 3, 8, 7))


def test_a_choice_by_the_values_of_tensors_is_refused_with_place_and_way_out():
    class Chooses(Tricky):
        def trick(self, x):
            if x.sum() > 0:
                x = x * 2
            return self.last(x)

    with pytest.raises(TraceError, match=r"(?s)if x\.sum\(\) > 0.*leaf_modules.*torch\.export"):
        capture(Chooses(), example=Example((torch.randn(2, 3, 8, 8),)))


def test_a_constant_that_a_graph_cannot_change_is_refused_with_the_place():
    """Python state that decides is seen by the guard alone."""

    class Counts(Tricky):
        def make(self):
            self.calls = 0

        def trick(self, x):
            self.calls += 1
            return self.last(x) * self.calls

    with pytest.raises(TraceError, match=r"does not compute what the model does.*torch"):
        capture(Counts(), example=Example((torch.randn(2, 3, 8, 8),)))


def test_tracing_leaves_no_trace_in_the_model():
    model = tricky_networks.CountedSteps()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    capture(model, example=Example((torch.randn(2, 3, 8, 8),)))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_several_inputs_dicts_and_keywords():
    class Inputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, batch, other, scale=1.0, *, bias=None):
            if other.shape[0] == 2:
                y = self.a(batch["image"]) * scale + self.b(batch["more"][0])
            return y + self.b(other) + (0 if bias is None else bias)

    x, y, z, bias = (torch.randn(2, 3, 6, 6) for _ in range(3)), None, None, None
    x, y, z = x
    bias = torch.randn(4, 1, 1)
    model = Inputs().eval()
    batch = {"image": x, "more": [y]}
    captured = capture(model, example=Example((batch, z), {"bias": bias}))
    assert program_of(captured).way == "torch.export"
    assert torch.equal(captured.eval()(batch, z, bias=bias), model(batch, z, bias=bias))


def test_a_result_that_is_written_into_another_tensor_is_refused_by_name():
    class Writes(Tricky):
        def trick(self, x):
            torch.add(x, x, out=x)
            return self.last(x)

    with pytest.raises(TraceError, match=r"out="):
        capture(Writes().requires_grad_(False))


def test_a_graph_that_fails_where_the_model_runs_is_refused():
    """A buffer written with ``out=``, without a gradient, which a graph cannot repeat."""

    class Estimates(Tricky):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(8))

        def trick(self, x):
            if self.training:
                with torch.no_grad():
                    torch.mean(x, (0, 2, 3), out=self.mean)
            return self.last(x * self.mean.clone().view(-1, 1, 1))

    with pytest.raises(TraceError, match=r"(?s)in training mode it fails with RuntimeError.*out="):
        capture(Estimates(), example=Example((torch.randn(2, 3, 6, 6),)))


def test_a_model_that_does_not_run_in_training_mode_is_named():
    class Deployed(Tricky):
        def trick(self, x):
            if self.training:
                raise RuntimeError("for inference only")
            return self.last(x)

    with pytest.warns(UserWarning, match=r"Deployed .*for inference only.*evaluation mode alone"):
        captured = capture(Deployed(), leaf_modules=(), example=Example((torch.randn(2, 3, 6, 6),)))
    assert program_of(captured).way == "torch.export"


@pytest.mark.parametrize("with_condition", [False, True])
def test_a_stage_that_no_result_needs_may_draw_and_count(with_condition):
    """Segmentation networks on a whole encoder: its last stages run in vain."""

    class Unused(Tricky):
        def make(self):
            self.deeper = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5))

        def trick(self, x):
            if with_condition and x.shape[2] < 2:
                x = x * 2
            F.dropout(self.deeper(x), 0.2, self.training)
            return F.dropout(self.last(x), 0.3, self.training)

    captured = capture(Unused(), example=Example((torch.randn(2, 3, 6, 6),)))
    assert program_of(captured).way == ("torch.export" if with_condition else "torch.fx")
    assert "deeper.1" not in {n.target for n in graph_of(captured).nodes}


def test_the_batch_size_is_one_value_in_both_modes():
    """Evaluation asks for it in front of the layers, training behind them."""

    class Asks(Tricky):
        def forward(self, x):
            early = None if self.training else x.flatten(1).view(x.shape[0], -1, 3)
            y = self.norm(self.first(x))
            y = self.last(y.view(x.shape[0], 2, 4, *map(int, x.shape[2:])).flatten(1, 2))
            return y if self.training else (y, early)

    captured = capture(Asks(), example=Example((torch.randn(2, 3, 6, 6),)))
    assert program_of(captured).way == "torch.export"
    assert captured.train()(torch.randn(5, 3, 6, 6)).shape == (5, 8, 6, 6)
    calls = [n.target for n in graph_of(captured).find_nodes(op="call_module")]
    assert sorted(calls) == ["first", "last", "norm"]


def test_a_layer_that_training_calls_on_other_values_is_refused():
    class Other(Tricky):
        def trick(self, x):
            return self.last(x.flip(2)) + x if self.training else self.last(x.tanh().exp()) * x

    with pytest.raises(TraceError, match=r"in training mode it calls 'last' on other values"):
        capture(Other(), example=Example((torch.randn(2, 3, 6, 6),)))


@pytest.mark.parametrize("example", [None, Example((torch.randn(2, 3, 6, 6),))])
def test_a_parameter_that_training_reads_for_other_values_is_refused(example):
    class Functional(Tricky):
        def make(self):
            self.weight = nn.Parameter(torch.randn(8, 8, 3, 3))

        def trick(self, x):
            if self.training:
                return F.conv2d(x.flip(2), self.weight, padding=1) + x
            return F.conv2d(x.tanh().exp(), self.weight, padding=1) * x

    with pytest.raises(TraceError, match=r"in training mode it calls 'weight' on other values"):
        capture(Functional(), example=example)
