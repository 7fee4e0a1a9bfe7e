"""UNetLite: every stride of the encoder is joined again, down to stride 2.

Reference: Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597, figure 1.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from edgeailite.models.classification.common import RELU
from edgeailite.models.segmentation.common import Prediction, register_family, separable
from edgeailite.xnn.layers.aspp import LiteASPP
from edgeailite.xnn.layers.elementwise import CatBlock
from edgeailite.xnn.layers.resize import ResizeWith

__all__ = ["UNetDecoder"]

_ASPP_CHANNELS = 256
_FEWEST_CHANNELS = 32


class _Level(nn.Module):
    """Double the size, concatenate the encoder's feature, mix by a separable convolution."""

    def __init__(
        self, in_channels: int, feature_channels: int, out_channels: int, group_width: int
    ) -> None:
        super().__init__()
        self.resize = ResizeWith(scale_factor=2, mode="bilinear")
        self.cat = CatBlock(dim=1)
        joined = in_channels + feature_channels
        # The joined width need not be a multiple of the group's.
        self.mix = separable(joined, out_channels, group_width=math.gcd(joined, group_width))

    def forward(self, x: Tensor, feature: Tensor) -> Tensor:
        return self.mix(self.cat(self.resize(x), feature))


class UNetDecoder(nn.Module):
    """From stride 32 down to stride 2, one concatenation at each stride.

    Args:
        channels: Channels of the encoder's five features, the last of stride 32.
        num_classes: Number of classes.
        group_width: Channels of a group of the 3x3 convolutions.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, group_width: int) -> None:
        super().__init__()
        self.aspp = LiteASPP(channels[4], _ASPP_CHANNELS, group_width=group_width, activation=RELU)
        self.levels = nn.ModuleList()
        width = _ASPP_CHANNELS
        for feature in channels[3::-1]:
            mixed = max(feature, _FEWEST_CHANNELS)
            self.levels.append(_Level(width, feature, mixed, group_width))
            width = mixed
        self.prediction = Prediction(width, num_classes, 2, group_width)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map the five features to logits ``(N, num_classes, H, W)``."""
        x = self.aspp(features[4])
        for level, feature in zip(self.levels, features[3::-1], strict=True):
            x = level(x, feature)
        return self.prediction(x)


register_family("unet_aspp", UNetDecoder)
