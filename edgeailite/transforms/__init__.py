"""Transforms from image files to what a model takes."""

from edgeailite.transforms.classification import (
    AUTO_AUGMENT_POLICIES,
    NormalizeMeanScale,
    ReverseChannels,
    classification_eval_transform,
    classification_train_transform,
)

__all__ = [
    "AUTO_AUGMENT_POLICIES",
    "NormalizeMeanScale",
    "ReverseChannels",
    "classification_eval_transform",
    "classification_train_transform",
]
