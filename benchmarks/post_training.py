"""What post-training methods reach, and what each of them gains: top-1 and agreement with float.

Networks and images are those of ``ptq_accuracy.py``; calibration never sees an evaluated image.
Each scheme is calibrated batch by batch, with each quality, and with the methods of ``best`` but
one; the second table of a network tells what each method did to the output on the images it learned
from. Values that differ are counted on 50 of the evaluated images: simulation against integer
graph, that against ONNX Runtime without optimizations, and with them (its integer kernels).

    python benchmarks/post_training.py --data FOLDER
"""

from __future__ import annotations

import argparse
import copy
import tempfile
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
from torch import Tensor

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.post_training import QUALITIES, MethodGain
from edgeailite.quantization.report import sqnr
from edgeailite.quantization.verify import verify

Methods = str | tuple[str, ...]

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


def _best_without(method: str) -> tuple[str, ...]:
    return tuple(name for name in QUALITIES["best"] if name != method)


# Ways to calibrate; None: batch by batch.
WAYS: dict[str, Methods | None] = {
    "batch by batch": None,
    "fast": "fast",
    "best": "best",
    "best without equalization": _best_without("equalization"),
    "best without weight ranges": _best_without("weight_ranges"),
    "best without learned rounding": _best_without("learned_rounding"),
    "best by blocks": (*_best_without("learned_rounding"), "block_rounding"),
}


def calibrate(task: Task, preset: str, methods: Methods | None) -> PTCFxModule:
    """A calibrated copy of the task's model."""
    wrapper = PTCFxModule(copy.deepcopy(task.model), qconfig_type=preset, verbose=False)
    if methods is None:
        return wrapper.calibrate(islice(cycle(task.calibration), BATCHES))
    return wrapper.calibrate(task.calibration, quality=methods)


def num_different(wrapper: PTCFxModule, images: Tensor) -> str:
    """Values that differ: simulation / integer graph / ONNX Runtime without, with optimizations."""
    with tempfile.TemporaryDirectory() as folder:
        path = wrapper.export(images[:1], Path(folder) / "model.onnx")
        found = verify(wrapper, [images], path)
    return f"{' / '.join(map(str, found.mismatches.values()))} of {found.num_values}"


def print_task(task: Task, schemes: dict[str, str], ways: list[str]) -> None:
    """Calibrate and evaluate each scheme in each way; print the tables."""
    reference = logits(task.model, task.images)
    top1 = percent_correct(reference, task.labels)
    seen = sum(len(batch) for batch in task.calibration)
    print(
        f"\n## {task.name}\n\nFloat top-1 {top1:.2f} % on {len(task.labels)} images; calibrated on "
        f"{seen} others\n\n"
        "| scheme | calibration | top-1 % | change | agreement with float % | SQNR dB | seconds "
        "| values that differ |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    gains: dict[str, list[MethodGain]] = {}
    for preset, name in schemes.items():
        for way in ways:
            started = time.perf_counter()
            wrapper = calibrate(task, preset, WAYS[way])
            seconds = time.perf_counter() - started
            out = logits(wrapper, task.images)
            accuracy = percent_correct(out, task.labels)
            agreement = percent_correct(out, reference.argmax(1))
            print(
                f"| {name} ({preset}) | {way} | {accuracy:.2f} | {accuracy - top1:+.2f} | "
                f"{agreement:.2f} | {sqnr(reference, out):.2f} | {seconds:.1f} | "
                f"{num_different(wrapper, task.images[0])} |",
                flush=True,
            )
            if way in QUALITIES:
                gains[f"{preset}, {way}"] = wrapper.post_training
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
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    presets = list(dict.fromkeys(preset for schemes in SCHEMES.values() for preset in schemes))
    parser.add_argument("--presets", nargs="+", choices=presets, default=presets)
    args = parser.parse_args()
    if args.data is None:
        print("skipped: it needs real images and weights, --data FOLDER; --help says which")
        return
    print(f"# Post-training methods\n\n{environment()}")
    for needed, all_schemes in SCHEMES.items():
        schemes = {preset: name for preset, name in all_schemes.items() if preset in args.presets}
        if not schemes:
            continue
        if (args.data / needed).is_file():
            print_task(TASKS[needed](args.data), schemes, args.ways)
        else:
            print(f"\nskipped: no {needed} in {args.data}")


if __name__ == "__main__":
    main()
