"""Loss and accuracy over many batches and all processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy


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

    def compute(self) -> dict[str, float]:
        """Mean ``loss``, and ``top1`` and ``top5`` in percent, over all processes."""
        return {
            "loss": self.loss.compute().item(),
            "top1": 100.0 * self.top1.compute().item(),
            "top5": 100.0 * self.top5.compute().item(),
        }


def _accuracy(num_classes: int, top_k: int) -> Metric:
    return MulticlassAccuracy(num_classes, top_k=top_k, average="micro", validate_args=False)
