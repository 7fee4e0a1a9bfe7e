import operator

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from edgeailite.quantization.graph.capture import capture
from edgeailite.quantization.graph.operations import Kind, clamp_bounds


class Calls(nn.Module):
    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.parts)


def kinds(function, *modules):
    graph = capture(Calls(function, *modules)).graph
    return [n.meta["kind"] for n in graph.nodes if n.op not in ("placeholder", "output")]


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x: F.relu(x), Kind.RELU),
        (lambda x: x.relu(), Kind.RELU),
        (lambda x: torch.relu(x), Kind.RELU),
        (lambda x: F.relu6(x), Kind.CLAMP),
        (lambda x: x.clamp(0, 1), Kind.CLAMP),
        (lambda x: x + x, Kind.ADD),
        (lambda x: x.add(x), Kind.ADD),
        (lambda x: x - x, Kind.SUB),
        (lambda x: x * x, Kind.MUL),
        (lambda x: torch.cat([x, x]), Kind.CAT),
        (lambda x: torch.stack([x, x]), Kind.CAT),
        (lambda x: x.mean(1), Kind.AVERAGE),
        (lambda x: torch.mean(x, 1), Kind.AVERAGE),
        (lambda x: F.adaptive_avg_pool2d(x, 1), Kind.AVERAGE),
        (lambda x: F.max_pool2d(x, 2), Kind.PRESERVE),
        (lambda x: F.adaptive_max_pool2d(x, 1), Kind.PRESERVE),
        (lambda x: F.interpolate(x, scale_factor=2), Kind.PRESERVE),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), Kind.RESIZE),
        (lambda x: F.pad(x, (1, 1)), Kind.PAD),
        (lambda x: F.pad(x, (1, 1), value=1.0), Kind.FLOAT),
        (lambda x: F.pad(x, (1, 1), mode="reflect"), Kind.PRESERVE),
        (lambda x: x.view(-1, 3), Kind.PRESERVE),
        (lambda x: x.permute(0, 1), Kind.PRESERVE),
        (lambda x: x[:, 1], Kind.PRESERVE),
        (lambda x: F.dropout(x), Kind.PRESERVE),
        (lambda x: torch.sigmoid(x), Kind.FLOAT),
        (lambda x: x * 2, Kind.FLOAT),
        (lambda x: x + 0.5, Kind.FLOAT),
        (lambda x: torch.add(x, x, alpha=2), Kind.FLOAT),
    ],
)
def test_kind_of_functions_and_methods(function, kind):
    assert kinds(function) == [kind]


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.Conv2d(1, 1, 1), Kind.LAYER),
        (nn.ConvTranspose1d(1, 1, 1), Kind.LAYER),
        (nn.Linear(1, 1), Kind.LAYER),
        (nn.BatchNorm2d(1), Kind.BATCH_NORM),
        (nn.ReLU(), Kind.RELU),
        (nn.ReLU6(), Kind.CLAMP),
        (nn.Hardtanh(), Kind.CLAMP),
        (nn.AvgPool2d(2), Kind.AVERAGE),
        (nn.MaxPool2d(2), Kind.PRESERVE),
        (nn.Upsample(scale_factor=2, mode="nearest"), Kind.PRESERVE),
        (nn.Upsample(scale_factor=2, mode="bilinear"), Kind.RESIZE),
        (nn.ZeroPad2d(1), Kind.PAD),
        (nn.ConstantPad2d(1, 2.0), Kind.FLOAT),
        (nn.ReflectionPad2d(1), Kind.PRESERVE),
        (nn.PixelShuffle(1), Kind.PRESERVE),
        (nn.Sigmoid(), Kind.FLOAT),
        (nn.LayerNorm(3), Kind.FLOAT),
        (nn.LSTM(1, 1), Kind.FLOAT),
    ],
)
def test_kind_of_modules(module, kind):
    assert kinds(lambda x, m: m(x), module) == [kind]


def test_arithmetic_on_sizes_is_scalar():
    found = kinds(lambda x: x.view(x.size(0), x.shape[1] * 2 // 2, -1))
    assert found[-1] is Kind.PRESERVE
    assert set(found[:-1]) == {Kind.SCALAR}


@pytest.mark.parametrize(
    ("function", "bounds"),
    [
        (lambda x: F.relu6(x), (0.0, 6.0)),
        (lambda x: F.hardtanh(x), (-1.0, 1.0)),
        (lambda x: F.hardtanh(x, -2, 3), (-2.0, 3.0)),
        (lambda x: x.clamp(min=-2, max=1), (-2.0, 1.0)),
        (lambda x: torch.clip(x, 0, 4), (0.0, 4.0)),
        (lambda x: x.clamp(min=0), None),
        (lambda x: x.clamp(x, 1), None),
    ],
)
def test_clamp_bounds(function, bounds):
    node = list(capture(Calls(function)).graph.nodes)[-2]
    assert clamp_bounds(node, None) == bounds


def test_clamp_bounds_of_modules():
    node = fx.Graph().placeholder("x")
    assert clamp_bounds(node, nn.ReLU6()) == (0.0, 6.0)
    assert clamp_bounds(node, nn.Hardtanh(-3, 2)) == (-3.0, 2.0)


def test_getitem_of_a_tensor_moves_values():
    nodes = list(capture(Calls(lambda x: x.chunk(2, 1)[1])).graph.nodes)
    assert nodes[-2].target is operator.getitem
    assert nodes[-2].meta["kind"] is Kind.PRESERVE
