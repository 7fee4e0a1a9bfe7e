"""The loops: train one epoch, calibrate one epoch, validate, and the epochs around them.

A float model and a quantization wrapper go through the same lines. The wrapper's ``train()`` counts
epochs and follows its schedule, so each loop calls ``train()`` exactly once per epoch.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from edgeailite import xnn
from edgeailite.quantization.fake_quantize import quantizers
from edgeailite.quantization.units import float_arithmetic
from references.edgeailite.engine.data import ClassificationData, derive_seed, set_epoch
from references.edgeailite.engine.distributed import Process
from references.edgeailite.engine.metrics import ClassificationMetrics
from references.edgeailite.engine.model import Steps
from references.edgeailite.engine.options import ClassificationOptions

logger = logging.getLogger("edgeailite.train_classification")


@dataclasses.dataclass
class TrainingState:
    """What changes from epoch to epoch, beside the weights."""

    optimizer: Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    epoch: int = 0
    """Epochs done."""
    best_top1: float = -1.0
    """Highest validation accuracy so far, percent."""
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    """One entry per epoch done."""


def train_one_epoch(
    steps: Steps,
    loader: DataLoader,
    criterion: nn.Module,
    state: TrainingState,
    metrics: ClassificationMetrics,
    *,
    freeze_bn: bool,
) -> None:
    """Forward, loss, backward, step: once over `loader`.

    Raises:
        ValueError: The loss is no longer a finite number.
    """
    steps.module.train()
    if freeze_bn:
        xnn.utils.freeze_bn(steps.module)
    for images, targets in progress(loader, f"epoch {state.epoch + 1}"):
        images = images.to(steps.device, non_blocking=True)
        targets = targets.to(steps.device, non_blocking=True)
        with steps.autocast():
            output = steps.train_forward(images)
            loss = criterion(output, targets)
        _check_finite(loss, state.epoch + 1)
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.scheduler.step()
        metrics.update(output, targets, loss)


@torch.no_grad()
def calibrate_one_epoch(
    steps: Steps,
    loader: DataLoader,
    criterion: nn.Module,
    state: TrainingState,
    metrics: ClassificationMetrics,
    *,
    freeze_bn: bool,
) -> None:
    """Show images to the wrapper, once over `loader`: no gradients, no optimizer.

    The labels only serve to print loss and accuracy.
    """
    steps.module.train()
    if freeze_bn:
        xnn.utils.freeze_bn(steps.module)
    for images, targets in progress(loader, f"calibration {state.epoch + 1}"):
        images = images.to(steps.device, non_blocking=True)
        targets = targets.to(steps.device, non_blocking=True)
        with steps.autocast():
            output = steps.eval_forward(images)
            loss = criterion(output, targets)
        metrics.update(output, targets, loss)


@torch.no_grad()
def validate(
    forward: Callable[[Tensor], Tensor],
    loader: DataLoader,
    num_classes: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
) -> dict[str, float]:
    """Loss and accuracy of `forward` on all images of `loader`, over all processes.

    Args:
        forward: From images (N, C, H, W) to logits (N, classes); in evaluation mode.
        loader: Validation images.
        num_classes: Number of classes.
        device: Where images go.
        autocast: Makes the context that `forward` runs in.

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
    _report_skipped(loader, metrics)
    return metrics.compute()


def validate_steps(steps: Steps, data: ClassificationData) -> dict[str, float]:
    """Validate the model as it is trained, in evaluation mode."""
    steps.module.eval()
    return validate(steps.eval_forward, data.val, len(data.classes), steps.device, steps.autocast)


def validate_start(
    options: ClassificationOptions, steps: Steps, data: ClassificationData
) -> dict[str, float]:
    """Validate before the first epoch; a wrapper without ranges yet computes in float."""
    if not options.quantize or all(q.has_range for q in quantizers(steps.module).values()):
        return validate_steps(steps, data)
    logger.info("no activation ranges yet: the start is validated in float")
    model = steps.module.eval().module
    with float_arithmetic(model):
        return validate(model, data.val, len(data.classes), steps.device, steps.autocast)


def run_epochs(
    options: ClassificationOptions,
    steps: Steps,
    data: ClassificationData,
    state: TrainingState,
    process: Process,
    after_epoch: Callable[[TrainingState, bool], None],
) -> None:
    """Run the epochs that are left, each followed by a validation.

    Args:
        options: Of the run.
        steps: The model.
        data: Both splits.
        state: Advanced in place; where it stands when resumed.
        process: This process.
        after_epoch: Called with the state and whether it is the best so far: saves and logs.
    """
    one_epoch = calibrate_one_epoch if options.phase == "calibration" else train_one_epoch
    criterion = nn.CrossEntropyLoss(label_smoothing=options.label_smoothing)
    first, started = state.epoch, time.monotonic()
    while state.epoch < options.epochs:
        set_epoch(data.train, state.epoch)
        seed_everything(options.seed, state.epoch, process.rank)
        metrics = ClassificationMetrics(len(data.classes), steps.device)
        lr = state.optimizer.param_groups[0]["lr"]
        one_epoch(steps, data.train, criterion, state, metrics, freeze_bn=options.freeze_bn)
        _report_skipped(data.train, metrics)
        row = {f"train_{name}": value for name, value in metrics.compute().items()}
        row |= {f"val_{name}": value for name, value in validate_steps(steps, data).items()}
        state.epoch += 1
        state.history.append({"epoch": state.epoch, "lr": lr, **row})
        is_best = row["val_top1"] > state.best_top1
        state.best_top1 = max(state.best_top1, row["val_top1"])
        after_epoch(state, is_best)
        pace = (time.monotonic() - started) / (state.epoch - first)
        logger.info(_epoch_line(state.history[-1], options.epochs, pace))


def seed_everything(*parts: int) -> None:
    """Seed Python, NumPy and PyTorch, so that an epoch does not depend on what ran before it."""
    seed = derive_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - users' transforms and losses may draw from it
    torch.manual_seed(seed)


def progress(batches: Iterable, title: str) -> Iterable:
    """Show a bar with the remaining time, on a terminal only."""
    return tqdm(batches, desc=title, unit="batch", leave=False, disable=None)


def _check_finite(loss: Tensor, epoch: int) -> None:
    if not torch.isfinite(loss):
        raise ValueError(
            f"The loss became {loss.item()} in epoch {epoch}: training diverged. "
            f"Lower --lr, raise --warmup_epochs, or look for broken images or labels."
        )


def _report_skipped(loader: DataLoader, metrics: ClassificationMetrics) -> None:
    skipped = len(loader.sampler) - metrics.num_images
    if skipped:
        logger.warning("%d unreadable images skipped of %d", skipped, len(loader.sampler))


def _epoch_line(row: dict[str, float], epochs: int, pace: float) -> str:
    left = (epochs - row["epoch"]) * pace
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  lr {row['lr']:.2g}  "
        f"train loss {row['train_loss']:.4f} top1 {row['train_top1']:.2f}  "
        f"val loss {row['val_loss']:.4f} top1 {row['val_top1']:.2f}  "
        f"{pace:.1f} s/epoch, {left / 60:.1f} min left"
    )
