"""ADE20K, scene parsing: 150 classes of things and stuff.

``ROOT/images/SPLIT/*.jpg`` and ``ROOT/annotations/SPLIT/*.png`` with splits ``training`` and
``validation``, and the classes' names in ``ROOT/objectInfo150.txt``.

Reference: Zhou et al. 2016, https://arxiv.org/abs/1608.05442.
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

__all__ = ["ade20k_segmentation"]

_SPLITS: dict[Split, str] = {"train": "training", "val": "validation"}
_SOURCE = "http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip)"


def _read_classes(path: Path) -> list[str]:
    """Names from the last column of a table with one head line."""
    if not path.is_file():
        raise FileNotFoundError(
            f"No '{path}', which names the classes. It is part of the archive: {_SOURCE}."
        )
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    return [line.split("\t")[-1].split(",")[0].strip() for line in lines if line.strip()]


@register_dataset("ade20k_segmentation")
def ade20k_segmentation(
    root: Path,
    split: Split,
    transform: JointTransform | None,
    *,
    skip_unreadable_images: bool,
) -> PairedFiles:
    """Scenes with as many classes as ``objectInfo150.txt`` names; label 0 is ignored.

    Raises:
        FileNotFoundError: A folder, the names or a target is missing.
        ValueError: The folder holds no images, or a target can't be used.
    """
    folder = root / "images" / _SPLITS[split]
    if not folder.is_dir():
        raise FileNotFoundError(
            f"No folder '{folder}'. --data_path is the folder that holds 'images' and "
            f"'annotations', each with 'training' and 'validation'. Get it from {_SOURCE}."
        )
    images = sorted(folder.glob("*.jpg"))
    if not images:
        raise ValueError(f"'{folder}' holds no .jpg images.")
    classes = _read_classes(root / "objectInfo150.txt")
    indices = {0: IGNORED} | {index + 1: index for index in range(len(classes))}
    # Black is for what is ignored: the first colour is left out.
    labels = Labels(classes, voc_palette(len(classes) + 1)[1:], indices)
    targets = root / "annotations" / _SPLITS[split]
    pairs = [(image, targets / f"{image.stem}.png") for image in images]
    return PairedFiles(
        "ade20k_segmentation",
        pairs,
        labels,
        transform,
        skip_unreadable_images=skip_unreadable_images,
    )
