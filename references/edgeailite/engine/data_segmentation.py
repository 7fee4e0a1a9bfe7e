"""Loaders of the segmentation script."""

from __future__ import annotations

from edgeailite.datasets import SegmentationDataset
from edgeailite.transforms import segmentation_eval_transform, segmentation_train_transform
from references.edgeailite.engine.data import Data, open_data
from references.edgeailite.engine.distributed import Process
from references.edgeailite.engine.options_segmentation import SegmentationOptions


def build_data(options: SegmentationOptions, process: Process) -> Data:
    """Open the data set and make its loaders.

    Calibration reads training images without augmentation: ranges are those of deployment.
    Validation keeps targets at their own size, or brings them to ``--output_size``.

    Raises:
        ValueError: The data set can't be used; the message says why.
        FileNotFoundError: A folder or a target is missing.
    """
    view = {
        "image_mean": options.image_mean,
        "image_scale": options.image_scale,
        "input_channel_reverse": options.input_channel_reverse,
    }
    size = options.img_resize
    eval_transform = segmentation_eval_transform(
        **view, img_resize=size, output_size=options.output_size
    )
    if options.phase == "training":
        train_transform = segmentation_train_transform(
            **view,
            img_resize=size,
            img_crop=options.img_crop or size,
            rand_crop=options.rand_crop,
            rand_scale=options.rand_scale,
            rand_flip=options.rand_flip,
            rand_rotation=options.rand_rotation,
        )
    else:
        train_transform = segmentation_eval_transform(**view, img_resize=size, output_size=size)
    data = open_data(options, process, train_transform, eval_transform)
    if not isinstance(data.dataset, SegmentationDataset):
        raise ValueError(
            f"Data set '{options.dataset_name}' has one class per image, not per pixel. Use "
            f"cityscapes_segmentation, voc_segmentation, coco_seg21 or ade20k_segmentation, or "
            f"train_classification_main.py."
        )
    return data
