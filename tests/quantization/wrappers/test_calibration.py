"""Batches of a calibration, and bias correction across restarts, copies and loaded weights."""

import copy
import pickle

import pytest
import torch
from torch import nn

from edgeailite.quantization import (
    GenericTinyMLPTQFxModule,
    PTCFxModule,
    QuantCalibrateModule,
    QuantTestModule,
    QuantTrainModule,
    TINPUTinyMLPTQFxModule,
)
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.wrappers.calibration import BiasCalibration
from edgeailite.quantization.wrappers.calibrator import feed

X = (8, 3, 8, 8)


def model():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    wrapper = QuantCalibrateModule(nn.Sequential(*layers), torch.rand(X), bitwidth_weights=4)
    return wrapper.calibrate([torch.randn(X)]).module


@pytest.mark.parametrize(("limit", "count"), [(None, 3), (2, 2), (3, 3), (5, 3)])
def test_feed_takes_as_many_batches_as_asked(limit, count):
    seen, taken = [], []

    def data():
        for i in range(3):
            taken.append(i)
            yield torch.full((1, 3, 8, 8), float(i)), i

    feed(seen.append, data(), 1, limit)
    assert [float(x.mean()) for x in seen] == taken == list(range(count))


def test_feed_without_data_says_so():
    with pytest.raises(ValueError, match="no batch to calibrate with"):
        feed(print, [], 1, None)


def test_corrections_go_on_after_a_restart():
    batches = [torch.randn(X) for _ in range(4)]
    whole, part = model(), model()
    for network, data in ((whole, batches), (part, batches[:2])):
        calibration = BiasCalibration(network, 0.5)
        for x in data:
            calibration.run(network, (x,), {})
    restarted = BiasCalibration(part, 0.5)
    restarted.restore(calibration.corrections, calibration.num_batches)
    for x in batches[2:]:
        restarted.run(part, (x,), {})
    for key, value in whole.state_dict().items():
        assert torch.equal(value, part.state_dict()[key]), key


def test_corrections_begin_anew_with_loaded_weights():
    network = model()
    state = copy.deepcopy(network.state_dict())
    calibration = BiasCalibration(network, 0.5)
    x = torch.randn(X)
    calibration.run(network, (x,), {})
    first = {path: c.clone() for path, c in calibration.corrections.items()}
    assert any(c.any() for c in first.values())
    network.load_state_dict(state)
    calibration.run(network, (x,), {})
    assert all(torch.equal(c, first[path]) for path, c in calibration.corrections.items())


def test_a_replica_corrects_its_own_biases():
    network = model()
    replica = copy.deepcopy(network)
    calibration = BiasCalibration(network, 0.5)
    before = network.get_submodule("0").bias.clone()
    calibration.run(replica, (torch.randn(X),), {})
    assert torch.equal(network.get_submodule("0").bias, before)
    assert not torch.equal(replica.get_submodule("0").bias, before)
    assert calibration.corrections == {}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_go_on_by_themselves(copied):
    wrapper = QuantCalibrateModule(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.rand(X)).train()
    wrapper(torch.randn(X))
    twin, x = copied(wrapper), torch.randn(X)
    for one in (wrapper, twin):
        one(x)
    states = [one.module.state_dict() for one in (wrapper, twin)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    corrections = [one.bias_calibration.corrections["0"] for one in (wrapper, twin)]
    assert torch.equal(*corrections)
    assert corrections[0].data_ptr() != corrections[1].data_ptr()


# ---- calibration in evaluation mode --------------------------------------------------------------

CALIBRATES = "has no ranges yet and calibrates with the batches that come now"
PTQ = [
    lambda: QuantCalibrateModule(network(), torch.rand(X), constrain_weights=True),
    lambda: PTCFxModule(network()),
    lambda: PTCFxModule(network(), qconfig_type="WC4_AT4", bias_calibration_factor=0.0),
    lambda: GenericTinyMLPTQFxModule(network(), verbose=False),
    lambda: TINPUTinyMLPTQFxModule(network(), verbose=False),
]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))


def same_state(first, second):
    states = first.module.state_dict(), second.module.state_dict()
    return all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("make", PTQ)
def test_a_loop_in_evaluation_mode_calibrates_as_one_in_training_mode(make):
    batches, x = torch.randn(3, *X), torch.randn(X)
    by_training, by_evaluation = make().train(), make().eval()
    with pytest.warns(UserWarning, match=CALIBRATES) as found:
        outputs = [by_evaluation(batch) for batch in batches]
    assert [w.filename for w in found] == [__file__]
    assert all(torch.equal(y, by_training(b)) for y, b in zip(outputs, batches, strict=True))
    assert same_state(by_training, by_evaluation)
    assert not any(y.requires_grad for y in outputs)
    assert not any(q.training for q in quantizers(by_evaluation.module).values())
    # The next evaluation changes nothing any more.
    before = copy.deepcopy(by_evaluation)
    assert torch.equal(by_evaluation.eval()(10 * x), by_training.eval()(10 * x))
    assert same_state(before, by_evaluation)


def begun():
    wrapper = PTQ[1]().eval()
    with pytest.warns(UserWarning, match=CALIBRATES):
        wrapper(torch.randn(X))
    return wrapper


@pytest.mark.parametrize(
    "end",
    [
        lambda wrapper, path: wrapper.convert(),
        lambda wrapper, path: wrapper.export(torch.randn(X), path / "m.onnx", format="FAKEQ_MODEL"),
        lambda wrapper, path: wrapper.eval(),
        lambda wrapper, path: wrapper.calibrate([torch.randn(X)]),
        lambda wrapper, path: wrapper.module.load_state_dict(calibrated_state()),
    ],
    ids=["convert", "export", "eval", "calibrate", "load"],
)
def test_calibration_in_evaluation_mode_ends(end, tmp_path):
    wrapper = begun()
    end(wrapper, tmp_path)
    before = copy.deepcopy(wrapper)
    wrapper(10 * torch.randn(X))
    assert same_state(before, wrapper)


def calibrated_state():
    wrapper = PTQ[1]().calibrate([2 * torch.randn(X)])
    return wrapper.module.state_dict()


def test_frozen_ranges_do_not_calibrate():
    wrapper = PTQ[1]().freeze().eval()
    with pytest.warns(UserWarning, match="never seen data"):
        wrapper(torch.randn(X))
    assert not any(q.has_range for q in quantizers(wrapper.module).values())


@pytest.mark.parametrize(
    "make",
    [
        lambda: QuantTestModule(network(), torch.rand(X)),
        lambda: QuantTrainModule(network(), torch.rand(X), total_epochs=2),
    ],
)
def test_wrappers_that_do_not_calibrate_only_warn(make):
    wrapper = make().eval()
    with pytest.warns(UserWarning, match="never seen data"):
        wrapper(torch.randn(X))
    assert not any(q.has_range for q in quantizers(wrapper.module).values())


# ---- biases that do not fit ----------------------------------------------------------------------


def with_a_large_bias(**options):
    layers = network()
    with torch.no_grad():
        layers[3].weight.mul_(0.01)
        layers[3].bias[0] = 100.0
    return QuantCalibrateModule(layers, torch.rand(X), **options).calibrate([torch.randn(X)])


@pytest.mark.parametrize("way", ["evaluation", "convert", "export"])
def test_a_coarser_scale_is_said_once(way, capsys, tmp_path):
    wrapper, x = with_a_large_bias(), torch.randn(X)
    first = {
        "evaluation": lambda: wrapper(x),
        "convert": wrapper.convert,
        "export": lambda: wrapper.export(x, tmp_path / "m.onnx", format="CLIP_MODEL"),
    }
    first[way]()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("edgeailite: weight scales are coarser, so that biases fit 16 bits: '3'")
    wrapper.eval()(x)
    wrapper.convert()
    assert capsys.readouterr().out == ""


def test_cut_biases_warn_once():
    wrapper = with_a_large_bias(constrain_bias="SATURATE")
    with pytest.warns(UserWarning, match=r"are cut: '3' \(2 of 2\)\. constrain_bias=None") as found:
        wrapper(torch.randn(X))
    assert [w.filename for w in found] == [__file__]
    wrapper.convert()
