"""Sums of so many values that float32 does not hold them: exact on all levels."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization import PTCFxModule, QuantCalibrateModule, TINPUTinyMLPTQFxModule
from edgeailite.quantization.graph.window_sums import AdaptiveSum, Mean, Sum, WindowSum
from edgeailite.quantization.integer.exact_sums import IntegerAverage, PowerOfTwoAverage
from edgeailite.quantization.integer.grid import Grid
from edgeailite.quantization.report import build_report
from edgeailite.quantization.verify import verify

CALLS = {
    "image": lambda y: F.adaptive_avg_pool2d(y, 1),
    "sum": lambda y: y.sum((2, 3)),
    "all": lambda y: y.mean(),
    "uneven": lambda y: F.adaptive_avg_pool2d(y, (1, 4)),
    "overlapping": lambda y: F.avg_pool2d(y, 300, 290, 20, ceil_mode=True),
}


class Calls(nn.Module):
    """Averages of values far from zero, whose sums reach 26 bits."""

    def __init__(self, calls=CALLS, channels=2):
        super().__init__()
        self.conv, self.calls = nn.Conv2d(1, channels, 1), calls
        nn.init.constant_(self.conv.bias, 3.0)

    def forward(self, x):
        y = self.conv(x)
        return [call(y) for call in self.calls.values()]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["WC8_AT8", "WT8SYMP2_AT8SYMP2"])
def test_averages_of_large_images_are_integers_in_evaluation_and_in_files(preset, tmp_path):
    torch.manual_seed(0)
    x = torch.rand(2, 1, 600, 601)
    wrapper = PTCFxModule(Calls(), qconfig_type=preset, example_inputs=x, verbose=False)
    wrapper.calibrate([x], quality="fast")
    assert build_report(wrapper).floats == {}
    found = verify(wrapper, [x], wrapper.export(x, tmp_path / "m.onnx"))
    assert found.mismatches["evaluation vs integer graph"] == 0
    assert found.mismatches["integer graph vs ONNX Runtime, optimizations on"] == 0


@pytest.mark.slow
def test_sums_of_16_bit_values_are_exact_in_evaluation_and_in_files(tmp_path):
    torch.manual_seed(0)
    calls = {
        "image": CALLS["image"],
        "all but channels": lambda y: y.mean((0, 2, 3)),
        "windows": lambda y: F.avg_pool2d(y, 30, 10, 3, ceil_mode=True),
    }
    x = torch.rand(4, 1, 60, 60)
    wrapper = QuantCalibrateModule(
        Calls(calls, 32), dummy_input=x, bitwidth_weights=16, bitwidth_activations=16
    )
    wrapper.calibrate([x], quality="fast")
    assert verify(wrapper, [x], wrapper.export(x, tmp_path / "m.onnx")).exact


def test_evaluation_takes_the_integers_of_large_images_alone():
    calls = {name: CALLS[name] for name in ("image", "sum", "all")}
    wrapper = PTCFxModule(Calls(calls), qconfig_type="WT8SYMP2_AT8SYMP2", verbose=False)
    wrapper.calibrate([torch.rand(1, 1, 300, 300)], quality="fast")
    evaluation = wrapper.eval()._evaluation._integers
    for side, wide in ((300, True), (8, False)):
        images = torch.rand(1, 1, side, side)
        assert evaluation.is_needed_for(wrapper.module, (images,), {}) is wide
        assert evaluation.is_needed_for(wrapper.module, (), {"x": images}) is wide


AVERAGES = {
    "mean": Mean((2, 3), True),
    "mean of all": Mean((), False),
    "sum": Sum((2, 3), False),
    "image": nn.AdaptiveAvgPool2d(1),
    "uneven": nn.AdaptiveAvgPool2d((1, 3)),
    "blocks": nn.AvgPool2d(20),
    "overlapping": nn.AvgPool2d(20, 7, 3, ceil_mode=True, count_include_pad=False),
}


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("scales", [(0.25, 0.25), (0.3, 0.37)])
def test_averages_of_16_bit_values_are_exact_sums_divided_once(name, scales):
    torch.manual_seed(0)
    average = AVERAGES[name]
    source, output = (Grid(scale, 0, -32768, 32767, 16) for scale in scales)
    kind = PowerOfTwoAverage if scales[0] == 0.25 else IntegerAverage
    q = torch.randint(20000, 32768, (8, 128, 40, 40)).float()
    if isinstance(average, Mean):
        exact = average(q.double())
    else:
        sums = (AdaptiveSum if name in ("image", "uneven") else WindowSum)(average)
        exact = sums(q.double()) / sums.areas(q.shape)
    wanted = torch.round(exact.float() * (torch.tensor(scales[0]) / torch.tensor(scales[1])))
    assert torch.equal(kind(average, source, output)(q), wanted.clamp(-32768, 32767))


def test_the_npu_refuses_sums_of_more_bits_by_name():
    wrapper = TINPUTinyMLPTQFxModule(
        nn.Sequential(nn.Conv2d(1, 4, 1), nn.AdaptiveAvgPool2d(1)), verbose=False
    )
    with pytest.raises(ValueError, match=r"^'1': it sums 90000 values of 8 bits.* in two steps"):
        wrapper.train()(torch.rand(1, 1, 300, 300))
