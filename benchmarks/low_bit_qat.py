"""Quantization-aware training with 4-bit weights on real data: its curve beside the float accuracy.

A CIFAR ResNet-20 with its float weights, fine-tuned on 5,000 training images (mirrored, shifted by
up to 4 pixels) and evaluated on 2,000 others after each epoch. The accuracy that counts is that of
the last epoch; no epoch is chosen by it.

    python benchmarks/low_bit_qat.py --data FOLDER

``FOLDER/cifar10_small`` holds ``resnet20.pth``, ``train/CLASS/*.png`` and ``val/CLASS/*.png``.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import torch
import torch.nn.functional as F
from ptq_accuracy import (
    RESNET20,
    cifar10_images,
    environment,
    load_resnet20,
    logits,
    percent_correct,
)
from torch import Tensor, nn

from edgeailite.quantization import PTCFxModule, QATFxModule, QConfigType

BATCH_SIZE = 64
PADDING = 4


def augment(images: Tensor) -> Tensor:
    """Mirror half of the images and shift each by up to `PADDING` pixels.

    Args:
        images: (N, C, H, W), normalized: the border is filled with 0, the mean colour.
    """
    count, _, height, width = images.shape
    mirrored = torch.where(torch.rand(count, 1, 1, 1) < 0.5, images.flip(3), images)
    padded = F.pad(mirrored, [PADDING] * 4)
    top, left = torch.randint(0, 2 * PADDING + 1, (2, count)).tolist()
    crops = [
        image[:, y : y + height, x : x + width]
        for image, y, x in zip(padded, top, left, strict=True)
    ]
    return torch.stack(crops)


def batches(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: shuffled, augmented, in whole batches."""
    for index in torch.randperm(len(images)).split(BATCH_SIZE):
        if len(index) == BATCH_SIZE:
            yield augment(images[index]), labels[index]


def train_one_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    images: Tensor,
    labels: Tensor,
) -> tuple[float, float]:
    """Forward, loss, backward, step.

    Returns:
        Mean loss, and accuracy on the augmented images, in percent.
    """
    with redirect_stdout(sys.stderr):  # what freezes, and when: not part of the table
        model.train()
    losses, correct = [], []
    for x, y in batches(images, labels):
        output = model(x)
        loss = F.cross_entropy(output, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
        correct.append(percent_correct(output, y))
    return sum(losses) / len(losses), sum(correct) / len(correct)


def fine_tune(
    model: QATFxModule,
    train: tuple[Tensor, Tensor],
    val: tuple[list[Tensor], Tensor],
    args: argparse.Namespace,
) -> float:
    """Train, print a line per epoch; gives the accuracy after the last one, in percent."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=args.lr, momentum=0.9, weight_decay=args.weight_decay
    )
    steps = args.epochs * (len(train[0]) // BATCH_SIZE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    accuracy = 0.0
    for epoch in range(1, args.epochs + 1):
        start, lr = time.perf_counter(), optimizer.param_groups[0]["lr"]
        loss, train_accuracy = train_one_epoch(model, optimizer, scheduler, *train)
        seconds = time.perf_counter() - start
        accuracy = percent_correct(logits(model.eval(), val[0]), val[1])
        print(
            f"| {epoch} | {lr:.4f} | {loss:.4f} | {train_accuracy:.2f} | {accuracy:.2f} "
            f"| {seconds:.0f} |",
            flush=True,
        )
    return accuracy


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with cifar10_small")
    parser.add_argument("--qconfig_type", default="WC4_AT8", choices=QConfigType.choices())
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.01, help="at the start; cosine to 0")
    parser.add_argument("--weight_decay", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def print_row(name: str, accuracy: float) -> None:
    """A line of the table without training."""
    print(f"| {name} | | | | {accuracy:.2f} | |", flush=True)


def measure(args: argparse.Namespace) -> None:
    """Print a table: float, calibrated, each epoch, and the integer graph of the last."""
    torch.manual_seed(args.seed)
    root = (args.data / RESNET20).parent
    model, train = load_resnet20(args.data), cifar10_images(root / "train")
    images, labels = cifar10_images(root / "val")
    val = list(images.split(250)), labels
    print(
        f"{environment()}\n\n"
        f"ResNet-20, {args.qconfig_type}, {len(train[0])} training and {len(labels)} validation "
        f"images, batch {BATCH_SIZE}, SGD with momentum 0.9, weight decay {args.weight_decay:g}, "
        "cosine learning rate\n\n"
        "| epoch | lr | train loss | train top-1 % | val top-1 % | seconds |\n"
        "|---|---|---|---|---|---|"
    )
    float_accuracy = percent_correct(logits(model, val[0]), labels)
    print_row("float", float_accuracy)
    calibrated = PTCFxModule(copy.deepcopy(model), qconfig_type=args.qconfig_type)
    calibrated.calibrate(train[0].split(50), num_batches=10)
    print_row("calibrated, not trained", percent_correct(logits(calibrated, val[0]), labels))
    wrapper = QATFxModule(model, qconfig_type=args.qconfig_type, total_epochs=args.epochs)
    accuracy = fine_tune(wrapper, train, val, args)
    print_row("last, as integers", percent_correct(logits(wrapper.convert(), val[0]), labels))
    print(f"\nChange from float: {accuracy - float_accuracy:+.2f} points")


def main() -> None:
    """Measure, where the images and weights are."""
    args = parse_arguments()
    if args.data is None or not (args.data / RESNET20).is_file():
        print(f"skipped: no {RESNET20} under --data {args.data}; --help says what it needs")
        return
    measure(args)


if __name__ == "__main__":
    main()
