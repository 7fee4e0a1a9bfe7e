import pytest
import torch
from torch import nn

from edgeailite.xnn.utils import model_complexity


def test_convolution_counts_weights_times_output_pixels():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8))
    report = model_complexity(model, (1, 3, 8, 10))
    assert report.macs == {"0": 4 * 5 * 8 * 3 * 9, "2": 2 * 3 * 8 * 9}
    assert report.depthwise == {"2"}
    assert report.params == 8 * 3 * 9 + 8 + 8 * 9 + 8


def test_deconvolution_counts_weights_times_input_pixels():
    report = model_complexity(nn.ConvTranspose2d(3, 8, 4, 2, 1), (1, 3, 5, 6))
    assert sum(report.macs.values()) == 5 * 6 * 3 * 8 * 16


def test_linear_counts_each_row_and_a_batch_multiplies():
    linear = nn.Linear(6, 4)
    assert model_complexity(linear, (3, 5, 6)).macs == {"": 3 * 5 * 6 * 4}
    conv = nn.Conv1d(2, 3, 1)
    one, four = (model_complexity(conv, (n, 2, 7)).gmacs for n in (1, 4))
    assert four == pytest.approx(4 * one)


def test_a_module_called_twice_counts_twice_and_its_parameters_once():
    shared = nn.Conv2d(3, 3, 1, bias=False)
    report = model_complexity(nn.Sequential(shared, shared), (1, 3, 4, 4))
    assert report.macs == {"0": 2 * 16 * 9}
    assert report.params == 9


def test_report_prints_as_one_line():
    model = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 1, groups=8, bias=False))
    text = str(model_complexity(model, (1, 8, 1000, 1000)))
    assert text == "0.072 GMAC (11% depthwise), 0.00 Mparam for an input of 1x8x1000x1000"


def test_model_is_left_as_it_was():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Dropout())
    ).train()
    model[1].eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model_complexity(model, (1, 3, 4, 4))
    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_model_is_left_as_it_was_when_it_fails():
    model = nn.Sequential(nn.Conv2d(3, 4, 1)).train()
    with pytest.raises(RuntimeError, match="channels"):
        model_complexity(model, (1, 5, 4, 4))
    assert model.training
    assert not model[0]._forward_hooks
