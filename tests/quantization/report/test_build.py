import math

import pytest
import torch
from torch import nn

from edgeailite.quantization.arithmetic.presets import PRESETS
from edgeailite.quantization.arithmetic.spec import QuantSpec
from edgeailite.quantization.modules.pact2 import PACT2
from edgeailite.quantization.prepare.policy import Policy
from edgeailite.quantization.prepare.prepare import prepare
from edgeailite.quantization.report import build_report, describe, spec_words
from edgeailite.quantization.targets.registry import get_target
from tests.quantization.helpers import trained
from tests.quantization.zoo import Residual, SharedConvolution


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
    assert math.log2(relu.scale).is_integer()
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


def test_describe_is_the_report_without_data():
    model = trained(Residual(), [(3, 8, 8)]).module
    assert describe(model) == str(build_report(model))


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


def test_spec_words():
    words = spec_words(QuantSpec(bit_width=4, signed=None, symmetric=False, power_of_two=False))
    assert words == "int?4 per-tensor affine free scale"


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, a, b):
        return self.left(a) + self.right(b)


def test_batches_of_several_inputs_are_tuples():
    model = trained(TwoInputs(), [(3, 8, 8), (3, 8, 8)])
    report = build_report(model, [(torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8))] * 2)
    assert report.num_inputs == 8
    assert all(e.output_sqnr > 10 for e in report.layers)


def test_positions_follow_the_graph():
    report = build_report(trained(Residual(), [(3, 8, 8)]))
    first = report.activations[0]
    assert (first.path, first.position) == ("conv1.activation_in", 1)
    positions = [e.position for e in (*report.layers, *report.activations)]
    assert sorted(positions) == list(range(1, len(positions) + 1))
    relu = next(a for a in report.activations if a.path == "relu")
    conv1, conv2 = report.layers[:2]
    assert conv1.position < relu.position < conv2.position


def test_weights_range_limits_and_histogram():
    entry = build_report(trained(nn.Sequential(nn.Conv2d(3, 4, 3)), [(3, 8, 8)])).layers[0]
    assert entry.weight_max == max(abs(v) for v in entry.weight_range)
    assert sum(entry.weight_histogram.counts) == entry.num_weights == 4 * 3 * 9
    assert entry.weight_histogram.low <= min(entry.weight_range[0], entry.weight_limits[0])
    assert entry.weight_histogram.high >= max(entry.weight_range[1], entry.weight_limits[1])


def test_a_layer_without_bias_or_without_input_grid_has_no_bias_error():
    layers = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 4, 1)
    first, second = build_report(trained(nn.Sequential(*layers), [(3, 8, 8)])).layers
    assert first.bias_sqnr is None
    assert second.bias_sqnr > 40
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 1)), [(3, 8, 8)], quantize_in=False)
    assert build_report(model).layers[0].bias_sqnr is None


def test_activations_with_data_have_all_their_numbers():
    model = trained(Residual(), [(3, 8, 8)])
    images = torch.randn(4, 3, 8, 8)
    entry = build_report(model, [images]).activations[0]
    low, high = entry.limits
    assert entry.values == (float(images.min()), float(images.max()))
    assert entry.clipped == float(((images < low) | (images > high)).float().mean())
    assert sum(entry.histogram.counts) == images.numel()
    assert entry.percentile <= float(images.abs().max())
    assert entry.grid_sqnr == pytest.approx(entry.sqnr)  # nothing in front of the input's grid


def test_a_grid_adds_to_the_error_that_arrives():
    report = build_report(trained(Residual(), [(3, 8, 8)]), [torch.randn(8, 3, 8, 8)])
    assert all(a.grid_sqnr >= a.sqnr - 0.5 for a in report.activations)


def test_a_sign_that_statistics_decide_is_named():
    model = prepare(
        nn.Sequential(nn.Conv2d(3, 4, 1)),
        Policy(PRESETS["WT8SYMP2_AT8SYMP2"]),
        get_target("onnx_runtime"),
    )
    model.train()
    model(torch.rand(2, 3, 8, 8))
    entries = build_report(model).activations
    assert [e.spec for e in entries] == [
        "uint8 per-tensor power-of-two",
        "int8 per-tensor power-of-two",
    ]


def test_each_call_of_a_shared_layer_is_measured_alone():
    report = build_report(trained(SharedConvolution(), [(3, 8, 8)]), [torch.randn(2, 3, 8, 8)])
    first, second = report.layers[1:]
    assert (first.name, second.name) == ("conv", "conv (call 2)")
    assert first.output_sqnr != second.output_sqnr


def test_a_quantizer_that_is_called_twice_has_two_entries():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.conv = PACT2(signed=False), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.act(self.conv(self.act(x)))

    report = build_report(trained(Twice(), [(3, 8, 8)]), [torch.randn(2, 3, 8, 8)])
    calls = [a for a in report.activations if a.path == "act"]
    assert [a.name for a in calls] == ["act", "act (call 2)"]
    assert calls[0].values != calls[1].values


@pytest.mark.parametrize(("bits", "num_bytes"), [(8, 12 + 4 + 8), (4, 6 + 4 + 8)])
def test_size_counts_bits_scale_and_bias(bits, num_bytes):
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))
    report = build_report(trained(model, [(3, 8, 8)], bitwidth_weights=bits))
    assert report.size.float_bytes == 4 * (12 + 4 * 4)
    assert report.size.quantized_bytes == num_bytes  # 16-bit biases, one scale, no batch norm


def test_size_of_what_stays_float_is_that_of_float():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.PReLU(4), nn.Conv2d(4, 4, 1, bias=False))
    report = build_report(trained(model, [(3, 8, 8)]))
    assert report.size.quantized_bytes == (12 + 4 + 8) + 16 + (16 + 4)


def test_float_and_converted_models_are_refused():
    with pytest.raises(TypeError, match=r"Conv2d holds no quantized model\. Give a wrapper"):
        build_report(nn.Conv2d(3, 4, 1))
    converted = trained(nn.Sequential(nn.Conv2d(3, 4, 1)), [(3, 8, 8)]).convert()
    with pytest.raises(TypeError, match="is converted to integers; report on the wrapper"):
        build_report(converted)


def test_an_infinite_value_is_an_error_that_names_the_place():
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 1)), [(3, 8, 8)])
    with pytest.raises(ValueError, match=r"'0\.activation_in' hold NaN or infinite"):
        build_report(model, [torch.full((1, 3, 8, 8), math.inf)])


def test_an_error_leaves_the_modes_as_they_were():
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 1)), [(3, 8, 8)]).train()
    with pytest.raises(ValueError, match="NaN or infinite"):
        build_report(model, [torch.full((1, 3, 8, 8), math.nan)])
    assert all(m.training for m in model.modules())
    assert all(m.fake_quant_enabled for m in model.modules() if isinstance(m, PACT2))
