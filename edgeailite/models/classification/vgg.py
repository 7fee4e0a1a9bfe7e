"""VGG-16 with batch norm, with torchvision's parameter names.

Checkpoints of ``torchvision.models.vgg16_bn`` load as they are, such as
https://download.pytorch.org/models/vgg16_bn-6c64b313.pth.

Reference: Simonyan and Zisserman 2014, https://arxiv.org/abs/1409.1556, table 1, configuration D.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from edgeailite.models.classification.common import RELU, check_strides, init_weights
from edgeailite.models.registry import register_model
from edgeailite.xnn.layers.conv import ModuleFactory
from edgeailite.xnn.utils import make_divisible

__all__ = ["VGG", "vgg16"]

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions
_POOLED = 7


class VGG(nn.Module):
    """Five stages of 3x3 convolutions, each ended by a max pool, and three linear layers.

    Args:
        num_classes: Number of classes.
        width_mult: Factor of the convolutions' channels, which are rounded to multiples of 8.
        strides: Strides of the five max pools, each 1 or 2; all 2 where None. One of stride 1 is
            left out.
        dropout: Probability with which an input of the last two linear layers is dropped.
        activation: Makes each activation.

    Raises:
        ValueError: `strides` are not five of 1 or 2.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        strides: Sequence[int] | None = None,
        dropout: float = 0.5,
        activation: ModuleFactory = RELU,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for (base, depth), stride in zip(_STAGES, check_strides(strides), strict=True):
            out_channels = make_divisible(base * width_mult)
            for _ in range(depth):
                layers.append(nn.Conv2d(channels, out_channels, 3, padding=1))
                layers += [nn.BatchNorm2d(out_channels), activation()]
                channels = out_channels
            layers.append(nn.MaxPool2d(2, 2) if stride == 2 else nn.Identity())
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(_POOLED)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            *(nn.Linear(channels * _POOLED * _POOLED, 4096), activation(), nn.Dropout(dropout)),
            *(nn.Linear(4096, 4096), activation(), nn.Dropout(dropout)),
            nn.Linear(4096, num_classes),
        )
        init_weights(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        return self.classifier(self.flatten(self.avgpool(self.features(x))))


@register_model("vgg16_x1", family="vgg16")
def vgg16(
    num_classes: int = 1000,
    width_mult: float = 1.0,
    strides: Sequence[int] | None = None,
    dropout: float = 0.5,
    activation: ModuleFactory = RELU,
) -> VGG:
    """VGG-16; arguments as of :class:`VGG`."""
    return VGG(num_classes, width_mult, strides, dropout, activation)
