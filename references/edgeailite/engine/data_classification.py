"""Loaders of the classification script."""

from __future__ import annotations

from edgeailite.datasets import SegmentationDataset
from edgeailite.transforms import classification_eval_transform, classification_train_transform
from references.edgeailite.engine.data import Data, open_data
from references.edgeailite.engine.distributed import Process
from references.edgeailite.engine.options_classification import ClassificationOptions


def build_data(options: ClassificationOptions, process: Process) -> Data:
    """Open the data set and make its loaders.

    Calibration reads training images without augmentation: ranges are those of deployment.

    Raises:
        ValueError: The data set can't be used; the message says why.
        FileNotFoundError: A folder is missing.
    """
    view = {
        "img_resize": options.img_resize,
        "img_crop": options.img_crop,
        "image_mean": options.image_mean,
        "image_scale": options.image_scale,
        "input_channel_reverse": options.input_channel_reverse,
    }
    eval_transform = classification_eval_transform(**view)
    train_transform = eval_transform
    if options.phase == "training":
        train_transform = classification_train_transform(
            **view,
            rand_crop=options.rand_crop,
            rand_scale=options.rand_scale,
            rand_flip=options.rand_flip,
            auto_augment=options.auto_augment,
            random_erasing=options.random_erasing,
        )
    data = open_data(options, process, train_transform, eval_transform)
    if isinstance(data.dataset, SegmentationDataset):
        raise ValueError(
            f"Data set '{options.dataset_name}' has a class per pixel: use "
            f"train_segmentation_main.py."
        )
    return data
