"""Small networks as microcontrollers run them, by name: ``(module, shape without batch)``."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_CLASSES = 5


def unit(inputs: int, outputs: int, kernel=3, stride=1, groups=1, activation=nn.ReLU):
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers = [convolution, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class Residual(nn.Module):
    """Two adds, with or without ReLU behind, into pool, convolution, or Flatten and Linear."""

    def __init__(self, relu: bool, tail: str) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            unit(2, 8),
            unit(8, 8, activation=None),
            unit(8, 8, activation=None),
        )
        self.relu = nn.ReLU() if relu else nn.Identity()
        self.tail = {
            "pool": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
            "conv": lambda: nn.Sequential(unit(8, 4), nn.Flatten(), nn.Linear(256, 5)),
            "flatten": lambda: nn.Sequential(nn.Flatten(), nn.Linear(512, 5)),
            "linear": lambda: nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(512, 5)),
        }[tail]()

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = self.relu(y + self.b(y))
        return self.tail(self.relu(y + self.c(y)))


class Branches(nn.Module):
    """A concat of branches of different ranges and signs, and adds behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = unit(2, 4), unit(2, 4, activation=nn.ReLU6), unit(2, 4)
        self.c[2] = nn.Identity()
        nn.init.constant_(self.c[1].weight, 5.0)
        self.d, self.head = unit(12, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat((self.a(x), self.b(x), self.c(x)), dim=1)
        z = self.d(y) + y
        return self.head((z + z).mean((2, 3)))


class Shared(nn.Module):
    """One ReLU for all, functions and methods instead of modules, a time series turned by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.relu, self.drop = nn.BatchNorm2d(1), nn.ReLU(), nn.Dropout(0.3)
        self.c1, self.b1 = nn.Conv2d(1, 8, (5, 1), (2, 1), (2, 0)), nn.BatchNorm2d(8)
        self.c2, self.b2 = nn.Conv2d(8, 8, (3, 1), 1, (1, 0)), nn.BatchNorm2d(8)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.permute(0, 2, 1).unsqueeze(-1))
        x = self.relu(self.b1(self.c1(x)))
        x = F.max_pool2d(self.relu(self.b2(self.c2(x)) + x), (4, 1))
        return self.head(self.drop(x.view(x.size(0), -1)))


class FromInput(nn.Module):
    """The network's input is an operand of the add."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.head = unit(2, 2, activation=None), nn.Linear(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.c(x) + x).mean([2, 3]))


class Sequence(nn.Module):
    """Linear on rank 3, transposes, 1-d convolutions, one of them transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Linear(6, 8), nn.Conv1d(8, 8, 3, padding=1)
        self.up, self.head = nn.ConvTranspose1d(8, 4, 2, 2), nn.Linear(80, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(F.relu(self.first(x)).transpose(1, 2)))
        return self.head(F.relu(self.up(y)).flatten(1))


class Gated(nn.Module):
    """SiLU, hard-swish, a gate for each channel, and a hard-swish written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = unit(2, 8, activation=nn.SiLU)
        self.second = unit(8, 8, activation=nn.Hardswish)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.stem(x))
        gate = self.excite(F.leaky_relu(self.squeeze(y.mean((2, 3), keepdim=True)), 0.1))
        y = torch.sigmoid(gate) * y
        return self.head((y * F.relu6(y + 3) / 6).mean((2, 3)))


class WithFloat(nn.Module):
    """A difference, which the target computes in float, between integers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.pad = nn.BatchNorm2d(2), nn.ZeroPad2d(1)
        self.c1, self.b1 = nn.Conv2d(2, 8, 3, padding=2, dilation=2), nn.BatchNorm2d(8)
        self.c2, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.b1(self.c1(F.relu(self.norm(x)))))
        return self.head((F.relu(self.c2(self.pad(y))) - y).mean((2, 3)))


def _pooled(height: int, width: int):
    layers = [unit(2, 8), unit(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    return nn.Sequential(*layers), (2, height, width)


def _average(*args, size: int, **options):
    pool = nn.AvgPool2d(*args, **options)
    return nn.Sequential(unit(2, 8), pool, nn.Flatten(), nn.Linear(8 * size * size, 5)), (2, 12, 12)


def _normalised():
    norm = nn.BatchNorm2d(2)
    norm.weight.data, norm.bias.data = torch.tensor([-0.7, 0.0]), torch.tensor([0.3, 0.9])
    norm.weight.requires_grad_(False)
    layers = [norm, unit(2, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    return nn.Sequential(*layers), (2, 8, 8)


def _perceptron():
    layers = [nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(24, 5)), (12,)


def _series():
    layers = [nn.BatchNorm1d(2), nn.Conv1d(2, 8, 5, 2, 2), nn.BatchNorm1d(8), nn.ReLU()]
    pools = [nn.AvgPool1d(3), nn.AdaptiveAvgPool1d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pools, nn.Linear(8, 5)), (2, 36)


def _flat(*layers: nn.Module, features: int, shape=(2, 8, 8)):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 5)), shape


_AREAS = {6: (2, 3), 7: (1, 7), 9: (3, 3), 10: (2, 5), 12: (3, 4), 49: (7, 7)}
NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    **{f"global_{a}": lambda hw=hw: _pooled(*hw) for a, hw in _AREAS.items()},
    **{f"average_{k}": lambda k=k: _average(k, size=12 // k) for k in (2, 3, 4)},
    "average_overlapping": lambda: _average(3, 2, 1, size=6),
    "average_without_padding": lambda: _average(3, 2, 1, size=6, count_include_pad=False),
    "flatten": lambda: _flat(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), features=512),
    **{
        f"residual{'_relu' * relu}_{tail}": lambda r=relu, t=tail: (Residual(r, t), (2, 8, 8))
        for relu in (False, True)
        for tail in ("pool", "conv", "flatten", "linear")
    },
    "concat": lambda: (Branches(), (2, 8, 8)),
    "relu6": lambda: _flat(
        unit(2, 8, activation=nn.ReLU6), unit(8, 8, activation=nn.ReLU6), features=512
    ),
    "transposed": lambda: _flat(
        unit(2, 8), nn.ConvTranspose2d(8, 4, 2, 2), nn.BatchNorm2d(4), nn.ReLU(), features=1024
    ),
    "depthwise": lambda: _flat(
        unit(2, 8), unit(8, 8, groups=8), unit(8, 8, kernel=1), nn.MaxPool2d(2), features=128
    ),
    "conv1d": _series,
    "perceptron": _perceptron,
    "input_norm": _normalised,
    "norm_between": lambda: _flat(
        unit(2, 8), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU(), features=128
    ),
    "shared": lambda: (Shared(), (32, 1)),
    "add_of_input": lambda: (FromInput(), (2, 8, 8)),
    "sequence": lambda: (Sequence(), (10, 6)),
    "gated": lambda: (Gated(), (2, 8, 8)),
    "with_float": lambda: (WithFloat(), (2, 8, 8)),
}  # fmt: skip


def train_a_little(wrapper: nn.Module, shape: tuple[int, ...], epochs: int = 4) -> nn.Module:
    """Five steps of classifying noise in each epoch; ends in evaluation mode."""
    parameters = [p for p in wrapper.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, 0.05)
    for _ in range(epochs):
        wrapper.train()
        for _ in range(5):
            outputs = wrapper(torch.randn(16, *shape))
            if wrapper.trains:
                loss = F.cross_entropy(outputs, torch.randint(0, NUM_CLASSES, (16,)))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return wrapper.eval()


def trained(name: str, wrapper_type, seed: int = 0, bits: int = 8, **options):
    """A wrapper of the named network, trained a little, and an input of 64."""
    torch.manual_seed(seed)
    network, shape = NETWORKS[name]()
    wrapper = wrapper_type(
        network, qconfig_type={"weight": {"bitwidth": bits}}, total_epochs=4, verbose=False,
        **options,
    )  # fmt: skip
    return train_a_little(wrapper, shape), torch.randn(64, *shape)
