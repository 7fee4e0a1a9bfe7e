"""RegNetX with the parameter names of pycls, where it was published.

Checkpoints of pycls load as they are (their weights are under ``model_state``). torchvision has the
same networks from 800 MF on under other names; ``load_weights`` changes them by
:data:`TORCHVISION_NAMES`. torchvision's ``regnet_x_400mf`` is a wider network.

Reference: Radosavovic et al. 2020, https://arxiv.org/abs/2003.13678, table 12.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from edgeailite.models.classification.common import RELU, check_strides, init_weights
from edgeailite.models.registry import register_model
from edgeailite.xnn.layers.conv import ModuleFactory
from edgeailite.xnn.layers.elementwise import AddBlock

__all__ = ["TORCHVISION_NAMES", "RegNetX", "XBlock", "regnetx"]

# Widths and depths of the four stages, width of a group.
_NETWORKS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "regnetx400mf": ((32, 64, 160, 384), (1, 2, 7, 12), 16),
    "regnetx800mf": ((64, 128, 288, 672), (1, 3, 7, 5), 16),
    "regnetx1p6gf": ((72, 168, 408, 912), (2, 4, 10, 2), 24),
    "regnetx3p2gf": ((96, 192, 432, 1008), (2, 6, 15, 2), 48),
}
_STEM = 32
# torchvision's names to ours.
TORCHVISION_NAMES = {
    r"^stem\.0\.": "stem.conv.",
    r"^stem\.1\.": "stem.bn.",
    **{
        rf"^trunk_output\.block{stage}\.block{stage}-{block}\.": f"s{stage}.b{block + 1}."
        for stage in range(1, 5)
        for block in range(max(max(depths) for _, depths, _ in _NETWORKS.values()))
    },
    r"\.f\.([abc])\.0\.": r".f.\1.",
    r"\.f\.([abc])\.1\.": r".f.\1_bn.",
    r"\.proj\.0\.": ".proj.",
    r"\.proj\.1\.": ".bn.",
    r"^fc\.": "head.fc.",
}


class _Transform(nn.Module):
    """1x1, grouped 3x3 with the stride, 1x1; names as in pycls."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, groups: int, activation: ModuleFactory
    ) -> None:
        super().__init__()
        self.a = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.a_bn, self.a_relu = nn.BatchNorm2d(channels), activation()
        self.b = nn.Conv2d(channels, channels, 3, stride, 1, groups=groups, bias=False)
        self.b_bn, self.b_relu = nn.BatchNorm2d(channels), activation()
        self.c = nn.Conv2d(channels, channels, 1, bias=False)
        self.c_bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b_relu(self.b_bn(self.b(self.a_relu(self.a_bn(self.a(x))))))
        return self.c_bn(self.c(x))


class XBlock(nn.Module):
    """A bottleneck without reduction, its 3x3 convolution in groups, and a residual sum.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        stride: Step of the 3x3 kernel, in pixels.
        group_width: Channels of a group.
        activation: Makes each activation.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        group_width: int,
        activation: ModuleFactory,
    ) -> None:
        super().__init__()
        same = stride == 1 and in_channels == channels
        self.proj = None if same else nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        self.bn = None if same else nn.BatchNorm2d(channels)
        self.f = _Transform(in_channels, channels, stride, channels // group_width, activation)
        self.add, self.relu = AddBlock(), activation()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, channels, H / stride, W / stride)``."""
        shortcut = x if self.proj is None or self.bn is None else self.bn(self.proj(x))
        return self.relu(self.add(shortcut, self.f(x)))


class RegNetX(nn.Module):
    """A stem, four stages of :class:`XBlock` and a linear classifier.

    Args:
        widths: Channels of the four stages.
        depths: Blocks of the four stages.
        group_width: Channels of a group.
        num_classes: Number of classes.
        strides: Strides of the stem and of the four stages, each 1 or 2; all 2 where None.
        activation: Makes each activation.

    Raises:
        ValueError: `strides` are not five of 1 or 2.
    """

    other_names = (TORCHVISION_NAMES,)
    """Tables for ``load_weights``: names of checkpoints from elsewhere to those of this model."""

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        group_width: int,
        num_classes: int = 1000,
        strides: Sequence[int] | None = None,
        activation: ModuleFactory = RELU,
    ) -> None:
        super().__init__()
        s = check_strides(strides)
        self.stem = nn.Sequential()
        self.stem.add_module("conv", nn.Conv2d(3, _STEM, 3, s[0], 1, bias=False))
        self.stem.add_module("bn", nn.BatchNorm2d(_STEM))
        self.stem.add_module("relu", activation())
        channels, stages = _STEM, []
        for width, depth, first in zip(widths, depths, s[1:], strict=True):
            stage = nn.Sequential()
            for b, stride in enumerate([first] + [1] * (depth - 1), 1):
                block = XBlock(channels, width, stride, group_width, activation)
                stage.add_module(f"b{b}", block)
                channels = width
            stages.append(stage)
        self.s1, self.s2, self.s3, self.s4 = stages
        self.head = nn.Sequential()
        self.head.add_module("avg_pool", nn.AdaptiveAvgPool2d(1))
        self.head.add_module("flatten", nn.Flatten())
        self.head.add_module("fc", nn.Linear(channels, num_classes))
        init_weights(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        x = self.s4(self.s3(self.s2(self.s1(self.stem(x)))))
        return self.head(x)


def regnetx(
    name: str,
    num_classes: int = 1000,
    strides: Sequence[int] | None = None,
    activation: ModuleFactory = RELU,
) -> RegNetX:
    """A RegNetX by its name, such as ``regnetx800mf``; arguments as of :class:`RegNetX`."""
    return RegNetX(*_NETWORKS[name], num_classes, strides, activation)


for _name in _NETWORKS:
    register_model(f"{_name}_x1", f"{_name}_x1_bgr")(partial(regnetx, _name))
