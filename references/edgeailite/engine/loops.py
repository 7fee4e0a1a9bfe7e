"""The loops of all tasks: train one epoch, calibrate one epoch, and the epochs around them.

What differs between tasks is in a :class:`Task`, which ``train_classification.py`` and
``train_pixel2pixel.py`` make.

A float model and a quantization wrapper go through the same lines. Each ``train()`` after a
training batch begins an epoch of the wrapper's schedule, so each loop calls it once per epoch.
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
from edgeailite.quantization import QuantModule
from edgeailite.quantization.methods import render_gains
from edgeailite.quantization.modules.layer_calls import float_arithmetic
from edgeailite.quantization.modules.pact2 import quantizers
from references.edgeailite.engine.averaging import WeightAverage
from references.edgeailite.engine.data import derive_seed, set_epoch
from references.edgeailite.engine.distributed import Process
from references.edgeailite.engine.metrics import Metrics
from references.edgeailite.engine.model import Steps
from references.edgeailite.engine.options import Options

logger = logging.getLogger("edgeailite.loops")


Forward = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Task:
    """What a task brings to the loops."""

    criterion: nn.Module
    """Training loss of the model's output and the targets."""
    new_metrics: Callable[[], Metrics]
    """Makes metrics of the training batches."""
    validate: Callable[[Forward, torch.device, Callable[[], AbstractContextManager]], dict]
    """Results of a forward pass over all validation images: ``loss``, the metric named in `best`,
    and whatever else the task measures."""
    best: str
    """Which of the results decides on ``model_best.pth``: higher is better."""
    pictures: Callable[[Forward, torch.device], Tensor] | None = None
    """Draws predictions of a few validation images, (3, H, W), uint8."""


@dataclasses.dataclass
class TrainingState:
    """What changes from epoch to epoch, beside the weights."""

    optimizer: Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    average: WeightAverage
    epoch: int = 0
    """Epochs done."""
    best: float = -1.0
    """Highest value so far of the metric that the task names."""
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    """One entry per epoch done."""


def train_one_epoch(
    steps: Steps,
    loader: DataLoader,
    criterion: nn.Module,
    state: TrainingState,
    metrics: Metrics,
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
        state.average.update()
        metrics.update(output, targets, loss)


@torch.no_grad()
def calibrate_one_epoch(
    steps: Steps,
    loader: DataLoader,
    criterion: nn.Module,
    state: TrainingState,
    metrics: Metrics,
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


def validate_steps(steps: Steps, task: Task) -> dict[str, Any]:
    """Validate the model as it is trained, in evaluation mode."""
    steps.module.eval()
    return task.validate(steps.eval_forward, steps.device, steps.autocast)


def validate_start(options: Options, steps: Steps, task: Task) -> dict[str, Any]:
    """Validate before the first epoch; a wrapper without ranges yet computes in float."""
    if not options.quantize or all(q.has_range for q in quantizers(steps.module).values()):
        return validate_steps(steps, task)
    logger.info("no activation ranges yet: the start is validated in float")
    model = steps.module.eval().module
    with float_arithmetic(model):
        return task.validate(model, steps.device, steps.autocast)


def run_epochs(
    options: Options,
    steps: Steps,
    train: DataLoader,
    task: Task,
    state: TrainingState,
    process: Process,
    after_epoch: Callable[[TrainingState, bool], None],
) -> None:
    """Run the epochs that are left, each followed by a validation.

    Args:
        options: Of the run.
        steps: The model.
        train: Training images.
        task: Loss, metrics and validation.
        state: Advanced in place; where it stands when resumed.
        process: This process.
        after_epoch: Called with the state and whether it is the best so far: saves and logs.
    """
    one_epoch = calibrate_one_epoch if options.phase == "calibration" else train_one_epoch
    first, started = state.epoch, time.monotonic()
    while state.epoch < options.epochs:
        set_epoch(train, state.epoch)
        seed_everything(options.seed, state.epoch, process.rank)
        metrics = task.new_metrics()
        lr = state.optimizer.param_groups[0]["lr"]
        one_epoch(steps, train, task.criterion, state, metrics, freeze_bn=options.freeze_bn)
        report_skipped(train, metrics)
        row = {f"train_{name}": value for name, value in metrics.compute().items()}
        with state.average.in_place():
            if options.reestimate_bn:
                measure_batch_norms(steps, train, options.reestimate_bn)
            results = validate_steps(steps, task)
        row |= {f"val_{k}": value for k, value in results.items() if isinstance(value, float)}
        state.epoch += 1
        state.history.append({"epoch": state.epoch, "lr": lr, **row})
        is_best = results[task.best] > state.best
        state.best = max(state.best, results[task.best])
        after_epoch(state, is_best)
        pace = (time.monotonic() - started) / (state.epoch - first)
        logger.info(_epoch_line(state.history[-1], task.best, options.epochs, pace))


def measure_batch_norms(steps: Steps, train: DataLoader, num_batches: int) -> None:
    """Measure a wrapper's batch norm statistics anew on the epoch's first training images."""
    assert isinstance(steps.module, QuantModule)
    images = (images.to(steps.device) for images, _ in train)
    steps.module.reestimate_batch_norms(progress(images, "batch norms"), num_batches)


def run_post_training(
    options: Options,
    steps: Steps,
    train: DataLoader,
    task: Task,
    state: TrainingState,
    after_epoch: Callable[[TrainingState, bool], None],
) -> None:
    """Calibrate by ``--ptq`` or ``--max_drop`` instead of epochs; arguments as of `run_epochs`."""
    if state.epoch:
        return
    set_epoch(train, 0)
    wrapper, batches = steps.module, (images.to(steps.device) for images, _ in train)
    assert isinstance(wrapper, QuantModule)
    wrapper.verbose = False
    wrapper.calibrate(batches, quality=options.ptq, max_drop=options.max_drop)
    if wrapper.post_training:
        logger.info("post-training\n%s", render_gains(wrapper.post_training))
    if wrapper.drop_result is not None:
        logger.info("%s", wrapper.drop_result)
    results = validate_steps(steps, task)
    row = {f"val_{name}": value for name, value in results.items() if isinstance(value, float)}
    state.epoch, state.best = 1, results[task.best]
    state.history.append({"epoch": 1, "lr": 0.0, **row})
    after_epoch(state, True)


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


def report_skipped(loader: DataLoader, metrics: Metrics) -> None:
    """Say how many images the metrics lack, where some could not be read."""
    skipped = len(loader.sampler) - metrics.num_images
    if skipped:
        logger.warning("%d unreadable images skipped of %d", skipped, len(loader.sampler))


def _epoch_line(row: dict[str, float], best: str, epochs: int, pace: float) -> str:
    shown = [
        f"{split} {name} {row[key]:.{digits}f}"
        for split in ("train", "val")
        for name, digits in (("loss", 4), (best, 2))
        if (key := f"{split}_{name}") in row
    ]
    left = (epochs - row["epoch"]) * pace
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  lr {row['lr']:.2g}  {'  '.join(shown)}  "
        f"{pace:.1f} s/epoch, {left / 60:.1f} min left"
    )
