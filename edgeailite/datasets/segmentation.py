"""Images with one label per pixel: what all segmentation data sets have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from edgeailite.datasets.image_folder import UnreadableImageError, load_rgb, reading

__all__ = [
    "IGNORED",
    "JointTransform",
    "Labels",
    "PairedFiles",
    "SegmentationDataset",
    "voc_palette",
]

IGNORED = 255
"""Label of pixels that neither loss nor metrics count."""
# Pairs that are looked at when a data set is opened; every one is checked when it is loaded.
_CHECKED_AT_START = 16
_UNKNOWN = -1

JointTransform = Callable[[Image.Image, tv_tensors.Mask], tuple[Any, Any]]

logger = logging.getLogger(__name__)


def voc_palette(count: int) -> list[tuple[int, int, int]]:
    """`count` distinct colours: the bits of the index, dealt to red, green and blue in turn.

    Reference: Everingham et al. 2010, the development kit of PASCAL VOC, ``VOClabelcolormap.m``.
    """

    def channel(index: int, first: int) -> int:
        return sum((index >> (3 * bit + first) & 1) << (7 - bit) for bit in range(3))

    return [(channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(count)]


@dataclass(frozen=True)
class Labels:
    """Classes behind the numbers in a target.

    Attributes:
        classes: Names; their places are the class indices that models are trained on.
        palette: A colour (red, green, blue) per class, for pictures.
        indices: Label in the file -> class index, or :data:`IGNORED`. Other labels are errors.
        weights: Weight of each class in the loss, where the data set has historical ones.
    """

    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    indices: Mapping[int, int]
    weights: Sequence[float] | None = None
    table: np.ndarray = field(init=False, repr=False, compare=False)
    """Label -> class index for all bytes, int16; -1 where a label is unknown."""

    def __post_init__(self) -> None:
        """Make the table."""
        table = np.full(256, _UNKNOWN, np.int16)
        table[list(self.indices)] = list(self.indices.values())
        object.__setattr__(self, "table", table)


class SegmentationDataset:
    """Images and their targets; subclasses know where the targets come from.

    Args:
        name: Of the data set, for messages.
        images: Image files.
        labels: What the numbers in targets mean.
        transform: Called with image (PIL, RGB) and target (Mask (1, H, W), uint8 class indices).
        skip_unreadable_images: Give None for an image that can't be decoded, and log its name.

    Attributes:
        classes: Names of the classes.
        labels: The argument.

    Raises:
        ValueError: One of a few targets, spread over the data set, can't be used.
        UnreadableImageError: One of them can't be decoded, and nobody asked to skip such files.
    """

    def __init__(
        self,
        name: str,
        images: Sequence[Path],
        labels: Labels,
        transform: JointTransform | None = None,
        *,
        skip_unreadable_images: bool = False,
    ) -> None:
        self.name = name
        self.images = images
        self.labels = labels
        self.classes = list(labels.classes)
        self.transform = transform
        self.skip_unreadable_images = skip_unreadable_images
        count = min(_CHECKED_AT_START, len(images))
        for index in np.linspace(0, len(images) - 1, count).astype(int).tolist():
            self._check(index)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def read_labels(self, index: int) -> np.ndarray:
        """Labels of an image as the data set has them, (H, W), uint8."""
        raise NotImplementedError

    def target_name(self, index: int) -> str:
        """Name the source of an image's labels, for messages."""
        raise NotImplementedError

    def load_target(self, index: int) -> np.ndarray:
        """Class indices of an image, (H, W), uint8, 255 where ignored.

        Raises:
            ValueError: A label is unknown.
            UnreadableImageError: The target can't be decoded.
        """
        labels = self.read_labels(index)
        target = self.labels.table[labels]
        if target.min() == _UNKNOWN:
            self._raise_unknown(index, labels[target == _UNKNOWN])
        return target.astype(np.uint8)

    def _check(self, index: int) -> None:
        """Look at one image's head and its target; what can't be decoded is left to loading."""
        try:
            with reading(self.images[index]), Image.open(self.images[index]) as image:
                self._check_size(index, image, self.load_target(index))
        except UnreadableImageError:
            if not self.skip_unreadable_images:
                raise

    def _check_size(self, index: int, image: Image.Image, target: np.ndarray) -> None:
        if target.shape != (image.height, image.width):
            raise ValueError(
                f"Image '{self.images[index]}' is {image.height}x{image.width} (height x width), "
                f"its target {self.target_name(index)} {target.shape[0]}x{target.shape[1]}. "
                f"Every pixel needs one label: give both the same size."
            )

    def _raise_unknown(self, index: int, unknown: np.ndarray) -> NoReturn:
        values, counts = np.unique(unknown, return_counts=True)
        found = ", ".join(f"{v} ({n} pixels)" for v, n in zip(values[:5], counts[:5], strict=True))
        known = sorted(self.labels.indices)
        raise ValueError(
            f"Target {self.target_name(index)} has labels that {self.name} does not know: {found}. "
            f"It knows {_ranges(known)}. Take the files with label numbers as the data set "
            f"publishes them, neither colours nor numbers of another set."
        )

    def __getitem__(self, index: int) -> tuple[Any, Any] | None:
        """Transformed image and target; None for an unreadable image that is skipped.

        Raises:
            UnreadableImageError: The image can't be decoded and nobody asked to skip such files.
            ValueError: Image and target differ in size, or a label is unknown.
        """
        try:
            image = load_rgb(self.images[index])
            target = self.load_target(index)
            self._check_size(index, image, target)
        except UnreadableImageError as error:
            if not self.skip_unreadable_images:
                raise
            logger.warning("skipped: %s", error)
            return None
        mask = tv_tensors.Mask(torch.from_numpy(target)[None])
        return (image, mask) if self.transform is None else self.transform(image, mask)


class PairedFiles(SegmentationDataset):
    """Targets that are image files of their own, one number per pixel.

    Args:
        name: Of the data set, for messages.
        pairs: Image and target files.
        labels: What the numbers in targets mean.
        transform: Called with image and target.
        skip_unreadable_images: Give None for a file that can't be decoded, and log its name.

    Raises:
        FileNotFoundError: An image has no target.
        ValueError: One of a few targets, spread over the data set, can't be used.
    """

    def __init__(
        self,
        name: str,
        pairs: Sequence[tuple[Path, Path]],
        labels: Labels,
        transform: JointTransform | None = None,
        *,
        skip_unreadable_images: bool = False,
    ) -> None:
        missing = [(image, target) for image, target in pairs if not target.is_file()]
        if missing:
            image, target = missing[0]
            raise FileNotFoundError(
                f"{len(missing)} of {len(pairs)} images have no target; the first: '{image}' needs "
                f"'{target}'. Add the targets or remove the images."
            )
        self.targets = [target for _, target in pairs]
        images = [image for image, _ in pairs]
        super().__init__(
            name, images, labels, transform, skip_unreadable_images=skip_unreadable_images
        )

    def target_name(self, index: int) -> str:
        """The file, in quotes."""
        return f"'{self.targets[index]}'"

    def read_labels(self, index: int) -> np.ndarray:
        """The file's numbers, (H, W), uint8."""
        path = self.targets[index]
        with reading(path), Image.open(path) as target:
            labels = np.asarray(target)
        if labels.ndim != 2 or labels.dtype != np.uint8:
            raise ValueError(
                f"Target '{path}' is a picture of mode {target.mode}, not one byte per pixel. Take "
                f"the file with label numbers, not the one with colours."
            )
        return labels


def _ranges(values: Sequence[int]) -> str:
    """``0 to 3, 7``: ascending numbers, runs shortened."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{r[0]} to {r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)
