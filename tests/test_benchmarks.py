import sys

import numpy as np
import peers
import pytest
import torch
from peers.driver import drive, onnx_run
from post_training import LESS, best_without
from ptq_accuracy import Task, logits
from torch import nn

from edgeailite.quantization.methods import QUALITIES


def _task():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    images = torch.rand(7, 3, 8, 8)
    return Task("tiny", model, [torch.rand(2, 3, 8, 8)], list(images.split(4)), torch.arange(7))


def test_driver_runs_what_was_written_as_the_float_network_does(tmp_path, monkeypatch):
    task, seen = _task(), []
    peers.write_network(task, tmp_path)

    def quantize(folder, calibration, option):
        seen.append((calibration, option))
        return onnx_run(folder / "model.onnx")

    monkeypatch.setattr(sys, "argv", ["driver", str(tmp_path), str(tmp_path / "out.npz"), "chip"])
    drive(quantize, batch_size=3)
    with np.load(tmp_path / "out.npz") as found:
        wanted = logits(task.model, task.images)
        torch.testing.assert_close(torch.from_numpy(found["logits"]), wanted)
        assert found["seconds"] > 0
    assert seen[0][1] == "chip"
    np.testing.assert_array_equal(seen[0][0], task.calibration[0].numpy())


def test_a_peer_that_fails_says_why(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no such chip')"]
    with pytest.raises(peers.PeerFailed, match=r"no such chip \(exit status 1"):
        peers._run(command, tmp_path / "log")


def test_spread_takes_images_of_the_whole_set():
    task = _task()
    fewer = task.spread(3)
    assert fewer.labels.tolist() == [0, 2, 4]
    assert torch.equal(torch.cat(fewer.images), torch.cat(task.images)[[0, 2, 4]])
    for count in (None, 7, 100):
        assert task.spread(count).labels.tolist() == list(range(7))


def test_best_without_a_method_keeps_the_others():
    best = QUALITIES["best"]
    for name in best.methods:
        assert best_without(name).methods == tuple(n for n in best.methods if n != name)
    assert "best without activation_ranges" not in LESS
