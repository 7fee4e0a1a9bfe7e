"""Classification networks without their classifiers, as encoders of segmentation models."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from edgeailite.models.classification.mobilenetv2 import mobilenetv2
from edgeailite.models.classification.regnet import regnetx
from edgeailite.models.classification.resnet import resnet50

__all__ = ["ENCODERS", "Encoder", "EncoderKind"]

# Smallest image (height and width) in which every stage still has a pixel.
_PROBE = 64


@dataclass(frozen=True)
class EncoderKind:
    """Recipe that makes an encoder of a classification network."""

    build: Callable[..., nn.Module]
    """Makes the network; takes `strides`."""
    stages: tuple[tuple[str, ...], ...]
    """Module paths of each stage: of the stem at stride 2, and of strides 4, 8, 16 and 32."""
    group_width: int = 1
    """Channels of a group in the decoder's separable convolutions; 1 is depthwise."""


def _features(first: int, last: int) -> tuple[str, ...]:
    return tuple(f"features.{index}" for index in range(first, last + 1))


_REGNETX = (("stem",), ("s1",), ("s2",), ("s3",), ("s4",))
# RegNetX computes in groups throughout; its decoders do so too.
_REGNETX_GROUP = 16

ENCODERS: dict[str, EncoderKind] = {
    "mobilenetv2_tv": EncoderKind(
        mobilenetv2,
        (_features(0, 0), _features(1, 3), _features(4, 6), _features(7, 13), _features(14, 17)),
    ),
    "resnet50": EncoderKind(
        resnet50,
        (("conv1", "bn1", "relu"), ("maxpool", "layer1"), ("layer2",), ("layer3",), ("layer4",)),
    ),
    **{
        name: EncoderKind(partial(regnetx, name), _REGNETX, _REGNETX_GROUP)
        for name in ("regnetx400mf", "regnetx800mf", "regnetx1p6gf", "regnetx3p2gf")
    },
}


class Encoder(nn.Module):
    """The convolutions of a classification network, which keep their names.

    Args:
        kind: Which network.
        output_stride: Pixels of the input per pixel of the last feature, 32 or 16; at 16 the last
            stage keeps the size of the one before.

    Attributes:
        channels: Channels of the five features.
        group_width: Channels of a group that suit the decoder.
        other_names: Tables from the names of checkpoints from elsewhere to the network's.
    """

    def __init__(self, kind: EncoderKind, output_stride: int = 32) -> None:
        super().__init__()
        network = kind.build(strides=(2, 2, 2, 2, output_stride // 16))
        for path in (path for stage in kind.stages for path in stage):
            self._take(network, path)
        self.stages = kind.stages
        self.group_width = kind.group_width
        self.other_names = getattr(network, "other_names", ())
        with torch.no_grad():
            features = self.eval()(torch.zeros(1, 3, _PROBE, _PROBE))
        self.train()
        self.channels = tuple(feature.shape[1] for feature in features)

    def _take(self, network: nn.Module, path: str) -> None:
        """Give a part of the network the same path here."""
        owner, _, name = path.rpartition(".")
        if owner and not hasattr(self, owner):
            self.add_module(owner, nn.Sequential())
        self.get_submodule(owner).add_module(name, network.get_submodule(path))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images ``(N, 3, H, W)`` to features of strides 2, 4, 8, 16 and the output stride."""
        features = []
        for stage in self.stages:
            for path in stage:
                x = self.get_submodule(path)(x)
            features.append(x)
        return tuple(features)
