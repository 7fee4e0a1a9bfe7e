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
import time
from itertools import cycle, islice
from pathlib import Path

from ptq_accuracy import Task, available_tasks, logits, num_different, percent_correct, score

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.methods import QUALITIES, MethodGain
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.modules.pact2 import quantizers

Methods = str | tuple[str, ...]

# Preset and what it is, per network.
SCHEMES = {
    "mobilenet_v1_025": {
        "WT8SYMP2_AT8SYMP2": "W8A8, power of two, per tensor",
        "WC8_AT8": "W8A8, free scales, per channel",
        "WC8SYMP2_AT8SYMP2": "W8A8, power of two, per channel",
    },
    "resnet20": {
        "WT8SYMP2_AT8SYMP2": "W8A8, power of two, per tensor",
        "WC4_AT8": "W4A8, free scales, per channel",
    },
}
BATCHES = 20
NUM_WORST = 5


def _best_without(method: str) -> tuple[str, ...]:
    return tuple(name for name in QUALITIES["best"] if name != method)


# Ways to calibrate; None: batch by batch.
WAYS: dict[str, Methods | None] = {
    "batch by batch": None,
    "fast": "fast",
    "fast with bias absorption": ("bias_absorption", *QUALITIES["fast"]),
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


def activations_alone(task: Task, preset: str) -> PTCFxModule:
    """Activations on the grids that equalization and range search give them; weights in float."""
    wrapper = calibrate(task, preset, ("equalization", "activation_ranges"))
    for layer in wrapper.module.modules():
        if isinstance(layer, QuantLayer):
            layer.fake_quant_enabled = False
    return wrapper


def print_activations(task: Task, preset: str) -> None:
    """What the grids of activations leave: all of them, and the worst ones one by one."""
    reference = logits(task.model, task.images)
    wrapper = activations_alone(task, preset)
    found = {"all": score(task, reference, wrapper)}
    for quantizer in quantizers(wrapper.module).values():
        quantizer.fake_quant_enabled = False
    for path, quantizer in quantizers(wrapper.module).items():
        quantizer.fake_quant_enabled = True
        found[path] = score(task, reference, wrapper)
        quantizer.fake_quant_enabled = False
    print(
        f"\nActivations alone, weights in float ({preset})\n\n"
        "| on its grid | top-1 % | agreement with float % | SQNR dB |\n|---|---|---|---|"
    )
    for path in sorted(found, key=lambda name: found[name].sqnr)[: 1 + NUM_WORST]:
        print("| " + " | ".join([path, *(f"{value:.2f}" for value in found[path])]) + " |")


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
            found = score(task, reference, wrapper)
            print(
                f"| {name} ({preset}) | {way} | {found.top1:.2f} | {found.top1 - top1:+.2f} | "
                f"{found.agreement:.2f} | {found.sqnr:.2f} | {seconds:.1f} | "
                f"{num_different(wrapper, task.images[:1])} |",
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
    parser.add_argument(
        "--activations", action="store_true", help="also what the grids of activations leave"
    )
    args = parser.parse_args()
    print("# Post-training methods\n")
    for task in available_tasks(args.data):
        schemes = {key: name for key, name in SCHEMES[task.name].items() if key in args.presets}
        if schemes:
            print_task(task, schemes, args.ways)
        for preset in schemes if args.activations else ():
            print_activations(task, preset)


if __name__ == "__main__":
    main()
