"""Quantization-aware training with few bits on real data: what each method of training gains.

A CIFAR ResNet-20 with its float weights, fine-tuned on 5,000 training images (mirrored, shifted by
up to 4 pixels) and evaluated on 2,000 others at the end; no epoch is chosen by it. Accuracies are
those of the integer graph: of the last weights and of averaged ones (decay 0.99), each as they are
and with batch norm statistics measured anew. Values that differ are counted on 500 of the images:
simulation against integer graph, that against ONNX Runtime without optimizations, and with them.

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
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from ptq_accuracy import (
    RESNET20,
    cifar10_images,
    environment,
    load_resnet20,
    logits,
    num_different,
    percent_correct,
)
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from edgeailite.quantization import PTCFxModule, QATFxModule, QConfigType, TrainingMethods
from edgeailite.quantization.arithmetic.presets import get_preset
from edgeailite.quantization.arithmetic.spec import QConfig

BATCH_SIZE = 64
PADDING = 4
COMPARED = 2  # batches of 250
DECAY = 0.99
LAYOUT = {"memory_format": torch.channels_last}  # a tenth faster on a CPU
METHODS = {
    "plain": TrainingMethods(),
    "learned ranges": TrainingMethods("all"),
    "distillation": TrainingMethods(distillation=1.0),
    "distillation, learned ranges": TrainingMethods("all", distillation=1.0),
    "distillation, learned ranges, damping": TrainingMethods("all", damping=1.0, distillation=1.0),
    "distillation, freezing": TrainingMethods(distillation=1.0, freeze_oscillations=0.01),
    "distillation, learned ranges, freezing": TrainingMethods(
        "all", distillation=1.0, freeze_oscillations=0.01
    ),
}


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
            yield augment(images[index]).contiguous(**LAYOUT), labels[index]


def train_one_epoch(
    model: nn.Module,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    images: Tensor,
    labels: Tensor,
) -> None:
    """Forward, loss, backward, step."""
    with redirect_stdout(sys.stderr):  # what freezes, and when: not part of the table
        model.train()
    for x, y in batches(images, labels):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        average.update_parameters(model)


def fine_tune(
    wrapper: QATFxModule, train: tuple[Tensor, Tensor], args: argparse.Namespace
) -> tuple[QATFxModule, float]:
    """Train; what does not change the training (averaging) is done along with it.

    Returns:
        The average, and seconds of processor time per epoch.
    """
    parameters = [p for p in wrapper.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, lr=args.lr, momentum=0.9, weight_decay=args.weight_decay
    )
    steps = args.epochs * (len(train[0]) // BATCH_SIZE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rule = get_ema_multi_avg_fn(DECAY)
    average = AveragedModel(wrapper, multi_avg_fn=rule, use_buffers=True)
    start = time.process_time()
    for _ in range(args.epochs):
        train_one_epoch(wrapper, average, optimizer, scheduler, *train)
    return average.module, (time.process_time() - start) / args.epochs


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with cifar10_small")
    parser.add_argument("--qconfig_type", default="WC4_AT4", choices=QConfigType.choices())
    parser.add_argument("--bits", type=int, help="of weights and activations; None: the preset's")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument(
        "--end_bits", type=int, default=8, help="of the network's inputs and outputs"
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.003, help="at the start; cosine to 0")
    parser.add_argument("--weight_decay", type=float, default=1e-4)
    parser.add_argument(
        "--freeze", action="store_true", help="batch norm and ranges in the middle of the training"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser.parse_args()


def make_qconfig(args: argparse.Namespace) -> QConfig:
    """The preset, with the bits of the command line."""
    preset = get_preset(args.qconfig_type)
    assert preset is not None
    if args.bits is not None:
        weight, activation = preset.weight, preset.activation
        assert weight is not None
        assert activation is not None
        grids = weight.with_bits(args.bits), activation.with_bits(args.bits)
        preset = replace(preset, weight=grids[0], activation=grids[1])
    return replace(preset, end_bits=args.end_bits)


def describe(args: argparse.Namespace, num_train: int, accuracies: tuple[float, float]) -> str:
    """What was measured, and the head of the table."""
    bits = "" if args.bits is None else f" with {args.bits} bits"
    return (
        f"{environment()}\n\n"
        f"ResNet-20, {args.qconfig_type}{bits}, inputs and outputs {args.end_bits} bits; "
        f"{num_train} training images; batch {BATCH_SIZE}, SGD "
        f"with momentum 0.9, learning rate {args.lr:g}, cosine, weight decay "
        f"{args.weight_decay:g}, {args.epochs} epochs. Float {accuracies[0]:.2f} %; calibrated, "
        f"not trained: {accuracies[1]:.2f} %\n\n"
        "| training | seed | last | batch norm anew | averaged | averaged, batch norm anew "
        "| values that differ | CPU seconds per epoch |\n"
        "|---|---|---|---|---|---|---|---|"
    )


def measure_one(
    wrapper: QATFxModule,
    train: tuple[Tensor, Tensor],
    val: tuple[list[Tensor], Tensor],
    args: argparse.Namespace,
) -> tuple[list[float], str, float]:
    """Train and evaluate.

    Returns:
        Top-1 in percent of the last weights, of those with batch norm anew, and both of the
        average; values that differ; seconds per epoch.
    """
    average, seconds = fine_tune(wrapper.to(**LAYOUT), train, args)
    order = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(0))
    shuffled = train[0][order].contiguous(**LAYOUT).split(250)
    accuracies, different = [], ""
    for trained in (wrapper, average):
        accuracies.append(percent_correct(logits(trained.eval().convert(), val[0]), val[1]))
        different = different or num_different(trained, val[0][:COMPARED])
        trained.reestimate_batch_norms(shuffled)
        accuracies.append(percent_correct(logits(trained.convert(), val[0]), val[1]))
    return accuracies, different, seconds


def measure(args: argparse.Namespace) -> None:
    """Print a table: float, calibrated, each recipe, and the mean change of each over the seeds."""
    root = (args.data / RESNET20).parent
    model, train = load_resnet20(args.data), cifar10_images(root / "train")
    images, labels = cifar10_images(root / "val")
    val = list(images.split(250)), labels
    qconfig = make_qconfig(args)
    float_accuracy = percent_correct(logits(model, val[0]), labels)
    calibrated = PTCFxModule(copy.deepcopy(model), qconfig_type=qconfig)
    calibrated.calibrate(train[0][:: len(train[0]) // 500].split(50))
    accuracy = percent_correct(logits(calibrated, val[0]), labels)
    print(describe(args, len(train[0]), (float_accuracy, accuracy)), flush=True)
    freezing = {} if args.freeze else {
        "num_batch_norm_update_epochs": False, "num_observer_update_epochs": False,
    }  # fmt: skip
    changes: dict[str, list[Tensor]] = {name: [] for name in args.methods}
    for name, seed in product(args.methods, args.seeds):
        torch.manual_seed(seed)
        wrapper = QATFxModule(
            copy.deepcopy(model), qconfig_type=qconfig, total_epochs=args.epochs,
            methods=METHODS[name], **freezing,
        )  # fmt: skip
        found, different, seconds = measure_one(wrapper, train, val, args)
        changes[name].append(torch.tensor(found) - float_accuracy)
        columns = " | ".join(f"{a:.2f}" for a in found)
        print(f"| {name} | {seed} | {columns} | {different} | {seconds:.0f} |", flush=True)
    for name, rows in changes.items():
        columns = " | ".join(f"{change:+.2f}" for change in torch.stack(rows).mean(0).tolist())
        print(f"| {name} | mean change from float | {columns} | | |")


def main() -> None:
    """Measure, where the images and weights are."""
    args = parse_arguments()
    if args.data is None or not (args.data / RESNET20).is_file():
        print(f"skipped: no {RESNET20} under --data {args.data}; --help says what it needs")
        return
    measure(args)


if __name__ == "__main__":
    main()
