import copy
from functools import partial

import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule, QuantCalibrateModule, TINPUTinyMLPTQFxModule
from edgeailite.quantization.methods.block_tuning import tune_blocks
from edgeailite.quantization.methods.registry import METHODS
from edgeailite.quantization.verify.compare import verify
from tests.quantization.helpers import randomize_batch_norms

X = torch.zeros(1, 3, 12, 12)


@pytest.fixture(autouse=True)
def _few_iterations(monkeypatch):
    monkeypatch.setitem(METHODS, "block_tuning", partial(tune_blocks, iterations=5))


def _network():
    torch.manual_seed(0)
    return randomize_batch_norms(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Conv2d(8, 4, 1),
        )
    ).eval()


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 12, 12, generator=generator) for _ in range(2)]


def _metric(values):
    """A metric that gives the next of `values` whenever a model is evaluated."""
    left = iter(values)
    return lambda model: next(left)


def test_the_first_step_that_holds_is_the_last(data, capsys):
    network = _network()
    wrapper = PTCFxModule(copy.deepcopy(network)).calibrate(data, max_drop=100.0)
    assert list(wrapper.drop_result.drops) == ["plain"]
    assert wrapper.drop_result.holds
    assert "'plain' suffices" in capsys.readouterr().out
    learned = [x[torch.arange(8) % 4 != 3] for x in data]  # it is judged by the others
    plain = PTCFxModule(copy.deepcopy(network), verbose=False).calibrate(learned)
    with torch.no_grad():
        assert torch.equal(wrapper(data[0]), plain(data[0]))


def test_the_drop_is_that_of_the_classes_on_held_out_images(data):
    wrapper = PTCFxModule(_network(), qconfig_type="WC4_AT8", verbose=False)
    wrapper.calibrate(data, max_drop=100.0)
    held = torch.cat([x[3::4] for x in data])
    with torch.no_grad():
        same = wrapper(held).argmax(1) == _network()(held).argmax(1)
    assert wrapper.drop_result.drop == pytest.approx(100 - 100 * float(same.float().mean()))
    assert f"of {same.numel()} decisions" in str(wrapper.drop_result)


def test_steps_follow_each_other_as_a_metric_demands(data):
    wrapper = PTCFxModule(_network(), verbose=False)
    wrapper.calibrate(data, max_drop=0.5, metric=_metric([80.0, 70.0, 79.0, 79.6]))
    assert wrapper.drop_result.drops == pytest.approx({"plain": 10.0, "fast": 1.0, "best": 0.4})
    assert wrapper.drop_result.step == "best"
    assert wrapper.post_training


@pytest.mark.parametrize("kind", ["fx", "pact2"])
def test_more_bits_for_the_layers_that_need_them(kind, data, tmp_path):
    if kind == "fx":
        wrapper = PTCFxModule(_network(), qconfig_type="WC8_AT8", verbose=False)
    else:
        wrapper = QuantCalibrateModule(_network(), dummy_input=X)
    wrapper.calibrate(data, max_drop=0.5, metric=_metric([80, 70, 70, 70, 70, 79.9]))
    result = wrapper.drop_result
    assert result.step == "16 bits in 1 layer"
    assert len(result.layers) == 1
    assert result.layers[0] == result.sensitive[0]
    assert wrapper.module.get_submodule(result.layers[0]).weight_quantizer.spec.bit_width == 16
    wrapper.export(X, tmp_path / "model.onnx")
    assert sum(verify(wrapper, data, tmp_path / "model.onnx").mismatches.values()) == 0


@pytest.mark.filterwarnings("ignore:.*the NPU computes.*:UserWarning")
def test_what_cannot_be_reached_is_said(data, capsys):
    wrapper = TINPUTinyMLPTQFxModule(_network(), 1, verbose=True)
    wrapper.calibrate(data, max_drop=0.0, metric=_metric([80, 70, 71, 72]))
    result = wrapper.drop_result
    assert not result.holds
    assert list(result.drops) == ["plain", "fast", "best"]  # the NPU has no layers of 16 bits
    printed = capsys.readouterr().out
    assert "not reached: 8.00, at most 0" in printed
    assert f"'{result.sensitive[0]}'" in printed
    best = TINPUTinyMLPTQFxModule(_network(), 1, verbose=False).calibrate(data, quality="best")
    with torch.no_grad():
        assert torch.equal(wrapper(data[0]), best(data[0]))


def test_the_model_ends_in_the_step_with_the_smallest_drop(data):
    """More bits that did not help are taken back."""
    wrapper = PTCFxModule(_network(), qconfig_type="WC8SYMP2_AT8SYMP2", verbose=False)
    wrapper.calibrate(data, max_drop=0.0, metric=_metric([80, 70, 79, 78, *[75] * 4]))
    result = wrapper.drop_result
    assert (result.step, result.drop, result.layers) == ("fast", 1.0, ())
    fast = PTCFxModule(_network(), qconfig_type="WC8SYMP2_AT8SYMP2", verbose=False)
    fast.calibrate(data, quality="fast")
    assert wrapper.module.state_dict().keys() == fast.module.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(wrapper(data[0]), fast(data[0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": -1.0}, "max_drop is -1.0; it is 0 or above"),
        ({"max_drop": 1.0, "quality": "fast"}, "tries one quality after the other"),
        ({"metric": _metric([])}, "give max_drop too"),
    ],
)
def test_arguments_that_are_refused(options, message, data):
    with pytest.raises(ValueError, match=message):
        PTCFxModule(_network(), verbose=False).calibrate(data, **options)


def test_an_output_without_classes_needs_a_metric(data):
    network = nn.Sequential(_network(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"has shape \(2, 1\): give metric="):
        PTCFxModule(network, verbose=False).calibrate(data, max_drop=1.0)
