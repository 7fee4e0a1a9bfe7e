"""Whole networks in C, for every kind of scales, compared with PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization import (
    GenericTinyMLPTQFxModule,
    PTCFxModule,
    QConfig,
    QuantCalibrateModule,
    QuantSpec,
)
from tests.quantization.helpers import randomize_batch_norms
from tests.quantization.targets.c.compiled import check_together, needs_compiler
from tests.quantization.tinyml_networks import NETWORKS


def unit(inputs, outputs, *args, groups=1, activation=nn.ReLU, **kwargs):
    conv = nn.Conv2d(inputs, outputs, *args, groups=groups, bias=False, **kwargs)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), activation())


class Images(nn.Module):
    """Convolutions of all kinds, sums, products, pools, concats; a map comes out."""

    def __init__(self):
        super().__init__()
        self.stem = unit(3, 10, 3, 2, 1)
        self.depthwise = unit(10, 10, 3, padding=1, groups=10, activation=nn.ReLU6)
        self.pointwise = unit(10, 10, 1, activation=nn.Identity)
        self.grouped = unit(20, 12, (3, 1), padding=(2, 0), dilation=(2, 1), groups=2)
        self.same = nn.Conv2d(12, 33, 4, padding="same", padding_mode="reflect")
        self.up = nn.ConvTranspose2d(33, 9, 3, 2, 1, output_padding=1, groups=3)
        self.down = nn.MaxPool2d(3, 2, 1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(9, 9, 1), nn.Hardsigmoid())

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(x + self.pointwise(self.depthwise(x)))
        x = torch.cat([F.hardswish(x), F.silu(x)], 1)
        x = self.down(self.same(self.grouped(x)))
        x = self.up(x)
        x = x * self.gate(x)
        moved = F.pad(x.flip(3)[:, :, 1:], (0, 0, 1, 0))
        return F.interpolate(x, scale_factor=2)[:, :, 3:], moved - x


class Series(nn.Module):
    """A time series of channels last, 1-d layers, a linear head."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 8, 5, 2), nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8 * 7, 5)

    def forward(self, x):
        x = F.relu(self.a(x.permute(0, 2, 1)))
        x = F.max_pool1d(F.relu(self.b(x)) + x, 2)
        return self.head(self.norm(x).flatten(1))


def free(bits=8, **activation):
    weight = QuantSpec(bits, signed=True, granularity="per_channel", power_of_two=False)
    return QConfig(weight, QuantSpec(8, power_of_two=False, **activation))


SCALES = {
    "power_of_two": lambda m, x: QuantCalibrateModule(m, x, per_channel_q=True),
    "half_up": lambda m, x: QuantCalibrateModule(m, x, rounding="half_up"),
    "few_bits": lambda m, x: QuantCalibrateModule(m, x, bitwidth_weights=4, bitwidth_activations=4),
    "two_bits": lambda m, x: PTCFxModule(m, qconfig_type=free(2), example_inputs=x),
    "affine": lambda m, x: PTCFxModule(m, qconfig_type="WC8_AT8", example_inputs=x),
    "free": lambda m, x: PTCFxModule(m, qconfig_type=free(), example_inputs=x),
    "half_away": lambda m, x: PTCFxModule(
        m, qconfig_type=free(4, rounding="half_away"), example_inputs=x
    ),
}


def calibrated(make, model, x):
    model = randomize_batch_norms(model).eval()
    wrapper = make(model, x)
    wrapper.verbose = False
    return wrapper.calibrate([x, 2 * x]), x


@needs_compiler
@pytest.mark.parametrize("scales", SCALES)
def test_networks_give_the_values_of_pytorch(scales, tmp_path):
    cases = {
        "images": calibrated(SCALES[scales], Images(), torch.randn(3, 3, 30, 30)),
        "series": calibrated(SCALES[scales], Series(), torch.randn(8, 32, 3)),
    }
    for name, (compared, wrong) in check_together(tmp_path, cases).items():
        assert (name, compared > 30, wrong) == (name, True, 0)


@needs_compiler
@pytest.mark.parametrize("flags", [["-O3", "-march=native"], ["-O2", "-DEDGEAILITE_PORTABLE"]])
def test_every_kernel_equals_the_portable_one(flags, tmp_path):
    case = calibrated(SCALES["affine"], Images(), torch.randn(3, 3, 30, 30))
    assert check_together(tmp_path, {"images": case}, flags)["images"][1] == 0


@needs_compiler
def test_networks_of_microcontrollers_are_written(tmp_path):
    cases = {}
    for name, make in NETWORKS.items():
        if name == "with_float":
            continue
        model, shape = make()
        x = torch.randn(4, *shape)
        wrapper = GenericTinyMLPTQFxModule(model, verbose=False, example_inputs=x)
        cases[name] = wrapper.calibrate([x]), x
    found = check_together(tmp_path, cases)
    assert {name: wrong for name, (_, wrong) in found.items() if wrong} == {}
