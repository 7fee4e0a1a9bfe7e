"""Loss, accuracy and intersection over union over many batches and all processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, Metric, SumMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from edgeailite.datasets import IGNORED


class Metrics(Protocol):
    """What the loops ask of the metrics of a task."""

    num_images: int

    def update(self, output: Tensor, target: Tensor, loss: Tensor) -> None:
        """Add a batch: the model's output, its targets, and their mean loss."""

    def compute(self) -> dict[str, Any]:
        """Results over all batches and processes; among them the mean ``loss``."""


class ClassificationMetrics:
    """Running loss, top-1 and top-5 accuracy; processes are merged in `compute`.

    Args:
        num_classes: Number of classes; with fewer than five, "top-5" counts that many.
        device: Where the sums live.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.loss = MeanMetric().to(device)
        self.top1 = _accuracy(num_classes, 1).to(device)
        self.top5 = _accuracy(num_classes, min(5, num_classes)).to(device)
        self.num_images = 0

    def update(self, output: Tensor, target: Tensor, loss: Tensor) -> None:
        """Add a batch.

        Args:
            output: Logits, shape (N, classes).
            target: Class indices, shape (N,).
            loss: Mean loss of the batch, shape ().
        """
        output = output.detach().float()
        self.loss.update(loss.detach().float(), weight=len(target))
        self.top1.update(output, target)
        self.top5.update(output, target)
        self.num_images += len(target)

    def compute(self) -> dict[str, Any]:
        """Mean ``loss``, and ``top1`` and ``top5`` in percent, over all processes."""
        return {
            "loss": self.loss.compute().item(),
            "top1": 100.0 * self.top1.compute().item(),
            "top5": 100.0 * self.top5.compute().item(),
        }


def _accuracy(num_classes: int, top_k: int) -> Metric:
    return MulticlassAccuracy(num_classes, top_k=top_k, average="micro", validate_args=False)


class LossMetric:
    """Running loss alone.

    Args:
        device: Where the sums live.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss = MeanMetric().to(device)
        self.num_images = 0

    def update(self, output: Tensor, target: Tensor, loss: Tensor) -> None:
        """Add a batch; only its number of images and its mean loss count."""
        del target
        self.loss.update(loss.detach().float(), weight=len(output))
        self.num_images += len(output)

    def compute(self) -> dict[str, Any]:
        """Mean ``loss`` over all processes."""
        return {"loss": self.loss.compute().item()}


class SegmentationMetrics:
    """Running loss, intersection over union and accuracy of pixels.

    Args:
        classes: Names of the classes.
        device: Where the sums live.

    Reference: Everingham et al. 2010, section 4.4: true / (true + false positive + false negative)
    per class, counted over all images.
    """

    def __init__(self, classes: Sequence[str], device: torch.device) -> None:
        self.classes = list(classes)
        self.loss = SumMetric().to(device)
        self.confusion = MulticlassConfusionMatrix(
            len(classes), ignore_index=IGNORED, validate_args=False
        ).to(device)
        self.num_images = 0

    def update(self, logits: Tensor, targets: Tensor | Sequence[Tensor]) -> None:
        """Add a batch; logits are resized to each target, so targets may differ in size.

        Args:
            logits: Shape (N, classes, H, W).
            targets: N maps (H', W') of class indices, 255 where ignored.
        """
        for image, target in zip(logits.detach().float(), targets, strict=True):
            resized = resize_logits(image[None], target.shape)
            labels = target.long()[None]
            self.loss.update(
                F.cross_entropy(resized, labels, ignore_index=IGNORED, reduction="sum")
            )
            self.confusion.update(resized.argmax(1), labels)
        self.num_images += len(logits)

    def compute(self) -> dict[str, Any]:
        """Results over all processes.

        Returns:
            ``loss`` per pixel; ``miou``, the mean over the classes that occur in the targets, and
            ``accuracy`` of pixels, percent; ``iou``, percent per class, None where it is absent.
        """
        confusion = self.confusion.compute().double()
        true, occurring = confusion.diagonal(), confusion.sum(1)
        union = occurring + confusion.sum(0) - true
        iou = 100.0 * true / union.clamp(min=1.0)
        present = occurring > 0
        pixels = occurring.sum().clamp(min=1.0)
        return {
            "loss": (self.loss.compute() / pixels).item(),
            "miou": iou[present].mean().item() if present.any() else 0.0,
            "accuracy": (100.0 * true.sum() / pixels).item(),
            "iou": {
                name: value if there else None
                for name, value, there in zip(
                    self.classes, iou.tolist(), present.tolist(), strict=True
                )
            },
        }


def resize_logits(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear; (N, C, H, W) to (N, C, *size)."""
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
