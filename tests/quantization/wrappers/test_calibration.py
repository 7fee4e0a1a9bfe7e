"""Batches of a calibration, and bias correction across restarts, copies and loaded weights."""

import copy
import pickle

import pytest
import torch
from torch import nn

from edgeailite.quantization import QuantCalibrateModule
from edgeailite.quantization.wrappers.calibration import BiasCalibration, feed

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

    feed(seen.append, model(), data(), limit)
    assert [float(x.mean()) for x in seen] == taken == list(range(count))


def test_feed_without_data_says_so():
    with pytest.raises(ValueError, match="no batch to calibrate with"):
        feed(print, model(), [], None)


def test_corrections_go_on_after_a_restart():
    batches = [torch.randn(X) for _ in range(4)]
    whole, part = model(), model()
    for network, data in ((whole, batches), (part, batches[:2])):
        calibration = BiasCalibration(network, 0.5)
        for x in data:
            calibration.run(network, (x,), {})
    restarted = BiasCalibration(part, 0.5)
    restarted.restore(calibration.corrections)
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
