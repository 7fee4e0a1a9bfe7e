"""Data sets: a registry, and the sets that the scripts train on."""

from edgeailite.datasets import ade20k, cifar, cityscapes, coco, image_folder, voc
from edgeailite.datasets.image_folder import ImageFolderClassification, UnreadableImageError
from edgeailite.datasets.registry import (
    ImageDataset,
    Split,
    create_dataset,
    list_datasets,
    register_dataset,
)
from edgeailite.datasets.segmentation import IGNORED, Labels, PairedFiles, SegmentationDataset

__all__ = [
    "IGNORED",
    "ImageDataset",
    "ImageFolderClassification",
    "Labels",
    "PairedFiles",
    "SegmentationDataset",
    "Split",
    "UnreadableImageError",
    "ade20k",
    "cifar",
    "cityscapes",
    "coco",
    "create_dataset",
    "image_folder",
    "list_datasets",
    "register_dataset",
    "voc",
]
