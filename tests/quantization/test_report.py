import json
import math

import pytest
import torch
from torch import nn

from edgeailite.quantization.fake_quantize import NoQAct
from edgeailite.quantization.report import build_report, describe, spec_words, sqnr
from edgeailite.quantization.spec import QuantSpec
from edgeailite.quantization.wrappers import QuantTrainModule
from tests.quantization.helpers import trained
from tests.quantization.zoo import Residual, SharedConvolution, WeightStandardization


def test_layers_activations_and_their_numbers():
    model = trained(Residual(), [(3, 8, 8)])
    report = build_report(model, [torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)])
    assert [e.path for e in report.layers] == ["conv1", "conv2", "conv3", "fc"]
    assert all(10 < e.weight_sqnr < 80 for e in report.layers)
    assert all(e.output_sqnr > 10 for e in report.layers)
    assert report.layers[0].weight_spec == "int8 per-tensor power-of-two"
    relu = next(a for a in report.activations if a.path == "relu")
    assert relu.spec == "uint8 per-tensor power-of-two"
    assert relu.batches == 4
    assert math.log2(relu.step).is_integer()
    assert report.floats == {}


def test_without_data_there_is_no_output_sqnr():
    report = build_report(trained(Residual(), [(3, 8, 8)]))
    assert all(e.output_sqnr is None for e in report.layers)


def test_fewer_bits_are_noisier():
    noise = [
        build_report(trained(Residual(), [(3, 8, 8)], bitwidth_weights=b)).layers[0].weight_sqnr
        for b in (3, 5, 8)
    ]
    assert noise[0] < noise[1] < noise[2]


def test_what_stays_float_and_why():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.Sigmoid(),
        nn.Conv2d(4, 4, 1),
        NoQAct(),
        WeightStandardization(4, 2, 3),
    )
    floats = build_report(trained(model, [(3, 8, 8)])).floats
    assert floats["1"] == "Sigmoid has no integer form"
    assert floats["3"] == "NoQAct asks for float"
    assert "no weight of its own is quantized here" in floats.values()


def test_unseen_ranges_and_outliers_are_warned_of():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = 90.0
    wrapper = QuantTrainModule(model, torch.randn(1, 3, 8, 8), total_epochs=4)
    warnings = build_report(wrapper).warnings
    assert any("'0.activation_in' has never seen data" in w for w in warnings)
    assert any("'0': its largest weight is" in w and "per_channel_q" in w for w in warnings)


def test_per_channel_weights_are_not_warned_of():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = 90.0
    wrapper = QuantTrainModule(
        model, torch.randn(1, 3, 8, 8), total_epochs=4, per_channel_q="all", constrain_weights=False
    )
    assert not any("largest weight" in w for w in build_report(wrapper).warnings)


def test_text_and_dictionary_hold_the_same():
    model = trained(Residual(), [(3, 8, 8)])
    report = build_report(model, [torch.randn(2, 3, 8, 8)])
    text = str(report)
    data = json.loads(json.dumps(report.to_dict()))
    for entry in data["layers"] + data["activations"]:
        assert entry["path"] in text
    assert "conv1" in describe(model.module)


def test_looking_changes_nothing():
    model = trained(Residual(), [(3, 8, 8)]).train()
    state = {k: v.clone() for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    modes = {n: m.training for n, m in model.named_modules()}
    build_report(model, [torch.randn(4, 3, 8, 8)])
    assert modes == {n: m.training for n, m in model.named_modules()}
    for key, value in state.items():
        assert torch.equal(model.state_dict()[key], value), key


def test_shared_layers_are_listed_for_each_call():
    report = build_report(trained(SharedConvolution(), [(3, 8, 8)]), [torch.randn(2, 3, 8, 8)])
    assert [e.path for e in report.layers] == ["stem", "conv", "conv"]


def test_sqnr():
    x = torch.randn(1000)
    assert sqnr(x, x) == math.inf
    assert sqnr(x, x * 0.9) == pytest.approx(20.0, abs=1e-4)


def test_spec_words():
    words = spec_words(QuantSpec(bit_width=4, signed=None, symmetric=False, power_of_two=False))
    assert words == "int?4 per-tensor affine free scale"
