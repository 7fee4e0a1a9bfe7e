"""Networks that ``device_cost.py`` measures: MLPerf Tiny, and small time-series networks."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, which is a convolution where the stride is not 1."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *unit(inputs, outputs, 3, stride, 1),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Images in and out."""
        return F.relu(self.body(x) + self.shortcut(x))


def unit(
    inputs: int, outputs: int, kernel: int | tuple[int, int], *args: object
) -> list[nn.Module]:
    """A convolution, a batch norm, a ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, *args, bias=False)  # type: ignore[arg-type]
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def separable(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """A depthwise convolution, then one of single pixels."""
    return [*unit(inputs, inputs, 3, stride, 1, 1, inputs), *unit(inputs, outputs, 1)]


def head(channels: int, classes: int) -> list[nn.Module]:
    """Average of each channel, then a linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def resnet8() -> nn.Module:
    """ResNet8 of MLPerf Tiny (image classification)."""
    blocks = ResidualBlock(16, 16, 1), ResidualBlock(16, 32, 2), ResidualBlock(32, 64, 2)
    return nn.Sequential(*unit(3, 16, 3, 1, 1), *blocks, *head(64, 10))


def ds_cnn() -> nn.Module:
    """DS-CNN of MLPerf Tiny (keyword spotting)."""
    layers = [m for _ in range(4) for m in separable(64, 64)]
    return nn.Sequential(*unit(1, 64, (10, 4), 2, (4, 1)), *layers, *head(64, 12))


def mobilenet_v1() -> nn.Module:
    """MobileNetV1 of width 0.25 of MLPerf Tiny (visual wake words)."""
    widths = [8, 16, 32, 32, 64, 64, *[128] * 6, 256, 256]
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    pairs = zip(widths, widths[1:], strides, strict=False)
    layers = [m for i, o, stride in pairs for m in separable(i, o, stride)]
    return nn.Sequential(*unit(3, 8, 3, 2, 1), *layers, *head(256, 2))


def autoencoder() -> nn.Module:
    """Autoencoder of MLPerf Tiny (anomaly detection)."""
    widths = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128]
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(widths):
        layers += [nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 640))


def time_series(width: int) -> nn.Module:
    """Convolutions over a time series of three channels."""
    layers: list[nn.Module] = []
    for i, o, kernel, stride in (
        (3, width, 9, 4),
        (width, 2 * width, 5, 2),
        (2 * width, 2 * width, 3, 2),
    ):
        layers += [nn.Conv1d(i, o, kernel, stride), nn.BatchNorm1d(o), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2 * width, 4))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet8": (resnet8, (3, 32, 32)),
    "ds_cnn": (ds_cnn, (1, 49, 10)),
    "mobilenet_v1": (mobilenet_v1, (3, 96, 96)),
    "autoencoder": (autoencoder, (640,)),
    "series_1k": (lambda: time_series(6), (3, 256)),
    "series_20k": (lambda: time_series(30), (3, 256)),
}


def multiply_accumulates(model: nn.Module, x: Tensor) -> int:
    """Products that the convolutions and linear layers sum, for one input."""
    count = 0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal count
        weight: Tensor = layer.weight  # type: ignore[assignment]
        count += output[0].numel() * weight[0].numel()

    kinds = nn.Conv1d, nn.Conv2d, nn.Linear
    hooks = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        model(x[:1])
    for hook in hooks:
        hook.remove()
    return count
