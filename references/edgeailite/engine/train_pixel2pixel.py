"""Segmentation: loss, mIoU, validation, pictures. The loops themselves are in ``loops.py``."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from edgeailite.datasets import IGNORED, Labels
from edgeailite.models import list_models
from edgeailite.quantization.export.argmax import append_argmax
from edgeailite.quantization.modules.layer_calls import float_arithmetic
from references.edgeailite.engine import pictures
from references.edgeailite.engine.data import Data, images_of
from references.edgeailite.engine.deploy import ONNX_FILE, onnx_forward
from references.edgeailite.engine.loops import Forward, Task, progress, report_skipped
from references.edgeailite.engine.metrics import LossMetric, SegmentationMetrics
from references.edgeailite.engine.model import example_input
from references.edgeailite.engine.options_segmentation import SegmentationOptions
from references.edgeailite.engine.recorder import Recorder

logger = logging.getLogger("edgeailite.train_pixel2pixel")

# Validation images that are drawn.
NUM_PICTURES = 4


class PixelCrossEntropy(nn.Module):
    """Mean cross entropy of the pixels that have a class; 0 where none has.

    Args:
        weight: Weight of each class, shape (classes,); None weights all alike.
    """

    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss, shape (), of logits (N, classes, H, W) and class indices (N, H, W)."""
        target = target.long()
        total = F.cross_entropy(
            logits.float(), target, self.weight, ignore_index=IGNORED, reduction="sum"
        )
        valid = target != IGNORED
        if self.weight is None:
            return total / valid.sum().clamp(min=1)
        weights = self.weight[target.where(valid, 0)] * valid
        return total / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def segmentation_task(options: SegmentationOptions, data: Data, device: torch.device) -> Task:
    """Cross entropy of pixels; the model with the highest mIoU is the best.

    Raises:
        ValueError: ``--class_weights`` is asked for and the data set has none.
    """
    labels: Labels = data.dataset.labels
    weight = None
    if options.class_weights:
        if labels.weights is None:
            raise ValueError(
                f"--class_weights True: data set '{options.dataset_name}' has no historical class "
                f"weights; cityscapes_segmentation has."
            )
        weight = torch.tensor(labels.weights)
    return Task(
        criterion=PixelCrossEntropy(weight).to(device),
        new_metrics=partial(LossMetric, device),
        validate=partial(validate, loader=data.val, classes=data.classes),
        best="miou",
        pictures=partial(draw, options=options, data=data),
    )


@torch.no_grad()
def validate(
    forward: Forward,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
    *,
    loader: DataLoader,
    classes: list[str],
) -> dict[str, Any]:
    """Loss, mIoU and accuracy of `forward` at the targets' resolution, over all processes.

    Args:
        forward: From images (N, C, H, W) to logits (N, classes, H, W); in evaluation mode.
        device: Where images go.
        autocast: Makes the context that `forward` runs in.
        loader: Validation images.
        classes: Names of the classes.

    Returns:
        What `SegmentationMetrics.compute` gives.
    """
    metrics = SegmentationMetrics(classes, device)
    for images, targets in progress(loader, "validation"):
        with autocast():
            logits = forward(images.to(device, non_blocking=True))
        metrics.update(logits, [target.to(device, non_blocking=True) for target in targets])
    report_skipped(loader, metrics)
    return metrics.compute()


def first_samples(loader: DataLoader, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The first images (1, C, H, W) and targets (H', W') of a loader, without its processes."""
    for index in itertools.islice(iter(loader.sampler), count):
        sample = loader.dataset[index]
        if sample is not None:
            image, target = sample
            yield image[None], target


def check_model(model: nn.Module, options: SegmentationOptions, num_classes: int) -> None:
    """Refuse models that give no logits per pixel, and sizes that a model can't take.

    Raises:
        ValueError: The message says which, and what would suit.
    """
    if hasattr(model, "check_size"):
        for name in ("img_resize", "img_crop"):
            size = getattr(options, name)
            try:
                model.check_size(size[0], size[-1])
            except ValueError as error:
                raise ValueError(f"--{name}: {error}") from error
        return
    with torch.no_grad():
        output = model.eval()(example_input(options))
    model.train()
    expected = (1, num_classes, *options.input_size)
    if not isinstance(output, Tensor) or output.shape != expected:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"Model '{options.model_name}' gives {found}, not logits {expected} (batch, classes, "
            f"height, width). Segmentation models: {', '.join(list_models('_edgeailite'))}."
        )


def log_classes(results: dict[str, Any]) -> None:
    """Log a table of the classes' intersection over union."""
    width = max(map(len, results["iou"]))
    lines = [f"{'class'.ljust(width)}   IoU %"]
    lines += [
        f"{name.ljust(width)}  {'     - (does not occur)' if v is None else f'{v:6.2f}'}"
        for name, v in results["iou"].items()
    ]
    lines.append(f"{'mean of those that occur'.ljust(width)}  {results['miou']:6.2f}")
    logger.info("%s", "\n".join(lines))


@torch.no_grad()
def draw(
    forward: Forward, device: torch.device, *, options: SegmentationOptions, data: Data
) -> Tensor:
    """Input, target and prediction of a few validation images, blended with their colours.

    Returns:
        One picture (3, H, W), uint8: a row per image.
    """
    palette = data.dataset.labels.palette
    rows = []
    for image, target in first_samples(data.val, NUM_PICTURES):
        photo = pictures.to_photo(image[0], options)
        size = photo.shape[-2:]
        predicted = forward(image.to(device)).argmax(1)[0].cpu()
        maps = (pictures.resize_labels(target, size), predicted)
        blends = [pictures.blend(photo, labels, palette) for labels in maps]
        rows.append(torch.cat([photo, *blends], dim=2))
    return torch.cat(rows, dim=1)


@torch.no_grad()
def compare_pictures(
    options: SegmentationOptions, wrapper: nn.Module, data: Data, recorder: Recorder
) -> None:
    """Write ``predictions.png``: the same weights computed in float and quantized."""
    samples = []
    for image, target in first_samples(data.val, NUM_PICTURES):
        photo = pictures.to_photo(image[0], options)
        quantized = wrapper(image).argmax(1)[0]
        with float_arithmetic(wrapper.module):
            in_float = wrapper.module(image).argmax(1)[0]
        target = pictures.resize_labels(target, photo.shape[-2:])
        samples.append((photo, target, in_float, quantized))
    path = recorder.folder / "predictions.png"
    pictures.write_comparison(path, samples, data.dataset.labels)
    recorder.picture("val/float_and_quantized", pictures.read(path))
    logger.info("pictures: %s", path)


@torch.no_grad()
def export_classes(
    options: SegmentationOptions, model: nn.Module, data: Data, recorder: Recorder
) -> None:
    """Write ``model_argmax.onnx``; with ``--verify``, compare each pixel's class with PyTorch's."""
    path = recorder.folder / "model_argmax.onnx"
    append_argmax(recorder.folder / ONNX_FILE, path)
    logger.info("wrote %s (%d bytes)", path, path.stat().st_size)
    if not options.verify:
        return
    forward = onnx_forward(path)
    num_pixels = num_mismatches = 0
    for images in images_of(data.val):
        expected, actual = model(images).argmax(1), forward(images)
        num_pixels += expected.numel()
        num_mismatches += int((expected != actual).sum())
    recorder.set(verify_argmax={"num_pixels": num_pixels, "mismatches": num_mismatches})
    logger.info("classes in ONNX Runtime: %d of %d pixels differ", num_mismatches, num_pixels)
