"""ResNet with torchvision's parameter names.

Checkpoints of torchvision's ResNets load as they are, such as
https://download.pytorch.org/models/resnet50-19c8e357.pth. Unlike there, every ReLU is a module of
its own and the residual sum is an ``AddBlock``. As there, the stride of a bottleneck sits in its
3x3 convolution.

Reference: He et al. 2015, https://arxiv.org/abs/1512.03385, table 1.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from edgeailite.models.classification.common import RELU, check_strides, init_weights
from edgeailite.models.registry import register_model
from edgeailite.xnn.layers.conv import ModuleFactory
from edgeailite.xnn.layers.elementwise import AddBlock
from edgeailite.xnn.utils import make_divisible

__all__ = ["BasicBlock", "Bottleneck", "ResNet", "resnet18", "resnet50"]


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """Projection of the input where its shape differs from the output's, else None."""
    if stride == 1 and in_channels == out_channels:
        return None
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a residual sum.

    Args:
        in_channels: Channels of the input.
        channels: Channels of both convolutions and of the output.
        stride: Step of the first kernel, in pixels.
        activation: Makes each activation.
    """

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, stride: int, activation: ModuleFactory
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = activation()
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels, stride)
        self.add = AddBlock()
        self.relu2 = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, channels, H / stride, W / stride)``."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu2(self.add(y, shortcut))


class Bottleneck(nn.Module):
    """1x1 reduce, 3x3, 1x1 expand, and a residual sum.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the 3x3 convolution; the output has four times as many.
        stride: Step of the 3x3 kernel, in pixels.
        activation: Makes each activation.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, stride: int, activation: ModuleFactory
    ) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = activation()
        self.conv2 = _conv3x3(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = activation()
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride)
        self.add = AddBlock()
        self.relu3 = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, 4 * channels, H / stride, W / stride)``."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu3(self.add(y, shortcut))


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    channels: int,
    depth: int,
    stride: int,
    activation: ModuleFactory,
) -> nn.Sequential:
    """`depth` blocks; the first one has the stride."""
    first = block(in_channels, channels, stride, activation)
    out_channels = channels * block.expansion
    rest = [block(out_channels, channels, 1, activation) for _ in range(depth - 1)]
    return nn.Sequential(first, *rest)


class ResNet(nn.Module):
    """A stem, four stages of residual blocks and a linear classifier.

    Args:
        block: Kind of residual block.
        depths: Number of blocks in each of the four stages.
        num_classes: Number of classes.
        width_mult: Factor of all channel counts, which are rounded to multiples of 8.
        strides: Strides of the stem's convolution, of its max pool, and of stages two to four,
            each 1 or 2; all 2 where None. A max pool of stride 1 is left out.
        activation: Makes each activation.

    Raises:
        ValueError: `strides` are not five of 1 or 2.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        num_classes: int = 1000,
        width_mult: float = 1.0,
        strides: Sequence[int] | None = None,
        activation: ModuleFactory = RELU,
    ) -> None:
        super().__init__()
        s = check_strides(strides)
        widths = [make_divisible(base * width_mult) for base in (64, 128, 256, 512)]
        self.conv1 = nn.Conv2d(3, widths[0], 7, s[0], padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = activation()
        self.maxpool = nn.MaxPool2d(3, s[1], padding=1) if s[1] > 1 else nn.Identity()
        stage = partial(_stage, block, activation=activation)
        outputs = [channels * block.expansion for channels in widths]
        self.layer1 = stage(widths[0], widths[0], depths[0], 1)
        self.layer2 = stage(outputs[0], widths[1], depths[1], s[2])
        self.layer3 = stage(outputs[1], widths[2], depths[2], s[3])
        self.layer4 = stage(outputs[2], widths[3], depths[3], s[4])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(outputs[3], num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.flatten(self.avgpool(x)))


@register_model("resnet18_x1", family="resnet18")
def resnet18(
    num_classes: int = 1000,
    width_mult: float = 1.0,
    strides: Sequence[int] | None = None,
    activation: ModuleFactory = RELU,
) -> ResNet:
    """ResNet-18; arguments as of :class:`ResNet`."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, width_mult, strides, activation)


@register_model("resnet50_x1", "resnet50_xp5", family="resnet50")
def resnet50(
    num_classes: int = 1000,
    width_mult: float = 1.0,
    strides: Sequence[int] | None = None,
    activation: ModuleFactory = RELU,
) -> ResNet:
    """ResNet-50; arguments as of :class:`ResNet`."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, width_mult, strides, activation)
