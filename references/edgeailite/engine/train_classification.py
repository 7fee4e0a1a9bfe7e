"""Classification: loss, accuracy, validation. The loops themselves are in ``loops.py``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import nn
from torch.utils.data import DataLoader

from references.edgeailite.engine.data import Data
from references.edgeailite.engine.loops import Forward, Task, progress, report_skipped
from references.edgeailite.engine.metrics import ClassificationMetrics
from references.edgeailite.engine.options_classification import ClassificationOptions


def classification_task(options: ClassificationOptions, data: Data, device: torch.device) -> Task:
    """Cross entropy; the model with the highest top-1 accuracy is the best."""
    return Task(
        criterion=nn.CrossEntropyLoss(label_smoothing=options.label_smoothing),
        new_metrics=partial(ClassificationMetrics, len(data.classes), device),
        validate=partial(validate, loader=data.val, num_classes=len(data.classes)),
        best="top1",
    )


@torch.no_grad()
def validate(
    forward: Forward,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
    *,
    loader: DataLoader,
    num_classes: int,
) -> dict[str, float]:
    """Loss and accuracy of `forward` on all images of `loader`, over all processes.

    Args:
        forward: From images (N, C, H, W) to logits (N, classes); in evaluation mode.
        device: Where images go.
        autocast: Makes the context that `forward` runs in.
        loader: Validation images.
        num_classes: Number of classes.

    Returns:
        ``loss``, ``top1``, ``top5`` (percent).
    """
    metrics = ClassificationMetrics(num_classes, device)
    criterion = nn.CrossEntropyLoss()
    for images, targets in progress(loader, "validation"):
        targets = targets.to(device, non_blocking=True)
        with autocast():
            output = forward(images.to(device, non_blocking=True))
            loss = criterion(output, targets)
        metrics.update(output, targets, loss)
    report_skipped(loader, metrics)
    return metrics.compute()
