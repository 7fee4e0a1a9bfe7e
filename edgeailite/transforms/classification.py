"""Image transforms of the classification scripts, made of torchvision's ``transforms.v2``.

Both transforms take a PIL image (RGB) and give a float32 tensor (3, H, W) of
``(pixel - image_mean) * image_scale`` with pixels 0..255.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn
from torchvision.transforms import v2

from edgeailite.transforms.common import NormalizeMeanScale, ReverseChannels, size_2d

__all__ = [
    "AUTO_AUGMENT_POLICIES",
    "classification_eval_transform",
    "classification_train_transform",
]

AUTO_AUGMENT_POLICIES: dict[str, Callable[[], nn.Module]] = {
    "imagenet": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET),
    "cifar10": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
    "svhn": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.SVHN),
    "randaugment": v2.RandAugment,
    "trivialaugment": v2.TrivialAugmentWide,
    "augmix": v2.AugMix,
}


def _size(values: Sequence[int]) -> list[int]:
    """``[n]``: short side n, or n x n for a crop; ``[height, width]``: exactly that."""
    if len(values) not in (1, 2):
        raise ValueError(f"A size is one or two numbers (height width), got {list(values)}.")
    return list(values)


def _to_model_input(
    image_mean: Sequence[float], image_scale: Sequence[float], input_channel_reverse: bool
) -> list[nn.Module]:
    reverse = [ReverseChannels()] if input_channel_reverse else []
    return [v2.ToImage(), v2.ToPureTensor(), *reverse, NormalizeMeanScale(image_mean, image_scale)]


def classification_train_transform(
    *,
    img_resize: Sequence[int],
    img_crop: Sequence[int],
    image_mean: Sequence[float],
    image_scale: Sequence[float],
    rand_crop: bool = True,
    rand_scale: tuple[float, float] = (0.2, 1.0),
    rand_flip: bool = True,
    input_channel_reverse: bool = False,
    auto_augment: str | None = None,
    random_erasing: float = 0.0,
) -> nn.Module:
    """Augment and normalize.

    Args:
        img_resize: As in `classification_eval_transform`; used where `rand_crop` is off.
        img_crop: Size of the output: one number, or height and width.
        image_mean: Subtracted, in the channel order that the model sees.
        image_scale: Multiplied afterwards, same order.
        rand_crop: Cut a random part, resized to `img_crop`; off: resize and centre crop.
        rand_scale: Smallest and largest area of that part, as fractions of the image.
        rand_flip: Mirror half of the images, left to right.
        input_channel_reverse: Feed BGR.
        auto_augment: A key of `AUTO_AUGMENT_POLICIES`.
        random_erasing: Probability of blanking a random rectangle.

    Raises:
        ValueError: Unknown policy, or a size that is neither one nor two numbers.
    """
    if rand_crop:
        steps = [v2.RandomResizedCrop(size_2d(img_crop), scale=rand_scale, antialias=True)]
    else:
        steps = _resize_and_crop(img_resize, img_crop)
    if rand_flip:
        steps.append(v2.RandomHorizontalFlip())
    if auto_augment is not None:
        if auto_augment not in AUTO_AUGMENT_POLICIES:
            raise ValueError(
                f"Unknown augmentation '{auto_augment}'. "
                f"Available: {', '.join(AUTO_AUGMENT_POLICIES)}."
            )
        steps.append(AUTO_AUGMENT_POLICIES[auto_augment]())
    steps += _to_model_input(image_mean, image_scale, input_channel_reverse)
    if random_erasing > 0.0:
        steps.append(v2.RandomErasing(p=random_erasing))
    return v2.Compose(steps)


def _resize_and_crop(img_resize: Sequence[int], img_crop: Sequence[int]) -> list[nn.Module]:
    return [v2.Resize(_size(img_resize), antialias=True), v2.CenterCrop(size_2d(img_crop))]


def classification_eval_transform(
    *,
    img_resize: Sequence[int],
    img_crop: Sequence[int],
    image_mean: Sequence[float],
    image_scale: Sequence[float],
    input_channel_reverse: bool = False,
) -> nn.Module:
    """Resize, cut out the centre and normalize: no randomness.

    Args:
        img_resize: One number: length of the short side; two: height and width.
        img_crop: Size of the output: one number, or height and width.
        image_mean: Subtracted, in the channel order that the model sees.
        image_scale: Multiplied afterwards, same order.
        input_channel_reverse: Feed BGR.

    Raises:
        ValueError: A size that is neither one nor two numbers.
    """
    steps = _resize_and_crop(img_resize, img_crop)
    return v2.Compose([*steps, *_to_model_input(image_mean, image_scale, input_channel_reverse)])
