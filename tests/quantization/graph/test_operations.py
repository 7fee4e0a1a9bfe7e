import math
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization.graph.calls import operation_of, traits_of
from edgeailite.quantization.graph.capture import capture
from edgeailite.quantization.graph.patterns import clamp_bounds


class Calls(nn.Module):
    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.parts)


def operations(function, *modules):
    graph = capture(Calls(function, *modules)).graph
    return [operation_of(n).name for n in graph.nodes if n.op not in ("placeholder", "output")]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: F.relu(x), "relu"),
        (lambda x: x.relu(), "relu"),
        (lambda x: torch.relu(x), "relu"),
        (lambda x: F.relu6(x), "relu6"),
        (lambda x: x.clamp(0, 1), "clamp"),
        (lambda x: x + x, "add"),
        (lambda x: x.add(x), "add"),
        (lambda x: x - x, "sub"),
        (lambda x: x * x, "mul"),
        (lambda x: torch.cat([x, x]), "cat"),
        (lambda x: torch.stack([x, x]), "stack"),
        (lambda x: x.mean(1), "mean"),
        (lambda x: torch.mean(x, 1), "mean"),
        (lambda x: F.adaptive_avg_pool2d(x, 1), "adaptive_avg_pool"),
        (lambda x: F.max_pool2d(x, 2), "max_pool"),
        (lambda x: F.adaptive_max_pool2d(x, 1), "adaptive_max_pool"),
        (lambda x: F.interpolate(x, scale_factor=2), "resize_nearest"),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), "resize"),
        (lambda x: F.pad(x, (1, 1)), "pad"),
        (lambda x: F.pad(x, (1, 1), value=1.0), "pad_with_value"),
        (lambda x: F.pad(x, (1, 1), mode="reflect"), "pad_from_inside"),
        (lambda x: x.view(-1, 3), "reshape"),
        (lambda x: x.permute(0, 1), "permute"),
        (lambda x: x[:, 1], "index"),
        (lambda x: F.dropout(x, training=False), "dropout"),
        (lambda x: F.dropout(x), "unknown"),
        (lambda x: torch.sigmoid(x), "pointwise"),
        (lambda x: F.normalize(x), "normalize"),
        (lambda x: x * 2, "pointwise"),
        (lambda x: x + 0.5, "pointwise"),
        (lambda x: torch.add(x, x, alpha=2), "unknown"),
    ],
)
def test_functions_and_methods(function, name):
    assert operations(function) == [name]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.Conv2d(1, 1, 1), "convolution"),
        (nn.ConvTranspose1d(1, 1, 1), "transposed_convolution"),
        (nn.Linear(1, 1), "linear"),
        (nn.BatchNorm2d(1), "batch_norm"),
        (nn.ReLU(), "relu"),
        (nn.ReLU6(), "relu6"),
        (nn.Hardtanh(), "hardtanh"),
        (nn.AvgPool2d(2), "avg_pool"),
        (nn.MaxPool2d(2), "max_pool"),
        (nn.Upsample(scale_factor=2, mode="nearest"), "resize_nearest"),
        (nn.Upsample(scale_factor=2, mode="bilinear"), "resize"),
        (nn.ZeroPad2d(1), "pad"),
        (nn.ConstantPad2d(1, 2.0), "pad_with_value"),
        (nn.ReflectionPad2d(1), "pad_from_inside"),
        (nn.PixelShuffle(1), "pixel_shuffle"),
        (nn.Sigmoid(), "pointwise"),
        (nn.LayerNorm(3), "layer_norm"),
        (nn.RMSNorm(3), "rms_norm"),
        (nn.GroupNorm(1, 3), "group_norm"),
        (nn.InstanceNorm2d(3), "instance_norm"),
        (nn.InstanceNorm2d(3, track_running_stats=True), "unknown"),
        (nn.PReLU(), "prelu"),
        (nn.LSTM(1, 1), "recurrent"),
    ],
)
def test_modules(module, name):
    assert operations(lambda x, m: m(x), module) == [name]


def test_arithmetic_on_sizes_is_scalar():
    found = operations(lambda x: x.view(x.size(0), x.shape[1] * 2 // 2, -1))
    assert found[-1] == "reshape"
    assert set(found[:-1]) == {"scalar"}


@pytest.mark.parametrize(
    ("function", "bounds"),
    [
        (lambda x: F.relu6(x), (0.0, 6.0)),
        (lambda x: F.hardtanh(x), (-1.0, 1.0)),
        (lambda x: F.hardtanh(x, -2, 3), (-2.0, 3.0)),
        (lambda x: x.clamp(min=-2, max=1), (-2.0, 1.0)),
        (lambda x: torch.clip(x, 0, 4), (0.0, 4.0)),
        (lambda x: x.clamp(min=0), (0.0, math.inf)),
        (lambda x: x.clamp(x, 1), None),
    ],
)
def test_clamp_bounds(function, bounds):
    node = list(capture(Calls(function)).graph.nodes)[-2]
    assert clamp_bounds(node) == bounds


@pytest.mark.parametrize(
    ("module", "bounds"), [(nn.ReLU6(), (0.0, 6.0)), (nn.Hardtanh(-3, 2), (-3.0, 2.0))]
)
def test_clamp_bounds_of_modules(module, bounds):
    node = list(capture(Calls(lambda x, m: m(x), module)).graph.nodes)[-2]
    assert clamp_bounds(node) == bounds


def test_getitem_of_a_tensor_moves_values():
    nodes = list(capture(Calls(lambda x: x.chunk(2, 1)[1])).graph.nodes)
    assert nodes[-2].target is operator.getitem
    assert traits_of(nodes[-2]).moves_values
