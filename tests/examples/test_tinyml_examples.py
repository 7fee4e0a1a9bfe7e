import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import tinyml_bearing_faults as bearing
import tinyml_common
import tinyml_digits as digits
import tinyml_regression as regression

pytestmark = pytest.mark.filterwarnings("ignore:.*the NPU computes.*:UserWarning")


def test_signals_are_the_same_for_the_same_seed():
    for make in (
        lambda seed: bearing.make_data(3, seed),
        lambda seed: regression.make_data(9, seed),
    ):
        (x, y), (again, labels), (other, _) = make(1), make(1), make(2)
        assert torch.equal(x, again)
        assert torch.equal(y, labels)
        assert not torch.equal(x, other)


def test_classes_are_balanced_and_shapes_documented():
    inputs, labels = bearing.make_data(5, 0)
    assert inputs.shape == (20, 1, 512, 1)
    assert torch.bincount(labels).tolist() == [5] * 4
    assert regression.make_data(7, 0)[0].shape == (7, 1, 128)


@pytest.mark.parametrize("kind", bearing.CLASSES[1:])
def test_the_envelope_shows_the_rate_of_the_impacts(kind, monkeypatch):
    monkeypatch.setattr(bearing, "SHAFT_SPEEDS", (50.0, 50.0))
    monkeypatch.setattr(bearing, "WINDOW", 8192)  # a second: the spectrum's step is 1 Hz
    signal = bearing.make_signal(kind, np.random.default_rng(0))
    spectrum = np.fft.rfft(signal)
    band = np.abs(np.fft.rfftfreq(8192, 1 / bearing.SAMPLE_RATE) - bearing.RESONANCE) < 900
    analytic = np.fft.ifft(np.where(band, spectrum, 0), 8192)
    envelope = np.abs(np.fft.rfft(np.abs(analytic) - np.abs(analytic).mean()))
    rate = bearing.impact_rate(kind, 50.0)
    peak = 60 + int(envelope[60:300].argmax())
    modulation = bearing.modulation_rate(kind, 50.0)
    assert any(abs(peak - rate - side) < 6 for side in (0.0, modulation, -modulation))


def test_rates_follow_from_the_geometry():
    outer, inner = (bearing.impact_rate(k, 50.0) for k in ("outer race", "inner race"))
    assert outer + inner == pytest.approx(bearing.NUM_BALLS * 50.0)
    with pytest.raises(ValueError, match="kind is 'cage'; allowed: 'outer race'"):
        bearing.impact_rate("cage", 50.0)


@pytest.fixture(scope="module")
def float_digits():
    """The network of the digits, trained in float as the example does."""
    torch.manual_seed(0)
    model, task, options = digits.make_model(), digits.make_task(), tinyml_common.Options()
    rate, batch_size = task.learning_rate, options.batch_size
    tinyml_common.train(model, task, options.float_epochs, rate, batch_size)
    return model


@pytest.mark.parametrize(("bits", "allowed"), [(8, 0.5), (4, 1.0), (2, 4.0)])
def test_digits_are_nearly_as_good_as_in_float(bits, allowed, float_digits, monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "make_model", lambda: copy.deepcopy(float_digits))
    results = digits.main(
        tinyml_common.Options(weight_bits=bits, float_epochs=0, batch_size=64, output_dir=tmp_path)
    )
    assert results["float"] > 94
    assert results["ONNX Runtime"] >= results["float"] - allowed
    assert results["differing"] == 0
    assert [p.suffix for p in tmp_path.iterdir()] == [".onnx"]


@pytest.mark.parametrize("wrapper", tinyml_common.WRAPPERS)
@pytest.mark.parametrize("example", [bearing, regression])
def test_every_wrapper_runs_every_example(wrapper, example, monkeypatch, tmp_path, capsys):
    make_data = example.make_data
    monkeypatch.setattr(example, "make_data", lambda count, seed: make_data(count // 4, seed))
    options = tinyml_common.Options(wrapper, float_epochs=2, epochs=2, output_dir=tmp_path)
    results = example.main(options)
    assert results["differing"] == 0
    assert results["ONNX Runtime"] == results["integer graph"]
    out = capsys.readouterr().out
    assert "synthetic signals" in out
    assert "RAM: " in out
