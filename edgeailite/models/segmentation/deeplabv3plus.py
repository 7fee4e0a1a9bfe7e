"""DeepLabV3+Lite: dilated context at stride 16, refined by one feature of stride 4.

Unlike the paper's, the last stage of the encoder is not dilated, all convolutions of the decoder
are separable, and there is one of them instead of two. With a RegNetX encoder they work in groups
of 16 channels.

Reference: Chen et al. 2018, https://arxiv.org/abs/1802.02611, figure 2.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from edgeailite.models.classification.common import RELU
from edgeailite.models.segmentation.common import Prediction, register_family
from edgeailite.xnn.layers.aspp import LiteASPP
from edgeailite.xnn.layers.conv import ConvNormAct
from edgeailite.xnn.layers.elementwise import CatBlock
from edgeailite.xnn.layers.resize import ResizeWith

__all__ = ["DeepLabV3PlusDecoder"]

_ASPP_CHANNELS = 256
_SHORTCUT_CHANNELS = 48


class DeepLabV3PlusDecoder(nn.Module):
    """Pyramid pooling of the last feature, joined with the one of stride 4.

    Args:
        channels: Channels of the encoder's five features, the last of stride 16.
        num_classes: Number of classes.
        group_width: Channels of a group of the 3x3 convolutions.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, group_width: int) -> None:
        super().__init__()
        self.aspp = LiteASPP(
            channels[4], _ASPP_CHANNELS, _ASPP_CHANNELS, group_width=group_width, activation=RELU
        )
        self.resize = ResizeWith(scale_factor=4, mode="bilinear")
        self.shortcut = ConvNormAct(channels[1], _SHORTCUT_CHANNELS, 1, activation=RELU)
        self.cat = CatBlock(dim=1)
        joined = _ASPP_CHANNELS + _SHORTCUT_CHANNELS
        self.prediction = Prediction(joined, num_classes, 4, group_width)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map the five features to logits ``(N, num_classes, H, W)``."""
        context = self.resize(self.aspp(features[4]))
        return self.prediction(self.cat(context, self.shortcut(features[1])))


register_family("deeplabv3plus", DeepLabV3PlusDecoder, output_stride=16)
