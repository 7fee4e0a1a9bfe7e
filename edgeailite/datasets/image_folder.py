"""Image folders: ``root/train/CLASS/*`` and ``root/val/CLASS/*`` (or ``validation``)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from edgeailite.datasets.registry import Split, Transform, register_dataset

__all__ = [
    "ImageFolderClassification",
    "UnreadableImageError",
    "load_rgb",
    "reading",
    "split_folder",
]

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "validation")}

logger = logging.getLogger(__name__)


class UnreadableImageError(ValueError):
    """An image file that can't be decoded."""


def split_folder(root: Path, split: Split) -> Path:
    """Find the folder of a split.

    Raises:
        FileNotFoundError: `root` or the split's folder does not exist.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"Data folder '{root}' does not exist. Pass the folder that holds 'train' and 'val' "
            f"with --data_path; `python data/make_digits.py` makes a small one."
        )
    for name in SPLIT_FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    what = {"train": "training set", "val": "validation set"}[split]
    looked_for = " or ".join(f"'{root / name}'" for name in SPLIT_FOLDERS[split])
    present = sorted(entry.name for entry in root.iterdir() if entry.is_dir()) or ["no folders"]
    raise FileNotFoundError(
        f"No {what}: looked for {looked_for}, found {', '.join(present)}. "
        f"Put the images in {looked_for}, one folder per class."
    )


def _class_names(folder: Path) -> list[str]:
    names = sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."
    )
    if not names:
        raise ValueError(
            f"'{folder}' holds no class folders. Expected one folder per class, images inside."
        )
    return names


def _image_files(folder: Path) -> list[Path]:
    found = sorted(
        Path(parent) / name
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if Path(name).suffix.lower() in IMAGE_SUFFIXES
    )
    if not found:
        raise ValueError(
            f"Class folder '{folder}' holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}). "
            f"Add images or remove the folder."
        )
    return found


def _check_same_classes(root: Path, classes: list[str], split: Split) -> None:
    """Compare with the other split, where there is one: class indices come from sorted names."""
    other: Split = "val" if split == "train" else "train"
    folders = [root / name for name in SPLIT_FOLDERS[other] if (root / name).is_dir()]
    if not folders:
        return
    differing = sorted(set(classes) ^ set(_class_names(folders[0])))
    if differing:
        shown = ", ".join(differing[:5]) + (", ..." if len(differing) > 5 else "")
        raise ValueError(
            f"Training and validation set under '{root}' have different classes: {len(differing)} "
            f"are only in one of them ({shown}). Both need the same class folders."
        )


class ImageFolderClassification:
    """One split of an image folder.

    Args:
        root: Folder with ``train`` and ``val`` (or ``validation``).
        split: ``train`` or ``val``.
        transform: Applied to each PIL image (RGB).
        skip_unreadable_images: Give None for a file that can't be decoded, and log its name.

    Raises:
        FileNotFoundError: The folder or the split is missing.
        ValueError: A class folder is empty, or the splits differ in their classes.
    """

    def __init__(
        self,
        root: Path,
        split: Split,
        transform: Transform | None = None,
        *,
        skip_unreadable_images: bool = False,
    ) -> None:
        folder = split_folder(root, split)
        self.classes = _class_names(folder)
        _check_same_classes(root, self.classes, split)
        self.samples = [
            (path, index)
            for index, name in enumerate(self.classes)
            for path in _image_files(folder / name)
        ]
        self.transform = transform
        self.skip_unreadable_images = skip_unreadable_images

    def __len__(self) -> int:
        """Number of image files."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int] | None:
        """Transformed image and class index; None for an unreadable image that is skipped.

        Raises:
            UnreadableImageError: The file can't be decoded and nobody asked to skip such files.
        """
        path, target = self.samples[index]
        try:
            image = load_rgb(path)
        except UnreadableImageError as error:
            if not self.skip_unreadable_images:
                raise
            logger.warning("skipped: %s", error)
            return None
        return (image if self.transform is None else self.transform(image)), target


def load_rgb(path: Path) -> Image.Image:
    """Read an image file.

    Raises:
        UnreadableImageError: It can't be decoded.
    """
    with reading(path), Image.open(path) as image:
        return image.convert("RGB")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while decoding `path` into an `UnreadableImageError`."""
    try:
        yield
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(
            f"Can't read image '{path}' ({type(error).__name__}: {error}). Repair or remove it, "
            f"or pass --skip_unreadable_images True."
        ) from error


@register_dataset("image_folder_classification")
def image_folder_classification(
    root: Path,
    split: Split,
    transform: Transform | None,
    *,
    skip_unreadable_images: bool,
) -> ImageFolderClassification:
    """Any number of classes, given by the folders."""
    return ImageFolderClassification(
        root, split, transform, skip_unreadable_images=skip_unreadable_images
    )


@register_dataset("imagenet_classification")
def imagenet_classification(
    root: Path,
    split: Split,
    transform: Transform | None,
    *,
    skip_unreadable_images: bool,
) -> ImageFolderClassification:
    """ImageNet-1k in image-folder layout.

    Raises:
        ValueError: The folder does not hold 1000 classes.
    """
    dataset = image_folder_classification(
        root, split, transform, skip_unreadable_images=skip_unreadable_images
    )
    if len(dataset.classes) != 1000:
        raise ValueError(
            f"ImageNet has 1000 classes, '{root}' holds {len(dataset.classes)} class folders. "
            f"Use --dataset_name image_folder_classification for another set of classes."
        )
    return dataset
