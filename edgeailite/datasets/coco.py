"""COCO's objects of PASCAL VOC's 20 kinds, and the background.

``ROOT/train2017/*.jpg``, ``ROOT/val2017/*.jpg`` and ``ROOT/annotations/instances_SPLIT2017.json``.

Reference: Lin et al. 2014, https://arxiv.org/abs/1405.0312.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from edgeailite._extras import needs_extra
from edgeailite.datasets.registry import Split, register_dataset
from edgeailite.datasets.segmentation import (
    IGNORED,
    JointTransform,
    Labels,
    SegmentationDataset,
    voc_palette,
)
from edgeailite.datasets.voc import VOC_CLASSES

__all__ = ["CocoSegmentation", "coco_seg21"]

# COCO's category of each of VOC's classes, in their order; 0 stands for the background.
_CATEGORIES = (0, 5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
_LABELS = Labels(
    VOC_CLASSES,
    voc_palette(len(VOC_CLASSES)),
    {index: index for index in range(len(VOC_CLASSES))} | {255: IGNORED},
)


class CocoSegmentation(SegmentationDataset):
    """Images that show one of the kinds, their objects painted over each other.

    Pixels in which objects of two kinds overlap, and crowds, are ignored.

    Args:
        root: Folder of the data set.
        split: ``train`` or ``val``.
        transform: Called with image and target.
        skip_unreadable_images: Give None for an image that can't be decoded, and log its name.

    Raises:
        FileNotFoundError: The annotations or the images are missing.
        ImportError: pycocotools is not installed.
        ValueError: No image shows one of the kinds.
    """

    def __init__(
        self,
        root: Path,
        split: Split,
        transform: JointTransform | None = None,
        *,
        skip_unreadable_images: bool = False,
    ) -> None:
        annotations = root / "annotations" / f"instances_{split}2017.json"
        folder = root / f"{split}2017"
        for path in (annotations, folder):
            if not path.exists():
                raise FileNotFoundError(
                    f"No '{path}'. --data_path is the folder that holds 'train2017', 'val2017' and "
                    f"'annotations'. Get them from https://cocodataset.org."
                )
        self.coco = _open(annotations)
        wanted = set(_CATEGORIES[1:])
        shown = {a["image_id"] for a in self.coco.anns.values() if a["category_id"] in wanted}
        if not shown:
            raise ValueError(f"'{annotations}' has no object of the 20 kinds of PASCAL VOC.")
        self.ids = sorted(shown)
        images = [folder / self.coco.imgs[i]["file_name"] for i in self.ids]
        self._class_of = {category: index for index, category in enumerate(_CATEGORIES)}
        super().__init__(
            "coco_seg21", images, _LABELS, transform, skip_unreadable_images=skip_unreadable_images
        )

    def target_name(self, index: int) -> str:
        """The image, in words."""
        return f"of image {self.ids[index]}"

    def read_labels(self, index: int) -> np.ndarray:
        """Paint the objects of an image, (H, W), uint8."""
        image = self.coco.imgs[self.ids[index]]
        labels = np.zeros((image["height"], image["width"]), np.uint8)
        for annotation in self.coco.imgToAnns[self.ids[index]]:
            kind = self._class_of.get(annotation["category_id"])
            if kind is None:
                continue
            inside = self.coco.annToMask(annotation).astype(bool)
            other = inside & (labels != 0) & (labels != kind)
            labels[inside] = IGNORED if annotation.get("iscrowd") else kind
            labels[other] = IGNORED
        return labels


def _open(annotations: Path) -> Any:
    with needs_extra("coco", "coco_seg21"):
        from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(annotations))


@register_dataset("coco_seg21")
def coco_seg21(
    root: Path,
    split: Split,
    transform: JointTransform | None,
    *,
    skip_unreadable_images: bool,
) -> CocoSegmentation:
    """COCO 2017 with the 21 classes of PASCAL VOC; see :class:`CocoSegmentation`."""
    return CocoSegmentation(root, split, transform, skip_unreadable_images=skip_unreadable_images)
