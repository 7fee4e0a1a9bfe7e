"""Joint transforms of images and targets, made of torchvision's ``transforms.v2``.

Both transforms take a PIL image (RGB) and a ``Mask`` (1, H, W) of class indices, and give a float32
tensor (3, H, W) of ``(pixel - image_mean) * image_scale`` with pixels 0..255, and a uint8 tensor
(H, W). Whatever moves pixels moves labels alike, by the nearest neighbour; what enters from outside
the image has the mean colour and the label 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from edgeailite.datasets.segmentation import IGNORED
from edgeailite.transforms.common import NormalizeMeanScale, ReverseChannels, size_2d

__all__ = ["RandomScale", "segmentation_eval_transform", "segmentation_train_transform"]


class RandomScale(v2.Transform):
    """Resize to `size` times a random factor, the same for image and target.

    Args:
        size: Height and width at factor 1, in pixels.
        scale: Smallest and largest factor.
    """

    def __init__(self, size: tuple[int, int], scale: tuple[float, float]) -> None:
        super().__init__()
        self.size = size
        self.scale = scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factor."""
        del flat_inputs
        factor = torch.empty(1).uniform_(*self.scale).item()
        return {"size": [max(1, round(side * factor)) for side in self.size]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one of the inputs."""
        return self._call_kernel(v2.functional.resize, inpt, **params, antialias=True)


class _ToModelInput(nn.Module):
    """Image to normalized float32, target to a plain tensor."""

    def __init__(
        self, image_mean: Sequence[float], image_scale: Sequence[float], reverse: bool
    ) -> None:
        super().__init__()
        self.reverse = ReverseChannels() if reverse else nn.Identity()
        self.normalize = NormalizeMeanScale(image_mean, image_scale)

    def forward(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        pixels = image.as_subclass(Tensor)
        return self.normalize(self.reverse(pixels)), target.as_subclass(Tensor)[0]


class _Evaluation(nn.Module):
    """Resize image and target apart."""

    def __init__(
        self, img_resize: tuple[int, int], output_size: tuple[int, int] | None, finish: nn.Module
    ) -> None:
        super().__init__()
        self.resize_image = v2.Compose([v2.ToImage(), v2.Resize(img_resize, antialias=True)])
        self.resize_target = nn.Identity() if output_size is None else v2.Resize(output_size)
        self.finish = finish

    def forward(self, image: Image.Image, target: tv_tensors.Mask) -> tuple[Tensor, Tensor]:
        return self.finish(self.resize_image(image), self.resize_target(target))


def segmentation_train_transform(
    *,
    img_resize: Sequence[int],
    img_crop: Sequence[int],
    image_mean: Sequence[float],
    image_scale: Sequence[float],
    rand_scale: tuple[float, float] = (1.0, 2.0),
    rand_crop: bool = True,
    rand_flip: bool = True,
    rand_rotation: float = 0.0,
    input_channel_reverse: bool = False,
) -> nn.Module:
    """Augment and normalize.

    Args:
        img_resize: Height and width before scale and crop; one number for both.
        img_crop: Height and width of the output; one number for both.
        image_mean: Subtracted, in the channel order that the model sees.
        image_scale: Multiplied afterwards, same order.
        rand_scale: Smallest and largest factor of `img_resize`.
        rand_crop: Crop anywhere (off: the centre).
        rand_flip: Mirror half of the images, left to right.
        rand_rotation: Largest angle, in degrees, to either side.
        input_channel_reverse: Feed BGR.

    Raises:
        ValueError: A size that is neither one nor two numbers.
    """
    size, crop = size_2d(img_resize), size_2d(img_crop)
    rgb_mean = list(reversed(image_mean)) if input_channel_reverse else list(image_mean)
    fill = {tv_tensors.Image: rgb_mean, tv_tensors.Mask: IGNORED}
    steps: list[nn.Module] = [v2.ToImage(), RandomScale(size, rand_scale)]
    if rand_rotation > 0.0:
        bilinear = v2.InterpolationMode.BILINEAR
        steps.append(v2.RandomRotation(rand_rotation, interpolation=bilinear, fill=fill))
    if rand_crop:
        steps.append(v2.RandomCrop(crop, pad_if_needed=True, fill=fill))
    else:
        steps.append(_CenterCrop(crop, fill))
    if rand_flip:
        steps.append(v2.RandomHorizontalFlip())
    steps.append(_ToModelInput(image_mean, image_scale, input_channel_reverse))
    return v2.Compose(steps)


class _CenterCrop(nn.Module):
    """The centre, padded with `fill` where the input is smaller (v2.CenterCrop pads with 0)."""

    def __init__(self, size: tuple[int, int], fill: dict[type, Any]) -> None:
        super().__init__()
        self.size = size
        self.fill = fill

    def forward(self, *inputs: Tensor) -> Any:
        sides = zip(self.size, inputs[0].shape[-2:], strict=True)
        top, left = (-(min(0, have - want) // 2) for want, have in sides)
        padded = v2.Pad([left, top], fill=self.fill)(*inputs)
        return v2.CenterCrop(self.size)(*padded)


def segmentation_eval_transform(
    *,
    img_resize: Sequence[int],
    image_mean: Sequence[float],
    image_scale: Sequence[float],
    output_size: Sequence[int] | None = None,
    input_channel_reverse: bool = False,
) -> nn.Module:
    """Resize and normalize the image; leave the target as it is, or resize it: no randomness.

    Args:
        img_resize: Height and width of the image; one number for both.
        image_mean: Subtracted, in the channel order that the model sees.
        image_scale: Multiplied afterwards, same order.
        output_size: Height and width of the target; None leaves each as it is.
        input_channel_reverse: Feed BGR.

    Raises:
        ValueError: A size that is neither one nor two numbers.
    """
    finish = _ToModelInput(image_mean, image_scale, input_channel_reverse)
    size = None if output_size is None else size_2d(output_size)
    return _Evaluation(size_2d(img_resize), size, finish)
