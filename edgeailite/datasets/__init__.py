"""Data sets: a registry, and the classification sets that the scripts train on."""

from edgeailite.datasets import cifar, image_folder
from edgeailite.datasets.image_folder import ImageFolderClassification, UnreadableImageError
from edgeailite.datasets.registry import (
    ClassificationDataset,
    Split,
    create_dataset,
    list_datasets,
    register_dataset,
)

__all__ = [
    "ClassificationDataset",
    "ImageFolderClassification",
    "Split",
    "UnreadableImageError",
    "cifar",
    "create_dataset",
    "image_folder",
    "list_datasets",
    "register_dataset",
]
