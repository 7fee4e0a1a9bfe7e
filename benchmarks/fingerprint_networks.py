"""Networks of ``fingerprints.py``: small ones written here, larger ones of the registries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer

from edgeailite.models import create_model
from edgeailite.xnn.layers import AddBlock, CatBlock, MultBlock, NoQAct, QAct, ResizeWith

NUM_CLASSES = 5


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        make: Builds the module.
        shapes: Of the inputs, without batch.
        scale: Standard deviation of the inputs.
        steps: Training steps per epoch.
        rate: Of the training.
    """

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = ((3, 16, 16),)
    scale: float = 1.0
    steps: int = 5
    rate: float = 0.005


def unit(inputs: int, outputs: int, kernel=3, stride=1, groups=1, activation=nn.ReLU):
    """Convolution, batch norm, activation."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), activation())


def head(channels: int, *layers: nn.Module) -> list[nn.Module]:
    """Global average and classifier."""
    return [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, NUM_CLASSES)]


def chain() -> nn.Module:
    """Convolutions of every kind in a row, pools, dropout."""
    return nn.Sequential(
        *(unit(3, 8), unit(8, 8, groups=8, activation=nn.ReLU6)),
        *(nn.MaxPool2d(3, 2, 1, ceil_mode=True), unit(8, 12, groups=2, activation=nn.Hardtanh)),
        *(nn.Conv2d(12, 12, 3, padding=2, dilation=2, padding_mode="reflect"), nn.ReLU()),
        *(nn.AvgPool2d(2, ceil_mode=True), nn.Dropout(0.2)),
        *head(12, nn.Conv2d(12, 12, 1), nn.Identity()),
    )


class Functional(nn.Module):
    """Layers, arithmetic and moves as functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(8, 3, 3, 3) / 5), nn.Parameter(torch.randn(8))
        self.w2 = nn.Parameter(torch.randn(8, 1, 3, 3) / 3)
        self.w3 = nn.Parameter(torch.randn(8, 3, 2, 2) / 3)
        self.w4, self.b4 = nn.Parameter(torch.randn(5, 12) / 4), nn.Parameter(torch.randn(5))
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        """Its output."""
        x = F.relu(self.norm(F.conv2d(x, self.w1, self.b1, padding=1)))
        y = F.relu6(F.conv2d(F.pad(x, (1, 1, 1, 1)), self.w2, groups=8)) * x
        a, b = y.chunk(2, dim=1)
        c, d = torch.split(x + y, [2, 6], dim=1)
        up = F.conv_transpose2d(x, self.w3, None, 2, 0, 0, 2).clamp(-2.0, 2.0)
        up = torch.cat([F.avg_pool2d(up, 2), c, torch.sub(a, b)], dim=1)
        low = F.interpolate(F.max_pool2d(up, 2), scale_factor=2, mode="bilinear")
        joined = torch.stack([up, low], dim=2).flatten(1, 2)[:, :6]
        tokens = joined.flatten(2).permute(0, 2, 1)
        mixed = torch.matmul(tokens, tokens.transpose(1, 2)[:, :, :6])
        features = torch.cat([mixed.mean(1), d.mean((2, 3))], dim=1)
        return F.linear(F.dropout(features, 0.1, self.training), self.w4, bias=self.b4)


class Residual(nn.Module):
    """One in-place ReLU for all, adds, adaptive pools."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(32, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Its output."""
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(x)))))
        y += x
        y = self.relu(y)
        return self.fc((F.adaptive_max_pool2d(y, 2) + F.adaptive_avg_pool2d(y, (2, 2))).flatten(1))


class Shared(nn.Module):
    """A convolution at two call sites, a unit with batch norm at two, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.unit = unit(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both outputs."""
        x = self.conv(F.relu(self.conv(self.stem(x))))
        return self.unit(x), self.unit(F.max_pool2d(x, 2))


class TwoInputs(nn.Module):
    """Two inputs, one read twice, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(3, 3, 1)
        self.head = nn.Conv2d(11, 2, 1)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both outputs."""
        z = self.a(x) + self.b(y)
        return F.relu(z), self.head(torch.cat([z, self.c(x) + x], 1))


def decoder() -> nn.Module:
    """Transposed convolutions, upsampling of both kinds, pixel shuffle."""
    return nn.Sequential(
        *(unit(3, 8, stride=2), nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=8, bias=False)),
        *(nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.ConvTranspose2d(8, 6, 3, padding=1, groups=2)),
        *(nn.ReLU(), nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(6, 8, 3, 2, 1)),
        *(nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear"), nn.PixelShuffle(2)),
        nn.Conv2d(2, 3, 1),
    )


class Quantizers(nn.Module):
    """QAct and NoQAct, standalone norms, functions that stay in float, module arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, padding=1)
        self.tanh = nn.Sequential(nn.Tanh(), QAct(), nn.MaxPool2d(2))
        self.plain = nn.Sequential(nn.Conv2d(8, 8, 1), NoQAct(), nn.ReLU())
        self.norm, self.after = nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)
        self.add, self.multiply, self.cat = AddBlock(), MultBlock(), CatBlock(dim=1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Hardsigmoid())
        self.resize = ResizeWith(scale_factor=2, mode="bilinear")
        self.out = nn.Sequential(nn.Conv2d(16, 4, 1), nn.LayerNorm((16, 16)), nn.Conv2d(4, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Its output."""
        x = self.conv(self.first(x))
        y = self.plain(self.tanh(x))
        y = self.multiply(y * torch.sigmoid(y), self.gate(y))
        x = self.add(F.relu(self.norm(x)), self.after(self.resize(y)))
        return self.out(self.cat(x, F.hardswish(x)))


class Transformer(nn.Module):
    """A block of a vision transformer on 16 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.places = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 16, 16) / 8)
        self.norms = nn.ModuleList([nn.LayerNorm(16), nn.LayerNorm(16)])
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Its output."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head((x + self.mlp(self.norms[1](x))).mean(1))


def swin() -> nn.Module:
    """A Swin transformer of two stages: window attention, plain and shifted, merged patches."""
    sizes = {"patch_size": [2, 2], "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2]}
    return SwinTransformer(**sizes, window_size=[4, 4], num_classes=NUM_CLASSES)


class Dense(nn.Module):
    """Batch norm and ReLU before each convolution, concatenation after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(12), nn.Conv2d(12, 4, 3, padding=1, bias=False)
        self.norm3, self.fc, self.relu = nn.BatchNorm2d(16), nn.Linear(16, NUM_CLASSES), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Its output."""
        x = self.stem(x)
        x = torch.cat([x, self.conv1(self.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.conv2(self.relu(self.norm2(x)))], 1)
        return self.fc(F.relu(self.norm3(x)).mean((2, 3)))


class Shuffle(nn.Module):
    """Unit of ShuffleNet: chunk, depthwise, cat, channel shuffle by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = unit(3, 8, stride=2), nn.Linear(8, NUM_CLASSES)
        self.branch = nn.Sequential(unit(4, 4, 1), unit(4, 4, groups=4, activation=nn.Identity))

    def forward(self, x: Tensor) -> Tensor:
        """Its output."""
        x1, x2 = self.stem(x).chunk(2, dim=1)
        x = torch.cat((x1, self.branch(x2)), dim=1)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return self.fc(x.mean([2, 3]))


# ---- as microcontrollers run them ---------------------------------------------------------------


def perceptron() -> nn.Module:
    """Linear layers, one with batch norm."""
    layers = [nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(24, NUM_CLASSES))


def series() -> nn.Module:
    """1-d convolutions behind a normalisation of the input."""
    return nn.Sequential(
        *(nn.BatchNorm1d(2), nn.Conv1d(2, 8, 5, 2, 2), nn.BatchNorm1d(8), nn.ReLU()),
        *(nn.Conv1d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.AvgPool1d(3)),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, NUM_CLASSES)),
    )


class TurnedSeries(nn.Module):
    """A time series turned by hand, kernels ``(k, 1)``, one ReLU for all, an add, a max pool."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.relu, self.drop = nn.BatchNorm2d(1), nn.ReLU(), nn.Dropout(0.3)
        self.c1, self.b1 = nn.Conv2d(1, 8, (5, 1), (2, 1), (2, 0)), nn.BatchNorm2d(8)
        self.c2, self.b2 = nn.Conv2d(8, 8, (3, 1), 1, (1, 0)), nn.BatchNorm2d(8)
        self.head = nn.Linear(32, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Its output."""
        x = self.norm(x.permute(0, 2, 1).unsqueeze(-1))
        x = self.relu(self.b1(self.c1(x)))
        x = F.max_pool2d(self.relu(self.b2(self.c2(x)) + x), (4, 1))
        return self.head(self.drop(x.view(x.size(0), -1)))


class Sequence(nn.Module):
    """Linear on rank 3, transposes, 1-d convolutions, one of them transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Linear(6, 8), nn.Conv1d(8, 8, 3, padding=1)
        self.up, self.head = nn.ConvTranspose1d(8, 4, 2, 2), nn.Linear(80, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Its output."""
        y = F.relu(self.conv(F.relu(self.first(x)).transpose(1, 2)))
        return self.head(F.relu(self.up(y)).flatten(1))


class Branches(nn.Module):
    """A concat of branches of different ranges and signs, and adds behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = unit(2, 4), unit(2, 4, activation=nn.ReLU6)
        self.c, self.d = unit(2, 4, activation=nn.Identity), unit(12, 12)
        self.head = nn.Linear(12, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Its output."""
        y = torch.cat((self.a(x), self.b(x), self.c(x)), dim=1)
        z = self.d(y) + y
        return self.head((z + z).mean((2, 3)))


class Added(nn.Module):
    """Two adds, one with the network's input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = unit(2, 2, activation=nn.Identity), unit(2, 8)
        self.c = unit(8, 8, activation=nn.Identity)
        self.tail = nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Tensor:
        """Its output."""
        y = self.b(F.relu(self.a(x) + x))
        return self.tail(F.relu(self.c(y) + y))


class FloatBetween(nn.Module):
    """A difference, which the NPU computes in float; batch norm at the input, dilation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.pad = nn.BatchNorm2d(2), nn.ZeroPad2d(1)
        self.c1, self.b1 = nn.Conv2d(2, 8, 3, padding=2, dilation=2), nn.BatchNorm2d(8)
        self.c2, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Its output."""
        y = F.relu(self.b1(self.c1(F.relu(self.norm(x)))))
        return self.head((F.relu(self.c2(self.pad(y))) - y).mean((2, 3)))


def tiny() -> nn.Module:
    """Depthwise and pointwise units, a batch norm that nothing folds, a transposed convolution."""
    layers = [unit(2, 8), unit(8, 8, groups=8), unit(8, 8, 1), nn.MaxPool2d(2), nn.BatchNorm2d(8)]
    layers += [nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, 2), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, NUM_CLASSES))


def pair() -> nn.Module:
    """Two layers, for what takes long."""
    return nn.Sequential(*head(8, unit(3, 8, stride=2)))


def lifted() -> nn.Module:
    """Channels that never come down to zero, in front of 1x1 convolutions."""
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
    for layer in (first, second):
        nn.init.constant_(layer.bias, 2.0)
    tail = head(8, nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU6(), *tail)


def _registered(name: str, steps: int = 5) -> Network:
    make = partial(create_model, name, num_classes=NUM_CLASSES)
    return Network(make, ((3, 32, 32),), steps=steps, rate=1e-3)


SMALL: dict[str, Network] = {
    "chain": Network(chain),
    "functional": Network(Functional),
    "residual": Network(Residual),
    "shared": Network(Shared),
    "two_inputs": Network(TwoInputs, ((3, 16, 16), (4, 16, 16))),
    "decoder": Network(decoder),
    "quantizers": Network(Quantizers),
    "transformer": Network(Transformer),
    "dense": Network(Dense),
    "shuffle": Network(Shuffle),
    "series": Network(series, ((2, 36),), 3.0),
    "sequence": Network(Sequence, ((10, 6),)),
}
TINY: dict[str, Network] = {
    "perceptron": Network(perceptron, ((12,),)),
    "series": SMALL["series"],
    "turned_series": Network(TurnedSeries, ((32, 1),), 20.0),
    "sequence": SMALL["sequence"],
    "branches": Network(Branches, ((2, 8, 8),)),
    "float_between": Network(FloatBetween, ((2, 8, 8),), 10.0),
    "tiny": Network(tiny, ((2, 8, 8),)),
    "added": Network(Added, ((2, 8, 8),)),
}
LARGE: dict[str, Network] = {
    "mobilenetv1": _registered("mobilenetv1_x0p25"),
    "mobilenetv2": _registered("mobilenetv2_tv_x0p25"),
    "mobilenetv3": _registered("mobilenetv3_small_x0p25"),
    "mobilenetv3_lite": _registered("mobilenetv3_lite_small_x0p25"),
    "resnet18": _registered("resnet18_x0p125"),
    "shufflenetv2": _registered("shufflenetv2_x0p5"),
    "regnetx": _registered("regnetx400mf_x1", 2),
    "swin": Network(swin),
    "deeplabv3plus": _registered("deeplabv3plus_mobilenetv2_tv_edgeailite", 2),
    "unet": _registered("unet_aspp_mobilenetv2_tv_edgeailite", 2),
}
PAIR: dict[str, Network] = {"pair": Network(pair)}
LIFTED: dict[str, Network] = {"lifted": Network(lifted, scale=0.3)}
NETWORKS: dict[str, Network] = {**SMALL, **TINY, **LARGE, **PAIR, **LIFTED}
