"""MobileNetV1.

Reference: Howard et al. 2017, https://arxiv.org/abs/1704.04861, table 1.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from edgeailite.models.classification.common import RELU, check_strides, init_weights
from edgeailite.models.registry import register_model
from edgeailite.xnn.layers.conv import ConvNormAct, ModuleFactory
from edgeailite.xnn.utils import make_divisible

__all__ = ["MobileNetV1", "mobilenetv1"]


class MobileNetV1(nn.Module):
    """A stem and thirteen pairs of a depthwise 3x3 and a 1x1 convolution.

    ``features.0`` is the stem, ``features.{2i - 1}`` and ``features.{2i}`` are the i-th pair.

    Args:
        num_classes: Number of classes.
        width_mult: Factor of all channel counts, which are rounded to multiples of 8.
        strides: Strides of the five stages, each 1 or 2; all 2 where None.
        norm_layer: Makes the normalization of every convolution from a number of channels.
        activation: Makes each activation.

    Raises:
        ValueError: `strides` are not five of 1 or 2.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        strides: Sequence[int] | None = None,
        norm_layer: ModuleFactory = nn.BatchNorm2d,
        activation: ModuleFactory = RELU,
    ) -> None:
        super().__init__()
        s = check_strides(strides)
        stages = [(64, 1, 1), (128, 2, s[1]), (256, 2, s[2]), (512, 6, s[3]), (1024, 2, s[4])]
        block = partial(ConvNormAct, norm_layer=norm_layer, activation=activation)
        channels = make_divisible(32 * width_mult)
        layers: list[nn.Module] = [block(3, channels, 3, s[0])]
        for base, repeats, stage_stride in stages:
            out_channels = make_divisible(base * width_mult)
            for stride in [stage_stride] + [1] * (repeats - 1):
                layers.append(block(channels, channels, 3, stride, groups=channels))
                layers.append(block(channels, out_channels, 1))
                channels = out_channels
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        return self.fc(self.flatten(self.avgpool(self.features(x))))


@register_model("mobilenetv1_x1", family="mobilenetv1")
def mobilenetv1(
    num_classes: int = 1000,
    width_mult: float = 1.0,
    strides: Sequence[int] | None = None,
    norm_layer: ModuleFactory = nn.BatchNorm2d,
    activation: ModuleFactory = RELU,
) -> MobileNetV1:
    """MobileNetV1; arguments as of :class:`MobileNetV1`."""
    return MobileNetV1(num_classes, width_mult, strides, norm_layer, activation)
