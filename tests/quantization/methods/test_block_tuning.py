import copy
import time

import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule, QuantCalibrateModule, TINPUTinyMLPTQFxModule
from edgeailite.quantization.methods.activation_ranges import search_activation_ranges
from edgeailite.quantization.methods.block_tuning import _Budget, tune_blocks
from edgeailite.quantization.methods.blocks import find_blocks
from edgeailite.quantization.methods.weight_ranges import search_weight_ranges
from edgeailite.quantization.modules.layer_calls import float_arithmetic, layer_calls
from edgeailite.quantization.verify.compare import verify
from tests.quantization.helpers import randomize_batch_norms


def _network():
    torch.manual_seed(0)
    return randomize_batch_norms(
        nn.Sequential(
            *(nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU6()),
            *(nn.Conv2d(12, 12, 3, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
            *(nn.Conv2d(12, 16, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(16, 5),
        )
    ).eval()


def _batches(seed):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(16, 3, 10, 10, generator=generator),) for _ in range(2)]


def _prepared(preset="WC4_AT8"):
    wrapper = PTCFxModule(_network(), qconfig_type=preset, verbose=False).eval()
    search_activation_ranges(wrapper.module, _batches(1))
    return wrapper


def _error(model, batches):
    with torch.no_grad():
        with float_arithmetic(model):
            references = [model(*b) for b in batches]
        pairs = zip(batches, references, strict=True)
        return sum(float((model(*b) - y).square().sum()) for b, y in pairs)


def _float_error(model, batches):
    network = _network()
    with torch.no_grad():
        return sum(float((model(*b) - network(*b)).square().sum()) for b in batches)


@pytest.mark.parametrize("preset", ["WC4_AT8", "WT8SYMP2_AT8SYMP2"])
def test_output_is_nearer_to_float_than_with_nearest_rounding(preset):
    model = _prepared(preset).module
    unseen = _batches(2)
    before = _float_error(model, unseen)
    learned = tune_blocks(model, _batches(1), iterations=300)
    assert set(learned) <= {call.path for call in layer_calls(model)}
    assert len(learned) >= 2
    assert _float_error(model, unseen) < 0.85 * before


def test_weights_are_on_the_grid_they_had():
    model = _prepared().module
    scales = {call.path: call.folded().scale for call in layer_calls(model)}
    floats = {call.path: call.folded().weight.clone() for call in layer_calls(model)}
    tuned = tune_blocks(model, _batches(1), iterations=100)
    assert tuned
    for call in layer_calls(model):
        if call.path not in tuned:
            continue
        weight, _, scale = call.folded()
        torch.testing.assert_close(scale, scales[call.path], rtol=1e-5, atol=0.0)
        steps = weight / call.layer.channels(scale, weight)
        assert (steps - steps.round()).abs().max() < 1e-3
        # Up or down, nowhere else, but for channels that a gain of zero leaves undefined.
        moved = (weight - floats[call.path]).abs() / call.layer.channels(scale, weight)
        assert moved.max() < 1.01


@pytest.mark.parametrize("kind", ["fx", "pact2"])
def test_result_is_exact_as_onnx_and_in_a_checkpoint(kind, tmp_path):
    x = torch.zeros(1, 3, 10, 10)
    make = {
        "fx": lambda: PTCFxModule(_network(), qconfig_type="WC8SYMP2_AT8SYMP2").eval(),
        "pact2": lambda: QuantCalibrateModule(_network(), dummy_input=x).eval(),
    }[kind]
    wrapper = make()
    search_activation_ranges(wrapper.module, _batches(1))
    search_weight_ranges(wrapper.module, _batches(1))
    tune_blocks(wrapper.module, _batches(1), iterations=30)
    wrapper.export(x, tmp_path / "model.onnx", dynamic_batch=True)
    comparison = verify(wrapper, [b[0] for b in _batches(2)], tmp_path / "model.onnx")
    assert sum(comparison.mismatches.values()) == 0
    twin = make()
    twin.module.load_state_dict(wrapper.module.state_dict())
    with torch.no_grad():
        assert torch.equal(twin(*_batches(2)[0]), wrapper(*_batches(2)[0]))


def test_same_seed_gives_the_same_weights():
    states = []
    for seed in (0, 0, 1):
        model = copy.deepcopy(_prepared()).module
        tune_blocks(model, _batches(1), iterations=200, seed=seed)
        states.append(torch.cat([call.weight.flatten() for call in layer_calls(model)]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_no_iterations_change_nothing():
    model = _prepared().module
    before = copy.deepcopy(model.state_dict())
    assert tune_blocks(model, _batches(1), iterations=0) == []
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_budget_gives_what_is_left_to_the_layers_left(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    budget = _Budget(seconds=10.0, num_blocks=4, iterations=100)
    assert budget.iterations_of_next() == 100
    clock[0] = 4.0  # 0.04 s per iteration: 6 s for 3 layers
    assert budget.iterations_of_next() == 50
    clock[0] = 12.0
    assert budget.iterations_of_next() == 0
    unlimited = _Budget(seconds=None, num_blocks=2, iterations=7)
    assert [unlimited.iterations_of_next() for _ in range(2)] == [7, 7]


class _Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.three, self.four = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.two(torch.relu(self.one(x))))
        x = torch.relu(x + self.four(torch.relu(self.three(x))))
        return self.head(x.mean((2, 3)))


def _residual():
    torch.manual_seed(0)
    return _Residual().eval()


def test_blocks_end_where_one_value_alone_goes_on():
    model = PTCFxModule(_residual(), verbose=False).module
    found = [[call.path for call in block.calls] for block in find_blocks(model, 2)]
    assert found == [["stem.0", "one", "two"], ["three", "four"], ["head"]]
    assert [len(block.inputs) for block in find_blocks(model, 2)] == [1, 1, 1]
    alone = [[call.path for call in block.calls] for block in find_blocks(model, 1)]
    assert alone == [["stem.0"], ["one"], ["two"], ["three"], ["four"], ["head"]]


@pytest.mark.parametrize("preset", ["WC4_AT8", "WT8SYMP2_AT8SYMP2"])
def test_residual_blocks_are_nearer_to_float_than_nearest_rounding(preset):
    model = PTCFxModule(_residual(), qconfig_type=preset, verbose=False).eval().module
    search_activation_ranges(model, _batches(1))

    def error():
        reference = _residual()
        with torch.no_grad():
            pairs = [(model(*b), reference(*b)) for b in _batches(2)]
        return sum(float((q - y).square().sum()) for q, y in pairs)

    before = error()
    assert tune_blocks(model, _batches(1), iterations=200)
    assert error() < 0.8 * before
    assert all(call.layer._substitute is None for call in layer_calls(model))


@pytest.mark.filterwarnings("ignore:.*the NPU computes.*:UserWarning")
def test_blocks_of_a_network_that_rounds_down_stay_exact(tmp_path):
    wrapper = TINPUTinyMLPTQFxModule(_residual(), 1, verbose=False)
    wrapper.calibrate([b for (b,) in _batches(1)], quality=("activation_ranges",))
    tune_blocks(wrapper.module, _batches(1), iterations=50)
    wrapper.export(torch.zeros(1, 3, 10, 10), tmp_path / "model.onnx", dynamic_batch=True)
    comparison = verify(wrapper, [b for (b,) in _batches(2)], tmp_path / "model.onnx")
    assert sum(comparison.mismatches.values()) == 0
