"""Bits per layer for a budget, beside the same bits everywhere; calibrated, not trained.

A CIFAR ResNet-20 and a MobileNetV1 of width 0.25, as in ``ptq_accuracy.py``. Sensitivity is
measured on the calibration images; none of them is evaluated.

    python benchmarks/mixed_precision.py --data FOLDER
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

from ptq_accuracy import Task, available_tasks, environment, logits, percent_correct, score
from torch import nn

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.methods.mixed_precision import (
    MixedPrecision,
    choose_bit_widths,
    layer_sensitivity,
)

PRESET = "WC8_AT8"
BIT_WIDTHS = (8, 6, 5, 4)
SHARES = (0.5, 0.625, 0.75)


def wrap(model: nn.Module, found: MixedPrecision) -> PTCFxModule:
    """A wrapper with these bits, around a copy of the model."""
    copied = copy.deepcopy(model)
    return PTCFxModule(copied, qconfig_type=PRESET, bit_widths=found, verbose=False)


def print_row(task: Task, name: str, found: MixedPrecision) -> None:
    """Calibrate with these bits and evaluate."""
    wrapper = wrap(task.model, found).calibrate(task.calibration, quality="fast")
    evaluated = score(task, logits(task.model, task.images), logits(wrapper, task.images))
    weights = sum(layer.num_weights for layer in found.sensitivities)
    macs = sum(layer.num_macs for layer in found.sensitivities)
    print(
        f"| {name} | {8 * found.num_bytes / weights:.2f} | {found.mac_bits / macs:.2f} "
        f"| {evaluated.top1:.2f} | {evaluated.agreement:.2f} | {evaluated.sqnr:.2f} |",
        flush=True,
    )


def print_task(task: Task) -> None:
    """The same bits everywhere, then the choices for each budget."""
    started = time.perf_counter()
    # Equalization moves errors between layers: they are measured behind it.
    wrapper = wrap(task.model, MixedPrecision({}))
    wrapper.calibrate(task.calibration, quality=("equalization", "activation_ranges"))
    batches = [(images,) for images in task.calibration]
    layers = layer_sensitivity(wrapper.module, batches, BIT_WIDTHS)
    seconds = time.perf_counter() - started
    top1 = percent_correct(logits(task.model, task.images), task.labels)
    print(
        f"\n## {task.name}\n\nFloat top-1 {top1:.2f} %; sensitivity of {len(layers)} layers with "
        f"{', '.join(map(str, BIT_WIDTHS))} bits in {seconds:.0f} s\n\n"
        "| weights | bits per weight | per MAC | top-1 % | agreement with float % | SQNR dB |\n"
        "|---|---|---|---|---|---|"
    )
    for bits in BIT_WIDTHS:
        same = MixedPrecision({layer.path: bits for layer in layers}, tuple(layers))
        print_row(task, f"{bits} bits everywhere", same)
    budgets = {
        "max_bytes": sum(layer.num_bytes(8) for layer in layers),
        "max_mac_bits": sum(layer.mac_bits(8) for layer in layers),
    }
    for name, whole in budgets.items():
        for share in SHARES:
            chosen = choose_bit_widths(layers, **{name: int(share * whole)})
            print_row(task, f"{name} {share:.1%} of 8 bits", MixedPrecision(chosen, tuple(layers)))


def main() -> None:
    """Print the tables of each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with cifar10_small and imagenet_samples")
    args = parser.parse_args()
    print("# Mixed precision\n")
    print(environment())
    for task in available_tasks(args.data, ("resnet20", "mobilenet_v1_025")):
        print_task(task)


if __name__ == "__main__":
    main()
