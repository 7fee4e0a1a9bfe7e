"""MobileNetV2 with torchvision's parameter names.

Checkpoints of ``torchvision.models.mobilenet_v2`` load as they are, such as
https://download.pytorch.org/models/mobilenet_v2-b0353104.pth. Every activation is a ReLU6, as
there: with ReLU a public network falls from 86.2 to 74.8 % top-1 (500 images of ImageNet).

Reference: Sandler et al. 2018, https://arxiv.org/abs/1801.04381, table 2.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from edgeailite.models.classification.common import RELU6, check_strides, init_weights
from edgeailite.models.registry import register_model
from edgeailite.xnn.layers.conv import ConvNormAct, ModuleFactory
from edgeailite.xnn.layers.elementwise import AddBlock
from edgeailite.xnn.utils import make_divisible

__all__ = ["InvertedResidual", "MobileNetV2", "mobilenetv2", "mobilenetv2_x2_t2"]


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter by depthwise 3x3, project by 1x1 without activation.

    The input is added to the output where both have the same shape.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step of the depthwise kernel, in pixels.
        expand_ratio: Channels of the depthwise part over `in_channels`; 1 leaves out the expansion.
        activation: Makes each activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        expand_ratio: int,
        activation: ModuleFactory,
    ) -> None:
        super().__init__()
        hidden = in_channels * expand_ratio
        block = partial(ConvNormAct, activation=activation)
        expand = [block(in_channels, hidden, 1)] if expand_ratio != 1 else []
        self.conv = nn.Sequential(
            *expand,
            block(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.add = AddBlock() if stride == 1 and in_channels == out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``."""
        y = self.conv(x)
        return y if self.add is None else self.add(x, y)


class MobileNetV2(nn.Module):
    """A stem, seventeen inverted residuals, a 1x1 convolution and a linear classifier.

    Args:
        num_classes: Number of classes.
        width_mult: Factor of all channel counts, which are rounded to multiples of 8; the last
            convolution keeps its 1280 channels below 1.
        strides: Strides of the five stages, each 1 or 2; all 2 where None.
        dropout: Probability with which an input of the classifier is dropped in training.
        activation: Makes each activation; ``nn.ReLU`` suits weights that were trained with it.
        expand_ratio: Channels of the depthwise parts over their inputs', but for the first.

    Raises:
        ValueError: `strides` are not five of 1 or 2.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        strides: Sequence[int] | None = None,
        dropout: float = 0.2,
        activation: ModuleFactory = RELU6,
        expand_ratio: int = 6,
    ) -> None:
        super().__init__()
        s, t = check_strides(strides), expand_ratio
        # expand ratio, channels, repeats, stride of the first
        stages = [(1, 16, 1, 1), (t, 24, 2, s[1]), (t, 32, 3, s[2]), (t, 64, 4, s[3])]
        stages += [(t, 96, 3, 1), (t, 160, 3, s[4]), (t, 320, 1, 1)]
        channels = make_divisible(32 * width_mult)
        layers: list[nn.Module] = [ConvNormAct(3, channels, 3, s[0], activation=activation)]
        for ratio, base, repeats, first in stages:
            out_channels = make_divisible(base * width_mult)
            for stride in [first] + [1] * (repeats - 1):
                layers.append(InvertedResidual(channels, out_channels, stride, ratio, activation))
                channels = out_channels
        last = make_divisible(1280 * max(1.0, width_mult))
        layers.append(ConvNormAct(channels, last, 1, activation=activation))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        init_weights(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        return self.classifier(self.flatten(self.avgpool(self.features(x))))


@register_model("mobilenetv2_tv_x1", family="mobilenetv2_tv")
@register_model("mobilenetv2_x1", family="mobilenetv2")
def mobilenetv2(
    num_classes: int = 1000,
    width_mult: float = 1.0,
    strides: Sequence[int] | None = None,
    dropout: float = 0.2,
    activation: ModuleFactory = RELU6,
) -> MobileNetV2:
    """MobileNetV2; arguments as of :class:`MobileNetV2`."""
    return MobileNetV2(num_classes, width_mult, strides, dropout, activation)


@register_model("mobilenetv2_tv_x2_t2")
def mobilenetv2_x2_t2(
    num_classes: int = 1000,
    strides: Sequence[int] | None = None,
    dropout: float = 0.2,
    activation: ModuleFactory = RELU6,
) -> MobileNetV2:
    """Twice the width at expand ratio 2: fewer depthwise weights; as :class:`MobileNetV2`."""
    return MobileNetV2(num_classes, 2.0, strides, dropout, activation, expand_ratio=2)
