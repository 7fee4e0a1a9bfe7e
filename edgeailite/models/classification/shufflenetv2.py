"""ShuffleNetV2 with torchvision's parameter names.

Checkpoints of torchvision's ``shufflenet_v2_x*`` load as they are, such as
https://download.pytorch.org/models/shufflenetv2_x1-5666bf0f80.pth.

Reference: Ma et al. 2018, https://arxiv.org/abs/1807.11164, table 5.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgeailite.models.classification.common import RELU, check_strides, init_weights
from edgeailite.models.registry import register_model
from edgeailite.xnn.layers.conv import ModuleFactory

__all__ = ["ShuffleNetV2", "ShuffleUnit", "shufflenetv2"]

# Channels of stem, three stages and last convolution, by width.
_CHANNELS = {
    0.5: (24, 48, 96, 192, 1024),
    1.0: (24, 116, 232, 464, 1024),
    1.5: (24, 176, 352, 704, 1024),
    2.0: (24, 244, 488, 976, 2048),
}
_DEPTHS = (4, 8, 4)


def _pointwise(inputs: int, outputs: int, activation: ModuleFactory) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), activation()]


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
    return [convolution, nn.BatchNorm2d(channels)]


class ShuffleUnit(nn.Module):
    """Two branches, concatenated and shuffled; at stride 1 one of them is half of the input.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step of the depthwise kernels, in pixels.
        activation: Makes each activation.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, activation: ModuleFactory
    ) -> None:
        super().__init__()
        half = out_channels // 2
        self.splits = stride == 1 and in_channels == out_channels
        self.branch1 = nn.Sequential()
        if not self.splits:
            parts = [*_depthwise(in_channels, stride), *_pointwise(in_channels, half, activation)]
            self.branch1 = nn.Sequential(*parts)
        self.branch2 = nn.Sequential(
            *_pointwise(half if self.splits else in_channels, half, activation),
            *_depthwise(half, stride),
            *_pointwise(half, half, activation),
        )
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``."""
        left, right = x.chunk(2, dim=1) if self.splits else (self.branch1(x), x)
        return self.shuffle(torch.cat((left, self.branch2(right)), dim=1))


class ShuffleNetV2(nn.Module):
    """A stem, three stages of :class:`ShuffleUnit`, a 1x1 convolution and a linear classifier.

    Args:
        num_classes: Number of classes.
        width_mult: 0.5, 1.0, 1.5 or 2.0.
        strides: Strides of the stem's convolution, of its max pool, and of the three stages, each 1
            or 2; all 2 where None. A max pool of stride 1 is left out.
        activation: Makes each activation.

    Raises:
        ValueError: There is no such width, or `strides` are not five of 1 or 2.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        strides: Sequence[int] | None = None,
        activation: ModuleFactory = RELU,
    ) -> None:
        super().__init__()
        if width_mult not in _CHANNELS:
            raise ValueError(
                f"width_mult is {width_mult}; ShuffleNetV2 is defined for "
                f"{', '.join(map(str, _CHANNELS))}."
            )
        s = check_strides(strides)
        stem, *stages, last = _CHANNELS[width_mult]
        convolution = nn.Conv2d(3, stem, 3, s[0], 1, bias=False)
        self.conv1 = nn.Sequential(convolution, nn.BatchNorm2d(stem), activation())
        self.maxpool = nn.MaxPool2d(3, 2, 1) if s[1] == 2 else nn.Identity()
        channels = stem
        made = []
        for width, depth, first in zip(stages, _DEPTHS, s[2:], strict=True):
            units: list[nn.Module] = []
            for stride in [first] + [1] * (depth - 1):
                units.append(ShuffleUnit(channels, width, stride, activation))
                channels = width
            made.append(nn.Sequential(*units))
        self.stage2, self.stage3, self.stage4 = made
        self.conv5 = nn.Sequential(*_pointwise(channels, last, activation))
        self.avgpool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(last, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        x = self.maxpool(self.conv1(x))
        x = self.conv5(self.stage4(self.stage3(self.stage2(x))))
        return self.fc(self.flatten(self.avgpool(x)))


@register_model("shufflenetv2_x1p0", "shufflenetv2_x1p5", family="shufflenetv2")
def shufflenetv2(
    num_classes: int = 1000,
    width_mult: float = 1.0,
    strides: Sequence[int] | None = None,
    activation: ModuleFactory = RELU,
) -> ShuffleNetV2:
    """ShuffleNetV2; arguments as of :class:`ShuffleNetV2`."""
    return ShuffleNetV2(num_classes, width_mult, strides, activation)
