import copy
import dataclasses
import sys
from functools import partial

import pytest
import torch
from torch import nn

from edgeailite.quantization import (
    GenericTinyMLPTQFxModule,
    PTCFxModule,
    QuantCalibrateModule,
    QuantTestModule,
    TINPUTinyMLPTQFxModule,
)
from edgeailite.quantization.methods.block_tuning import tune_blocks
from edgeailite.quantization.methods.gains import render_gains
from edgeailite.quantization.methods.images import split
from edgeailite.quantization.methods.post_training import PLAIN, QUALITIES, post_training
from edgeailite.quantization.methods.registry import METHODS
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.report import build_report, write_html
from edgeailite.quantization.verify.compare import verify
from tests.quantization.helpers import randomize_batch_norms

X = torch.zeros(1, 3, 12, 12)
WRAPPERS = {
    "pact2": lambda model: QuantCalibrateModule(model, dummy_input=X),
    "fx": lambda model: PTCFxModule(model, qconfig_type="WC8SYMP2_AT8SYMP2"),
    "generic": lambda model: GenericTinyMLPTQFxModule(model, 1, verbose=False),
    "tinpu": lambda model: TINPUTinyMLPTQFxModule(model, 1, verbose=False),
}


@pytest.fixture(autouse=True)
def _few_iterations(monkeypatch):
    monkeypatch.setitem(METHODS, "block_tuning", partial(tune_blocks, iterations=60))


def _network():
    torch.manual_seed(0)
    return randomize_batch_norms(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        )
    ).eval()


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 12, 12, generator=generator) for _ in range(2)]


@pytest.mark.filterwarnings("ignore:.*the NPU computes.*:UserWarning")
@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("quality", QUALITIES)
def test_every_wrapper_takes_a_quality_and_stays_exact(name, quality, data, tmp_path):
    wrapper = WRAPPERS[name](_network()).calibrate(data, quality=quality)
    assert not wrapper.training
    tried = [gain.method for gain in wrapper.post_training]
    ways, added = QUALITIES[quality].ways, QUALITIES[quality].added
    assert tried[0] == PLAIN
    assert tried[: len(ways)] == [" + ".join(way) for way in ways]
    last = [name.split(" + ")[-1] for name in tried[len(ways) :]]
    assert sorted(set(last), key=last.index) == list(added)
    wrapper.export(X, tmp_path / "model.onnx", dynamic_batch=True)
    comparison = verify(wrapper, data, tmp_path / "model.onnx")
    assert sum(comparison.mismatches.values()) == 0


def test_result_is_better_than_batch_by_batch(data):
    network = _network()
    with torch.no_grad():
        network[3].weight[0] *= 30  # one channel stretches the range of the others' weights
    x = torch.randn(128, 3, 12, 12)  # others than it is calibrated on
    with torch.no_grad():
        target = network(x)

    def error(factor=None, **options):
        model = copy.deepcopy(network)
        wrapper = PTCFxModule(
            model, qconfig_type="WC4_AT8", bias_calibration_factor=factor, verbose=False
        )
        with torch.no_grad():
            return float((wrapper.calibrate(data, **options)(x) - target).square().mean())

    assert error(quality="fast") < error() < error(factor=0.0)


def test_checkpoint_holds_what_was_found(data):
    wrapper = PTCFxModule(_network(), qconfig_type="WC4_AT8").calibrate(data, quality="fast")
    twin = PTCFxModule(_network(), qconfig_type="WC4_AT8").eval()
    twin.module.load_state_dict(wrapper.module.state_dict())
    with torch.no_grad():
        assert torch.equal(twin(data[0]), wrapper(data[0]))


def test_gains_are_printed(data, capsys):
    wrapper = PTCFxModule(_network()).calibrate(data, num_batches=1, quality="fast")
    printed = capsys.readouterr().out
    assert "edgeailite: post-training" in printed
    assert render_gains(wrapper.post_training) in printed
    rows = printed.splitlines()[2:]
    first = [row.split()[0] for row in rows[:3]]
    assert first == ["plain", "activation_ranges", "equalization"]
    assert any(" + least_squares " in row for row in rows[3:])
    assert sum(row.endswith("rejected") for row in rows) >= 2


def test_unknown_quality_and_no_data(data):
    with pytest.raises(ValueError, match="quality is 'superb'; allowed: 'fast', 'best'"):
        PTCFxModule(_network()).calibrate(data, quality="superb")
    with pytest.raises(ValueError, match="no batch to calibrate with"):
        PTCFxModule(_network()).calibrate([], quality="fast")
    with pytest.raises(ValueError, match="no batch to calibrate with"):
        post_training(PTCFxModule(_network()).module, [], "fast", lambda batches: [])


def test_wrapper_that_only_evaluates_does_not_calibrate(data):
    with pytest.raises(RuntimeError, match="calibrate with QuantCalibrateModule"):
        QuantTestModule(_network(), dummy_input=X).calibrate(data)


def test_plain_calibration_is_named_as_a_method(data):
    by_name = PTCFxModule(_network(), verbose=False).calibrate(data, quality=("plain",))
    learned, _ = split([(x,) for x in data])
    plain = PTCFxModule(_network(), verbose=False).calibrate(learned)
    expected = plain.module.state_dict()
    for key, value in by_name.module.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_methods_run_as_they_are_named(data):
    names = ("activation_ranges", "analytic_biases")
    wrapper = PTCFxModule(_network(), verbose=False).calibrate(data, quality=names)
    assert [gain.method for gain in wrapper.post_training] == list(names)


@pytest.mark.parametrize(
    ("quality", "message"),
    [
        ("good", "quality is 'good'; allowed: 'fast', 'best', or methods: 'plain', "),
        (("fast", "biases"), "allowed: 'fast', 'best', or methods"),
        ((), "allowed: 'fast', 'best', or methods"),
        (("equalization", "biases"), "without 'activation_ranges' or 'plain'"),
    ],
)
def test_names_that_are_refused(quality, message, data):
    with pytest.raises(ValueError, match=message):
        PTCFxModule(_network(), verbose=False).calibrate(data, quality=quality)


def test_the_report_tells_what_each_method_gained(data, tmp_path):
    wrapper = PTCFxModule(_network(), verbose=False).calibrate(data, quality="fast")
    report = build_report(wrapper, data)
    assert report.post_training == wrapper.post_training
    assert "activation_ranges" in str(report)
    assert len(report.to_dict()["post_training"]) == len(wrapper.post_training)
    page = write_html(report, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Post-training methods" in page
    assert "activation ranges" in page
    assert "Post-training methods" not in write_html(
        build_report(wrapper.module), tmp_path / "other.html"
    ).read_text(encoding="utf-8")


def _harm(model, batches):
    """A method that makes everything worse."""
    for parameter in model.parameters():
        parameter.data.mul_(-3.0)
    for quantizer in quantizers(model).values():
        quantizer.clips_act.mul_(0.01)
    return ["all"]


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.filterwarnings("ignore:.*the NPU computes.*:UserWarning")
def test_where_nothing_helps_the_plain_calibration_stays(name, data, monkeypatch):
    for method in ("activation_ranges", "equalization", "biases", "least_squares"):
        monkeypatch.setitem(METHODS, method, _harm)
    x = torch.cat(data)
    learned = [x[:8][torch.arange(8) % 4 != 3], x[8:][torch.arange(8) % 4 != 3]]
    plain = WRAPPERS[name](_network()).calibrate(learned)
    wrapper = WRAPPERS[name](_network()).calibrate(data, quality="fast")
    assert [gain.method for gain in wrapper.post_training if gain.kept] == ["plain"]
    expected = plain.module.state_dict()
    for key, value in wrapper.module.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=0.0, atol=0.0, msg=key)


def test_a_method_that_harms_is_undone_alone(data, monkeypatch):
    without = dataclasses.replace(QUALITIES["fast"], added=())
    monkeypatch.setitem(QUALITIES, "short", without)
    expected = PTCFxModule(_network(), verbose=False).calibrate(data, quality="short")
    monkeypatch.setitem(METHODS, "least_squares", _harm)
    wrapper = PTCFxModule(_network(), verbose=False).calibrate(data, quality="fast")
    assert sum(gain.kept for gain in wrapper.post_training) == 1
    assert not any(g.kept for g in wrapper.post_training if g.method.endswith("least_squares"))
    with torch.no_grad():
        assert torch.equal(wrapper(data[0]), expected(data[0]))


def test_later_methods_are_given_the_float_model(data, monkeypatch):
    """It is the model as it was before the first method that changes its function."""
    given = []

    def look(model, batches, reference):
        given.append(reference(*batches[0]))
        return []

    monkeypatch.setitem(METHODS, "look", look)
    wrapper = PTCFxModule(_network(), verbose=False)
    wrapper.calibrate(data, quality=("equalization", "activation_ranges", "biases", "look"))
    with torch.no_grad():
        expected = _network()(data[0][torch.arange(8) % 4 != 3])
    torch.testing.assert_close(given[0], expected, rtol=1e-4, atol=1e-5)


def test_a_method_that_keeps_the_function_comes_first(data):
    wrapper = PTCFxModule(_network(), verbose=False)
    with pytest.raises(ValueError, match="'equalization' comes behind a method that changes"):
        wrapper.calibrate(data, quality=("activation_ranges", "biases", "equalization"))


def test_ways_that_are_close_are_both_followed(data, monkeypatch):
    """The way that is behind before least squares may be in front after it."""

    def fit(model, batches):
        is_equalized = any(q.clip_high is not None for q in quantizers(model).values())
        for quantizer in quantizers(model).values():
            quantizer.fake_quant_enabled = not is_equalized
        return ["all"]

    monkeypatch.setattr(sys.modules[post_training.__module__], "CLOSE", 1000.0)
    monkeypatch.setitem(METHODS, "least_squares", fit)
    network = _network()
    network[2] = nn.ReLU6()  # whose bound is one per channel after equalization
    wrapper = PTCFxModule(network, qconfig_type="WC4_AT4", verbose=False)
    wrapper.calibrate(data, quality="fast")
    kept = [gain.method for gain in wrapper.post_training if gain.kept]
    assert kept[-1] == "equalization + activation_ranges + biases + least_squares"
    assert len(kept) == 2


def test_several_processes_are_refused(data, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for options in ({"quality": "fast"}, {"max_drop": 1.0}):
        with pytest.raises(ValueError, match="end with different weights: calibrate in one"):
            PTCFxModule(_network(), verbose=False).calibrate(data, **options)
