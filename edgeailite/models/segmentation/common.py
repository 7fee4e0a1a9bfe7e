"""Building blocks that the segmentation families share."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from edgeailite.models.classification.common import RELU, init_weights
from edgeailite.models.registry import register_model
from edgeailite.models.segmentation.encoder import ENCODERS, Encoder, EncoderKind
from edgeailite.xnn.layers.conv import ConvDWSepNormAct
from edgeailite.xnn.layers.resize import ResizeWith

__all__ = ["Prediction", "SegmentationModel", "register_family", "separable"]

# Separable 3x3 convolution of the decoders, normalized and activated after both parts.
separable = partial(ConvDWSepNormAct, activation=RELU, dw_activation=RELU)


class Prediction(nn.Sequential):
    """Separable convolution to one channel per class, enlarged to the size of the input.

    Args:
        in_channels: Channels of the feature.
        num_classes: Number of classes.
        stride: Pixels of the image per pixel of the feature.
        group_width: Channels of a group of the 3x3 convolution.
    """

    def __init__(self, in_channels: int, num_classes: int, stride: int, group_width: int) -> None:
        super().__init__()
        self.conv = separable(
            in_channels, num_classes, group_width=group_width, norm_layer=None, activation=None
        )
        self.resize = ResizeWith(scale_factor=stride, mode="bilinear")


class SegmentationModel(nn.Module):
    """An encoder and a decoder; the output has the size of the input.

    Args:
        encoder: From images to features of five strides.
        decoder: From those features to logits.
        input_multiple: Height and width of the input must be multiples of it.

    Raises:
        ValueError: When called with an input of another size.
    """

    def __init__(self, encoder: Encoder, decoder: nn.Module, input_multiple: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.input_multiple = input_multiple
        init_weights(self)
        # Not in forward(): torch.fx traces that, and a traced size can't be compared.
        self.register_forward_pre_hook(_check_input)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to logits ``(N, num_classes, H, W)``."""
        return self.decoder(self.encoder(x))

    def check_size(self, height: int, width: int) -> None:
        """Refuse sizes that the strides don't divide.

        Args:
            height: Of the input, in pixels.
            width: Of the input, in pixels.

        Raises:
            ValueError: With the nearest good size.
        """
        step = self.input_multiple
        if height % step or width % step or not height or not width:
            good = [max(step, round(side / step) * step) for side in (height, width)]
            raise ValueError(
                f"An input of {height}x{width} (height x width) is not divisible by the strides of "
                f"the model: both must be multiples of {step}. The nearest: {good[0]}x{good[1]}."
            )


def _check_input(model: SegmentationModel, inputs: tuple[Any, ...]) -> None:
    model.check_size(*inputs[0].shape[-2:])


def register_family(
    family: str, decoder: Callable[[Sequence[int], int, int], nn.Module], output_stride: int = 32
) -> None:
    """Register `family` on every encoder, under both historical spellings.

    Args:
        family: First part of the name, such as ``deeplabv3plus``.
        decoder: Made from the features' channels, the number of classes, and the group width.
        output_stride: Of the encoder.
    """

    def build(kind: EncoderKind, num_classes: int = 19) -> SegmentationModel:
        encoder = Encoder(kind, output_stride)
        decoded = decoder(encoder.channels, num_classes, encoder.group_width)
        return SegmentationModel(encoder, decoded, output_stride)

    for name, kind in ENCODERS.items():
        register = register_model(
            f"{family}_{name}_edgeailite", aliases=(f"{family}_edgeailite_{name}",)
        )
        register(partial(build, kind))
