"""Operations in C one by one, under sanitizers: power-of-two and free scales, 8 and 16 bits."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization import PTCFxModule, QConfig, QuantSpec
from tests.quantization.targets.c.compiled import check_together, needs_compiler


class Operation(nn.Module):
    """A function of a quantized image, of another one, and of a layer's result."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.function(self, F.relu(self.stem(x)), x)


OPERATIONS = {
    "softmax": Operation(lambda m, y, x: x.flatten(2).softmax(2) * 4),
    "prelu": Operation(lambda m, y, x: m.prelu(x), prelu=nn.PReLU(3)),
    "norm": Operation(lambda m, y, x: m.norm(F.max_pool2d(y, 2)), norm=nn.BatchNorm2d(6)),
    "gain": Operation(lambda m, y, x: x * torch.linspace(-1, 2, 3).reshape(3, 1, 1)),
    "bilinear": Operation(lambda m, y, x: F.interpolate(y, scale_factor=2, mode="bilinear")),
    "resized": Operation(
        lambda m, y, x: F.interpolate(x, size=(13, 5), mode="bilinear", align_corners=True)
    ),
    "matmul": Operation(lambda m, y, x: y.flatten(2) @ y.flatten(2).transpose(1, 2)),
    "stack": Operation(lambda m, y, x: torch.stack([y[:, :3], x], 2).sum(1)),
    "padded": Operation(lambda m, y, x: F.pad(x, (1, 2, 0, 1), value=0.7)),
    "extremes": Operation(lambda m, y, x: x.amax(3) - y[:, 3:].amin(2)),
    "attention": Operation(
        lambda m, y, x: torch.cat([y.max(1, keepdim=True)[0], x.min(1, keepdim=True).values], 1)
    ),
    "split": Operation(lambda m, y, x: torch.maximum(*y.chunk(2, 1)) + torch.minimum(x, y[:, 3:])),
    "pools": Operation(
        lambda m, y, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)
    ),
    "pool_of_the_runtime": Operation(
        lambda m, y, x: torch.cat([F.avg_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 2)], 1)
    ),
    "adaptive": Operation(
        lambda m, y, x: F.adaptive_avg_pool2d(y, (3, 5)) - F.adaptive_max_pool2d(y, (3, 5))
    ),
    "adaptive_line": Operation(lambda m, y, x: F.adaptive_avg_pool1d(x.flatten(2), 7)),
    "transposed": Operation(lambda m, y, x: m.up(y), up=nn.ConvTranspose2d(6, 4, 3, 2, 1, 1)),
    "tokens": Operation(
        lambda m, y, x: m.linear(y.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (8, 8)),
        linear=nn.Linear(6, 5),
    ),
}
GRIDS = {
    "power_of_two": QuantSpec(8, symmetric=False),
    "free": QuantSpec(8, symmetric=False, power_of_two=False),
    "wide": QuantSpec(16),
}
REFUSED = {
    "softmax": "softmax of integers with more than 8 bits",
    "prelu": "PReLU runs in float",
    "norm": "ChannelAffine runs in float",
    "gain": "multiplies integers of more than 8 bits",
    "resized": "sums need more than 30 bits",
    "matmul": "multiplies integers of more than 8 bits",
    "split": "compares integers of more than 8 bits",
}


@needs_compiler
@pytest.mark.parametrize("grid", GRIDS)
def test_operations_give_the_values_of_pytorch(grid, tmp_path):
    spec, cases = GRIDS[grid], {}
    weight = QuantSpec(signed=True, granularity="per_channel", power_of_two=spec.power_of_two)
    x = torch.randn(4, 3, 8, 8)
    for name, operation in OPERATIONS.items():
        wrapper = PTCFxModule(
            copy.deepcopy(operation), qconfig_type=QConfig(weight, spec), example_inputs=x
        ).calibrate([x])
        reason = REFUSED.get(name) if grid == "wide" else None
        if reason is None:
            cases[name] = wrapper, x
        else:
            with pytest.raises(ValueError, match=rf"cannot be written as C: .*{reason}"):
                wrapper.export_c(x, tmp_path, name)
    found = check_together(tmp_path, cases)
    assert {name: wrong for name, (_, wrong) in found.items() if wrong} == {}
    assert all(compared > 50 for compared, _ in found.values())
