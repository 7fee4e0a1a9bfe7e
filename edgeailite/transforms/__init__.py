"""Transforms from image files to what a model takes."""

from edgeailite.transforms.classification import (
    AUTO_AUGMENT_POLICIES,
    classification_eval_transform,
    classification_train_transform,
)
from edgeailite.transforms.common import NormalizeMeanScale, ReverseChannels
from edgeailite.transforms.segmentation import (
    segmentation_eval_transform,
    segmentation_train_transform,
)

__all__ = [
    "AUTO_AUGMENT_POLICIES",
    "NormalizeMeanScale",
    "ReverseChannels",
    "classification_eval_transform",
    "classification_train_transform",
    "segmentation_eval_transform",
    "segmentation_train_transform",
]
