"""Atrous spatial pyramid pooling from depthwise-separable convolutions.

Reference: Chen et al. 2018, https://arxiv.org/abs/1802.02611, section 3.1.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from edgeailite.xnn.layers.conv import ConvDWSepNormAct, ConvNormAct, ModuleFactory
from edgeailite.xnn.layers.elementwise import CatBlock

__all__ = ["LiteASPP"]


class LiteASPP(nn.Module):
    """One 1x1 and several dilated depthwise-separable branches, joined and projected by a 1x1.

    The global-pooling branch of the original is left out: its output has the size of one pixel and
    would have to be resized to the input's, which integer hardware does badly.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        branch_channels: Channels of each branch.
        dilations: Dilation of each 3x3 branch, in pixels.
        group_width: Channels of a group of the 3x3 convolutions; 1 is depthwise.
        norm_layer: Makes the normalization of every convolution; None leaves it out.
        activation: Makes the activation of every convolution; None leaves it out.

    Raises:
        ValueError: `dilations` is empty.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        branch_channels: int = 256,
        dilations: Sequence[int] = (6, 12, 18),
        *,
        group_width: int = 1,
        norm_layer: ModuleFactory | None = nn.BatchNorm2d,
        activation: ModuleFactory | None = nn.ReLU,
    ) -> None:
        super().__init__()
        if not dilations:
            raise ValueError("dilations is empty; give one dilation for each 3x3 branch.")
        self.pointwise = ConvNormAct(
            in_channels, branch_channels, 1, norm_layer=norm_layer, activation=activation
        )
        self.dilated = nn.ModuleList(
            ConvDWSepNormAct(
                in_channels,
                branch_channels,
                dilation=dilation,
                group_width=group_width,
                norm_layer=norm_layer,
                activation=activation,
                dw_norm_layer=norm_layer,
                dw_activation=activation,
            )
            for dilation in dilations
        )
        self.cat = CatBlock(dim=1)
        joined = branch_channels * (1 + len(dilations))
        self.project = ConvNormAct(
            joined, out_channels, 1, norm_layer=norm_layer, activation=activation
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H, W)``."""
        branches = [self.pointwise(x), *(branch(x) for branch in self.dilated)]
        return self.project(self.cat(branches))
