"""Evaluation of a wrapper computes the integers of the device, also with free scales."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization import PTCFxModule, QATFxModule
from edgeailite.quantization.methods.mixed_precision import MixedPrecision, apply_bit_widths
from edgeailite.quantization.verify import verify
from edgeailite.quantization.wrappers.converted import integer_graph
from tests.quantization.helpers import seed_everything

QUANT_MODULE = "edgeailite.quantization.wrappers.quant_module"
X = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@dataclass
class Result:
    scores: torch.Tensor
    features: torch.Tensor


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        self.second = nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = self.first(x)
        for _ in range(3):
            x = F.avg_pool2d(x + self.second(x), 3, 1, 1)
        return Result(self.head(x.mean((2, 3))), x)


def calibrated(preset="WC8_AT8"):
    seed_everything(0)
    wrapper = QATFxModule(
        Network(), qconfig_type=preset, example_inputs=X[:2], total_epochs=4, verbose=False
    )
    return wrapper.calibrate([X, torch.randn_like(X)])


def simulated(wrapper):
    with torch.no_grad():
        return wrapper.module(X).features


def evaluated(wrapper):
    with torch.no_grad():
        return wrapper(X).features


def test_evaluation_is_the_integer_graph_where_the_simulation_is_not():
    wrapper = calibrated()
    integer = wrapper.convert()(X)
    result = wrapper(X)
    assert isinstance(result, Result)
    assert torch.equal(result.scores, integer.scores)
    assert torch.equal(result.features, integer.features)
    assert not torch.equal(simulated(wrapper), integer.features)
    assert torch.allclose(simulated(wrapper), integer.features, atol=0.1)


def test_an_option_keeps_the_simulation():
    wrapper = calibrated()
    wrapper.integer_evaluation = False
    assert torch.equal(evaluated(wrapper), simulated(wrapper))
    assert not torch.equal(evaluated(wrapper), wrapper.convert()(X).features)


def test_short_sums_of_power_of_two_scales_need_no_integer_graph(monkeypatch):
    monkeypatch.setattr(f"{QUANT_MODULE}.integer_graph", lambda _: 1 / 0)
    wrapper = QATFxModule(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()),
        qconfig_type="WT8SYMP2_AT8SYMP2",
        example_inputs=X[:2],
        total_epochs=4,
    )
    wrapper.calibrate([X])
    assert torch.equal(wrapper(X), wrapper.module(X))


def test_long_sums_of_power_of_two_scales_are_integers_too(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4096, 64))
    with torch.no_grad():
        model[1].weight.fill_(0.9).add_(0.05 * torch.randn_like(model[1].weight))
    x = torch.rand(64, 1, 64, 64)
    wrapper = PTCFxModule(model, qconfig_type="WT8SYMP2_AT8SYMP2", example_inputs=x, verbose=False)
    wrapper.calibrate([x])
    found = verify(wrapper, [x], wrapper.export(x, tmp_path / "m.onnx"))
    assert found.exact
    with torch.no_grad():
        assert torch.equal(wrapper(x), wrapper.convert()(x))


@pytest.mark.parametrize("way", ["chosen", "loaded"])
def test_bits_that_make_sums_long_are_seen_at_once(way):
    """Sums of 144 products fit float32 with 8 bits, and not with 16."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval()

    def wrapped():
        twin = copy.deepcopy(model)
        return PTCFxModule(twin, qconfig_type="WC8SYMP2_AT8SYMP2", example_inputs=X, verbose=False)

    wrapper = wrapped().calibrate([X])
    assert torch.equal(wrapper(X), wrapper.module(X))
    bits = MixedPrecision({"0": 16, "2": 16}, activations=True)
    if way == "chosen":
        apply_bit_widths(wrapper.module, bits)
    else:
        wide = wrapped()
        apply_bit_widths(wide.module, bits)
        wrapper.module.load_state_dict(wide.calibrate([X]).module.state_dict())
    with torch.no_grad():
        assert torch.equal(wrapper(X), wrapper.convert()(X))
        assert not torch.equal(wrapper(X), wrapper.module(X))


def train_a_step(wrapper):
    optimizer = torch.optim.SGD(wrapper.parameters(), 0.1)
    wrapper.train()(X).scores.square().mean().backward()
    optimizer.step()
    wrapper.eval()


@torch.no_grad()
def double_in_place(wrapper):
    wrapper.module.second.weight.mul_(2)


def double_behind_autograd(wrapper):
    wrapper.module.second.weight.data.mul_(2)


def swap_behind_autograd(wrapper):
    weight = wrapper.module.second.weight.data
    weight.copy_(weight.flip(0).clone())


def negate_behind_autograd(wrapper):
    wrapper.module.second.weight.data.neg_()


def swap_two_behind_autograd(wrapper):
    weight = wrapper.module.second.weight.data
    weight[0, 0, 0, :2] = weight[0, 0, 0, :2].flip(0).clone()
    weight[:, 5, 1, 1] = weight[:, 5, 1, 1].flip(0).clone()


def replace_data(wrapper):
    wrapper.module.second.weight.data = wrapper.module.second.weight.data.flip(0)


def load(wrapper):
    state = {k: v.clone() for k, v in wrapper.state_dict().items() if isinstance(v, torch.Tensor)}
    state["module.second.weight"] *= 1.5
    wrapper.load_state_dict(state, strict=False)


def widen_a_range(wrapper):
    next(q for q in wrapper.modules() if hasattr(q, "clips_act")).clips_act.mul_(2)


def choose_bits_of_a_weight(wrapper):
    wrapper.module.second.choose_bits(4)


def choose_bits_of_an_activation(wrapper):
    next(q for q in wrapper.modules() if hasattr(q, "clips_act")).choose_bits(4)


def replace_a_parameter(wrapper):
    wrapper.module.second.bias = nn.Parameter(wrapper.module.second.bias.detach() + 1)


@pytest.mark.parametrize(
    "change",
    [
        train_a_step,
        double_in_place,
        double_behind_autograd,
        swap_behind_autograd,
        negate_behind_autograd,
        swap_two_behind_autograd,
        replace_data,
        load,
        widen_a_range,
        choose_bits_of_a_weight,
        choose_bits_of_an_activation,
        replace_a_parameter,
    ],
)
def test_a_change_of_weights_or_ranges_is_seen_at_once(change):
    wrapper = calibrated()
    before = evaluated(wrapper)
    change(wrapper)
    assert not torch.equal(evaluated(wrapper), before)
    assert torch.equal(evaluated(wrapper), wrapper.convert()(X).features)


def test_the_graph_is_made_once_while_nothing_changes(monkeypatch):
    made = []
    monkeypatch.setattr(
        f"{QUANT_MODULE}.integer_graph", lambda m: made.append(m) or integer_graph(m)
    )
    wrapper = calibrated()
    for _ in range(3):
        evaluated(wrapper)
    assert len(made) == 1


def test_the_gradient_in_evaluation_is_that_of_the_simulation():
    wrapper = calibrated()
    x = X.clone().requires_grad_()
    output = wrapper(x).scores
    assert torch.equal(output, wrapper.convert()(X).scores)
    output.sum().backward()
    found, x.grad = x.grad, None
    weights = wrapper.module.second.weight.grad
    wrapper.zero_grad()
    wrapper.module(x).scores.sum().backward()
    assert torch.equal(found, x.grad)
    assert torch.equal(weights, wrapper.module.second.weight.grad)


def test_a_module_with_a_hook_runs_itself():
    wrapper = calibrated()
    seen = []
    handle = wrapper.module.second.register_forward_hook(lambda *a: seen.append(a[2]))
    assert torch.equal(evaluated(wrapper), simulated(wrapper))
    assert len(seen) == 6
    handle.remove()
    assert torch.equal(evaluated(wrapper), wrapper.convert()(X).features)


def test_without_ranges_evaluation_simulates_with_a_warning():
    wrapper = QATFxModule(Network(), example_inputs=X[:2], total_epochs=4, verbose=False).eval()
    with pytest.warns(UserWarning, match="have never seen data"):
        assert torch.equal(evaluated(wrapper), simulated(wrapper))


def test_no_integer_graph_is_said_and_evaluation_goes_on(monkeypatch):
    def fail(_model):
        raise ValueError("the third layer has no form")

    monkeypatch.setattr(f"{QUANT_MODULE}.integer_graph", fail)
    wrapper = calibrated()
    with pytest.warns(UserWarning, match=r"Evaluation simulates .*the third layer has no form"):
        assert torch.equal(evaluated(wrapper), simulated(wrapper))
    assert torch.equal(evaluated(wrapper), simulated(wrapper))  # said once


def test_copies_pickles_and_the_state_dict_hold_no_integer_graph():
    wrapper = calibrated()
    before = evaluated(wrapper)
    assert not any("integer" in key for key in wrapper.state_dict())
    assert torch.equal(evaluated(copy.deepcopy(wrapper)), before)
    assert torch.equal(evaluated(pickle.loads(pickle.dumps(wrapper))), before)
    assert len(list(wrapper.modules())) == len(list(copy.deepcopy(wrapper).modules()))


def test_evaluation_in_inference_mode_is_the_same_and_goes_on_outside():
    wrapper = calibrated()
    with torch.inference_mode():
        inside = evaluated(wrapper)
        inside_made = evaluated(copy.deepcopy(wrapper))
    assert torch.equal(evaluated(wrapper), inside)
    assert torch.equal(inside_made, inside)
    train_a_step(wrapper)
    assert torch.equal(evaluated(wrapper), wrapper.convert()(X).features)


def test_evaluation_under_autocast_is_the_same():
    wrapper = calibrated()
    before = evaluated(wrapper)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(evaluated(wrapper), before)


def test_verify_tells_evaluation_from_the_simulation(tmp_path):
    wrapper = PTCFxModule(Network(), example_inputs=X[:2], verbose=False).calibrate([X])
    path = wrapper.export(X[:2], tmp_path / "m.onnx")
    found = verify(wrapper, [X], path)
    assert found.mismatches["evaluation vs integer graph"] == 0
    assert found.mismatches["integer graph vs ONNX Runtime, optimizations on"] == 0
    assert set(found.simulation) == {1}
    assert f"the simulation, which training uses: {found.simulation[1]} differ" in str(found)
    wrapper.integer_evaluation = False
    simulation = verify(wrapper, [X])
    assert simulation.mismatches["evaluation vs integer graph"] == found.simulation[1]
    assert simulation.first_difference is not None
