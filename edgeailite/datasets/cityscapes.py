"""Cityscapes, and whatever lies on disk as it does.

``ROOT/leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png`` and
``ROOT/gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png``.

Reference: Cordts et al. 2016, https://arxiv.org/abs/1604.01685.
"""

from __future__ import annotations

from pathlib import Path

from edgeailite.datasets.registry import Split, register_dataset
from edgeailite.datasets.segmentation import IGNORED, JointTransform, Labels, PairedFiles

__all__ = ["CITYSCAPES", "IMAGE_SUFFIX", "TARGET_SUFFIX", "cityscapes_segmentation"]

IMAGE_SUFFIX = "_leftImg8bit.png"
TARGET_SUFFIX = "_gtFine_labelIds.png"

# Label in the files, name, colour, of the 19 classes that are evaluated.
_EVALUATED = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
_LARGEST_LABEL = 33
# Median frequency balancing as published with LightNet and taken over since by many others.
_WEIGHTS = (
    *(0.05570516, 0.32337477, 0.08998544, 1.03602707, 1.03413147, 1.68195437, 5.58540548),
    *(3.56563995, 0.12704978, 1.0, 0.46783719, 1.34551528, 5.29974114, 0.28342531),
    *(0.9396095, 0.81551811, 0.42679146, 3.6399074, 2.78376194),
)

CITYSCAPES = Labels(
    classes=[name for _, name, _ in _EVALUATED],
    palette=[colour for _, _, colour in _EVALUATED],
    # 255 is the label -1 (licence plate) as a byte.
    indices=dict.fromkeys((*range(_LARGEST_LABEL + 1), 255), IGNORED)
    | {label: index for index, (label, _, _) in enumerate(_EVALUATED)},
    weights=_WEIGHTS,
)


@register_dataset("cityscapes_segmentation")
def cityscapes_segmentation(
    root: Path,
    split: Split,
    transform: JointTransform | None,
    *,
    skip_unreadable_images: bool,
) -> PairedFiles:
    """Street scenes with 19 classes; the target of each image is found by name.

    Raises:
        FileNotFoundError: A folder or a target is missing.
        ValueError: The folder holds no images, or a target can't be used.
    """
    folder = root / "leftImg8bit" / split
    if not folder.is_dir():
        raise FileNotFoundError(
            f"No folder '{folder}'. --data_path is the folder that holds 'leftImg8bit' and "
            f"'gtFine', each with 'train' and 'val'. Get Cityscapes from "
            f"https://www.cityscapes-dataset.com, or make synthetic scenes: "
            f"python data/make_street_scenes.py."
        )
    images = sorted(folder.glob(f"*/*{IMAGE_SUFFIX}"))
    if not images:
        raise ValueError(
            f"'{folder}' holds no images: looked for CITY/*{IMAGE_SUFFIX}, one folder per city."
        )
    targets = root / "gtFine" / split
    pairs = [
        (image, targets / image.parent.name / image.name.replace(IMAGE_SUFFIX, TARGET_SUFFIX))
        for image in images
    ]
    return PairedFiles(
        "cityscapes_segmentation",
        pairs,
        CITYSCAPES,
        transform,
        skip_unreadable_images=skip_unreadable_images,
    )
