"""PASCAL VOC 2012 segmentation: 20 kinds of objects and the background.

Reference: Everingham et al. 2010, http://host.robots.ox.ac.uk/pascal/VOC.
"""

from __future__ import annotations

from pathlib import Path

from edgeailite.datasets.registry import Split, register_dataset
from edgeailite.datasets.segmentation import (
    IGNORED,
    JointTransform,
    Labels,
    PairedFiles,
    voc_palette,
)

__all__ = ["VOC_CLASSES", "voc_segmentation"]

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
_LABELS = Labels(
    VOC_CLASSES,
    voc_palette(len(VOC_CLASSES)),
    {index: index for index in range(len(VOC_CLASSES))} | {255: IGNORED},
)
_INSIDE = "VOCdevkit/VOC2012"


@register_dataset("voc_segmentation")
def voc_segmentation(
    root: Path,
    split: Split,
    transform: JointTransform | None,
    *,
    skip_unreadable_images: bool,
) -> PairedFiles:
    """The images that ``ImageSets/Segmentation/SPLIT.txt`` lists.

    `root` is the folder ``VOC2012``, or the one that the archive was unpacked in.

    Raises:
        FileNotFoundError: The list, an image or a target is missing.
        ValueError: The list is empty, or a target can't be used.
    """
    folder = root / _INSIDE if (root / _INSIDE).is_dir() else root
    names_file = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not names_file.is_file():
        raise FileNotFoundError(
            f"No list of images '{names_file}'. --data_path is the folder with 'ImageSets', "
            f"'JPEGImages' and 'SegmentationClass', or the one that holds '{_INSIDE}'. Get "
            f"VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012."
        )
    names = names_file.read_text(encoding="utf-8").split()
    if not names:
        raise ValueError(f"'{names_file}' lists no images.")
    pairs = [
        (folder / "JPEGImages" / f"{name}.jpg", folder / "SegmentationClass" / f"{name}.png")
        for name in names
    ]
    return PairedFiles(
        "voc_segmentation", pairs, _LABELS, transform, skip_unreadable_images=skip_unreadable_images
    )
