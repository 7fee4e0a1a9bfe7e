"""What post-training methods reach, and what each of them gains: top-1 and agreement with float.

Networks and images are those of ``ptq_accuracy.py``; calibration never sees an evaluated image.
Each scheme is calibrated batch by batch, and with each quality; the second table of a network tells
what each method did to the output on the images it learned from.

    python benchmarks/post_training.py --data FOLDER
"""

from __future__ import annotations

import argparse
import copy
import time
from itertools import cycle, islice
from pathlib import Path

from ptq_accuracy import (
    MOBILENET,
    RESNET20,
    Task,
    environment,
    logits,
    mobilenet_task,
    percent_correct,
    resnet20_task,
)

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.post_training import QUALITIES, MethodGain
from edgeailite.quantization.report import sqnr

# Preset and what it is, per network.
SCHEMES = {
    MOBILENET: {
        "WT8SYMP2_AT8SYMP2": "W8A8, power of two, per tensor",
        "WC8_AT8": "W8A8, free scales, per channel",
        "WC8SYMP2_AT8SYMP2": "W8A8, power of two, per channel",
    },
    RESNET20: {
        "WT8SYMP2_AT8SYMP2": "W8A8, power of two, per tensor",
        "WC4_AT8": "W4A8, free scales, per channel",
    },
}
TASKS = {MOBILENET: mobilenet_task, RESNET20: resnet20_task}
BATCHES = 20


def calibrate(task: Task, preset: str, quality: str | None) -> PTCFxModule:
    """A calibrated copy of the task's model."""
    wrapper = PTCFxModule(copy.deepcopy(task.model), qconfig_type=preset, verbose=False)
    if quality is None:
        return wrapper.calibrate(islice(cycle(task.calibration), BATCHES))
    return wrapper.calibrate(task.calibration, quality=quality)


def print_task(task: Task, schemes: dict[str, str], qualities: list[str]) -> None:
    """Calibrate and evaluate each scheme in each way; print the tables."""
    reference = logits(task.model, task.images)
    top1 = percent_correct(reference, task.labels)
    seen = sum(len(batch) for batch in task.calibration)
    print(
        f"\n## {task.name}\n\nFloat top-1 {top1:.2f} % on {len(task.labels)} images; calibrated on "
        f"{seen} others\n\n"
        "| scheme | calibration | top-1 % | change | agreement with float % | SQNR dB | seconds |\n"
        "|---|---|---|---|---|---|---|",
        flush=True,
    )
    gains: dict[str, list[MethodGain]] = {}
    for preset, name in schemes.items():
        for quality in (None, *qualities):
            started = time.perf_counter()
            wrapper = calibrate(task, preset, quality)
            seconds = time.perf_counter() - started
            out = logits(wrapper, task.images)
            accuracy = percent_correct(out, task.labels)
            agreement = percent_correct(out, reference.argmax(1))
            print(
                f"| {name} ({preset}) | {quality or 'batch by batch'} | {accuracy:.2f} | "
                f"{accuracy - top1:+.2f} | {agreement:.2f} | {sqnr(reference, out):.2f} | "
                f"{seconds:.1f} |",
                flush=True,
            )
            if quality is not None:
                gains[f"{preset}, {quality}"] = wrapper.post_training
    print("\n| scheme, quality | method | changed | SQNR dB | seconds |\n|---|---|---|---|---|")
    for name, steps in gains.items():
        for gain in steps:
            print(
                f"| {name} | {gain.method} | {gain.num_changed} | {gain.sqnr:.2f} | "
                f"{gain.seconds:.1f} |"
            )


def main() -> None:
    """Print the tables of each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with cifar10_small and imagenet_samples")
    parser.add_argument("--qualities", nargs="+", choices=QUALITIES, default=list(QUALITIES))
    args = parser.parse_args()
    if args.data is None:
        print("skipped: it needs real images and weights, --data FOLDER; --help says which")
        return
    print(f"# Post-training methods\n\n{environment()}")
    for needed, schemes in SCHEMES.items():
        if (args.data / needed).is_file():
            print_task(TASKS[needed](args.data), schemes, args.qualities)
        else:
            print(f"\nskipped: no {needed} in {args.data}")


if __name__ == "__main__":
    main()
