"""BiFPNLite: features of four strides, exchanged downwards and upwards several times.

Unlike the paper's, sums are not weighted: equal weights need no multiplications and quantize
better.

Reference: Tan et al. 2019, https://arxiv.org/abs/1911.09070, figure 2d.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from edgeailite.models.classification.common import RELU
from edgeailite.models.segmentation.common import Prediction, register_family, separable
from edgeailite.xnn.layers.aspp import LiteASPP
from edgeailite.xnn.layers.conv import ConvNormAct
from edgeailite.xnn.layers.elementwise import AddBlock
from edgeailite.xnn.layers.resize import ResizeWith

__all__ = ["BiFPNDecoder"]

_CHANNELS = 128
_BLOCKS = 4


class _Node(nn.Module):
    """Add features of one size and smooth the sum."""

    def __init__(self, group_width: int) -> None:
        super().__init__()
        self.add = AddBlock()
        self.smooth = separable(_CHANNELS, _CHANNELS, group_width=group_width)

    def forward(self, *features: Tensor) -> Tensor:
        return self.smooth(self.add(*features))


class _TopDown(nn.Module):
    """From the coarsest feature to the finest."""

    def __init__(self, group_width: int) -> None:
        super().__init__()
        self.resize = nn.ModuleList(ResizeWith(scale_factor=2) for _ in range(3))
        self.nodes = nn.ModuleList(_Node(group_width) for _ in range(3))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map features of strides 4, 8, 16, 32 to as many of the same sizes."""
        outputs = [features[3]]
        for resize, node, feature in zip(self.resize, self.nodes, features[2::-1], strict=True):
            outputs.insert(0, node(feature, resize(outputs[0])))
        return outputs


class _BottomUp(nn.Module):
    """From the finest feature to the coarsest, beside what entered the block."""

    def __init__(self, group_width: int) -> None:
        super().__init__()
        self.pool = nn.ModuleList(nn.MaxPool2d(3, 2, 1) for _ in range(3))
        self.nodes = nn.ModuleList(_Node(group_width) for _ in range(3))

    def forward(self, entered: Sequence[Tensor], features: Sequence[Tensor]) -> list[Tensor]:
        """Map two lists of features of strides 4, 8, 16, 32 to one."""
        outputs = [features[0]]
        for level, (pool, node) in enumerate(zip(self.pool, self.nodes, strict=True), 1):
            # At the coarsest stride both lists hold the same feature.
            beside = [entered[level]] if level == 3 else [entered[level], features[level]]
            outputs.append(node(*beside, pool(outputs[-1])))
        return outputs


class BiFPNDecoder(nn.Module):
    """Four exchanges between strides 4, 8, 16 and 32; of the last only the way down is needed.

    Args:
        channels: Channels of the encoder's five features, the last of stride 32.
        num_classes: Number of classes.
        group_width: Channels of a group of the 3x3 convolutions.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, group_width: int) -> None:
        super().__init__()
        lateral = partial(ConvNormAct, out_channels=_CHANNELS, kernel_size=1, activation=None)
        self.laterals = nn.ModuleList(lateral(channels[i]) for i in (1, 2, 3))
        self.aspp = LiteASPP(
            channels[4], _CHANNELS, _CHANNELS, group_width=group_width, activation=RELU
        )
        self.down = nn.ModuleList(_TopDown(group_width) for _ in range(_BLOCKS))
        self.up = nn.ModuleList(_BottomUp(group_width) for _ in range(_BLOCKS - 1))
        self.prediction = Prediction(_CHANNELS, num_classes, 4, group_width)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map the five features to logits ``(N, num_classes, H, W)``."""
        x = [lateral(f) for lateral, f in zip(self.laterals, features[1:4], strict=True)]
        x.append(self.aspp(features[4]))
        for down, up in zip(self.down, self.up, strict=False):
            x = up(x, down(x))
        return self.prediction(self.down[-1](x)[0])


register_family("bifpn_aspp", BiFPNDecoder)
