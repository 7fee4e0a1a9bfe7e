"""FPNLite: a feature pyramid of separable convolutions on top of pyramid pooling.

Reference: Lin et al. 2016, https://arxiv.org/abs/1612.03144, figure 3.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from edgeailite.models.classification.common import RELU
from edgeailite.models.segmentation.common import Prediction, register_family, separable
from edgeailite.xnn.layers.aspp import LiteASPP
from edgeailite.xnn.layers.conv import ConvNormAct
from edgeailite.xnn.layers.elementwise import AddBlock
from edgeailite.xnn.layers.resize import ResizeWith

__all__ = ["FPNDecoder"]

_CHANNELS = 256


class _Level(nn.Module):
    """Double the size, add the encoder's feature through a 1x1 convolution, smooth."""

    def __init__(self, in_channels: int, group_width: int) -> None:
        super().__init__()
        self.resize = ResizeWith(scale_factor=2, mode="bilinear")
        self.lateral = ConvNormAct(in_channels, _CHANNELS, 1, activation=None)
        self.add = AddBlock()
        self.smooth = separable(_CHANNELS, _CHANNELS, group_width=group_width)

    def forward(self, x: Tensor, feature: Tensor) -> Tensor:
        return self.smooth(self.add(self.resize(x), self.lateral(feature)))


class FPNDecoder(nn.Module):
    """From stride 32 down to stride 4, one sum at each stride.

    Args:
        channels: Channels of the encoder's five features, the last of stride 32.
        num_classes: Number of classes.
        group_width: Channels of a group of the 3x3 convolutions.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, group_width: int) -> None:
        super().__init__()
        self.aspp = LiteASPP(channels[4], _CHANNELS, group_width=group_width, activation=RELU)
        self.levels = nn.ModuleList(_Level(channels[i], group_width) for i in (3, 2, 1))
        self.prediction = Prediction(_CHANNELS, num_classes, 4, group_width)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map the five features to logits ``(N, num_classes, H, W)``."""
        x = self.aspp(features[4])
        for level, feature in zip(self.levels, features[3:0:-1], strict=True):
            x = level(x, feature)
        return self.prediction(x)


register_family("fpn_aspp", FPNDecoder)
