"""MobileNetV3 with torchvision's parameter names, and its lite form for integer hardware.

Checkpoints of torchvision's ``mobilenet_v3_large`` and ``mobilenet_v3_small`` load as they are. The
lite form has no squeeze-and-excitation and ReLU everywhere: what integer hardware computes.

Reference: Howard et al. 2019, https://arxiv.org/abs/1905.02244, tables 1 and 2.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from edgeailite.models.classification.common import RELU, check_strides, init_weights
from edgeailite.models.registry import register_model
from edgeailite.xnn.layers.conv import ConvNormAct, ModuleFactory
from edgeailite.xnn.layers.elementwise import AddBlock, MultBlock
from edgeailite.xnn.utils import make_divisible

__all__ = ["InvertedResidual", "MobileNetV3", "SqueezeExcitation", "mobilenetv3"]

HARD_SWISH = partial(nn.Hardswish, inplace=True)
_norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)


class _Row(NamedTuple):
    """A line of the paper's table: kernel, expanded and output channels, SE, h-swish, stage."""

    kernel: int
    expanded: int
    channels: int
    squeezes: bool
    is_hard: bool
    stage: int | None = None  # where the stride of this stage is


_LARGE = (
    _Row(3, 16, 16, False, False),
    _Row(3, 64, 24, False, False, 1),
    _Row(3, 72, 24, False, False),
    _Row(5, 72, 40, True, False, 2),
    _Row(5, 120, 40, True, False),
    _Row(5, 120, 40, True, False),
    _Row(3, 240, 80, False, True, 3),
    _Row(3, 200, 80, False, True),
    _Row(3, 184, 80, False, True),
    _Row(3, 184, 80, False, True),
    _Row(3, 480, 112, True, True),
    _Row(3, 672, 112, True, True),
    _Row(5, 672, 160, True, True, 4),
    _Row(5, 960, 160, True, True),
    _Row(5, 960, 160, True, True),
)
_SMALL = (
    _Row(3, 16, 16, True, False, 1),
    _Row(3, 72, 24, False, False, 2),
    _Row(3, 88, 24, False, False),
    _Row(5, 96, 40, True, True, 3),
    _Row(5, 240, 40, True, True),
    _Row(5, 240, 40, True, True),
    _Row(5, 120, 48, True, True),
    _Row(5, 144, 48, True, True),
    _Row(5, 288, 96, True, True, 4),
    _Row(5, 576, 96, True, True),
    _Row(5, 576, 96, True, True),
)
_NETWORKS = {"large": (_LARGE, 1280), "small": (_SMALL, 1024)}  # rows, width of the classifier


class SqueezeExcitation(nn.Module):
    """Scale each channel by a number that two 1x1 convolutions make of all channels' averages.

    Args:
        channels: Channels of the input.
        squeezed: Channels between the two convolutions.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.activation = nn.Conv2d(channels, squeezed, 1), nn.ReLU()
        self.fc2, self.scale_activation = nn.Conv2d(squeezed, channels, 1), nn.Hardsigmoid()
        self.mult = MultBlock()

    def forward(self, x: Tensor) -> Tensor:
        """Any ``(N, channels, H, W)``; the same out."""
        scale = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        return self.mult(self.scale_activation(scale), x)


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter depthwise, squeeze and excite, project by 1x1 without activation.

    Args:
        in_channels: Channels of the input.
        expanded: Channels of the depthwise part; the input's leave out the expansion.
        out_channels: Channels of the output.
        kernel_size: Side of the depthwise kernel, odd.
        stride: Step of the depthwise kernel, in pixels.
        squeezes: Whether it has a :class:`SqueezeExcitation`.
        activation: Makes each activation.
    """

    def __init__(
        self,
        in_channels: int,
        expanded: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        squeezes: bool,
        activation: ModuleFactory,
    ) -> None:
        super().__init__()
        unit = partial(ConvNormAct, norm_layer=_norm)
        layers: list[nn.Module] = []
        if expanded != in_channels:
            layers.append(unit(in_channels, expanded, 1, activation=activation))
        layers.append(
            unit(expanded, expanded, kernel_size, stride, groups=expanded, activation=activation)
        )
        if squeezes:
            layers.append(SqueezeExcitation(expanded, make_divisible(expanded // 4)))
        layers.append(unit(expanded, out_channels, 1, activation=None))
        self.block = nn.Sequential(*layers)
        self.add = AddBlock() if stride == 1 and in_channels == out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``."""
        y = self.block(x)
        return y if self.add is None else self.add(x, y)


def _make_block(
    row: _Row,
    in_channels: int,
    width: Callable[[int], int],
    strides: Sequence[int],
    is_lite: bool,
) -> InvertedResidual:
    return InvertedResidual(
        in_channels,
        width(row.expanded),
        width(row.channels),
        row.kernel,
        1 if row.stage is None else strides[row.stage],
        row.squeezes and not is_lite,
        HARD_SWISH if row.is_hard and not is_lite else RELU,
    )


class MobileNetV3(nn.Module):
    """A stem, inverted residuals, a 1x1 convolution and two linear layers.

    Args:
        size: ``large`` or ``small``.
        is_lite: No squeeze-and-excitation, ReLU everywhere.
        num_classes: Number of classes.
        width_mult: Factor of all channel counts, which are rounded to multiples of 8.
        strides: Strides of the five stages, each 1 or 2; all 2 where None.
        dropout: Probability with which an input of the classifier is dropped in training.

    Raises:
        ValueError: There is no such size, or `strides` are not five of 1 or 2.
    """

    def __init__(
        self,
        size: str,
        is_lite: bool,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        strides: Sequence[int] | None = None,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if size not in _NETWORKS:
            raise ValueError(f"size is {size!r}; allowed: {', '.join(map(repr, _NETWORKS))}.")
        rows, hidden = _NETWORKS[size]
        s = check_strides(strides)
        hard = RELU if is_lite else HARD_SWISH

        def width(base: int) -> int:
            return make_divisible(base * width_mult)

        channels = width(16)
        unit = partial(ConvNormAct, norm_layer=_norm)
        layers: list[nn.Module] = [unit(3, channels, 3, s[0], activation=hard)]
        for row in rows:
            layers.append(_make_block(row, channels, width, s, is_lite))
            channels = width(row.channels)
        layers.append(unit(channels, 6 * channels, 1, activation=hard))
        self.features = nn.Sequential(*layers)
        self.avgpool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        hidden = width(hidden) if width_mult > 1 else hidden
        self.classifier = nn.Sequential(
            *(nn.Linear(6 * channels, hidden), hard(), nn.Dropout(dropout)),
            nn.Linear(hidden, num_classes),
        )
        init_weights(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        return self.classifier(self.flatten(self.avgpool(self.features(x))))


def mobilenetv3(size: str, is_lite: bool, **options: object) -> MobileNetV3:
    """MobileNetV3; further arguments as of :class:`MobileNetV3`."""
    return MobileNetV3(size, is_lite, **options)  # type: ignore[arg-type]


for _size in _NETWORKS:
    for _lite in (False, True):
        _family = f"mobilenetv3_{'lite_' * _lite}{_size}"
        register_model(f"{_family}_x1", family=_family)(partial(mobilenetv3, _size, _lite))
