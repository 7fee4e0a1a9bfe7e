"""Post-training methods, beside those of peers: top-1, agreement with float, gain of each method.

Networks and images are those of ``ptq_accuracy.py``; calibration never sees an evaluated image.
Each scheme is calibrated plainly (batch by batch), with each quality, and with ``best`` less one of
its methods; the second table of a network tells what a quality tried and kept, by the output on the
images that it held out. Values that differ are counted on 10 of the evaluated images: simulation
against integer graph, that against ONNX Runtime without optimizations, and with them (its integer
kernels). With ``--peers``, quantizers of others stand beside the scheme that is like theirs.

    python benchmarks/post_training.py --data FOLDER --peers
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from peers import PEERS, PeerFailed, run_peer, write_network
from ptq_accuracy import (
    NETWORKS,
    Task,
    available_tasks,
    environment,
    logits,
    num_different,
    percent_correct,
    score,
)
from torch import Tensor

from edgeailite.quantization import PTCFxModule, QuantCalibrateModule, QuantModule
from edgeailite.quantization.methods import QUALITIES, MethodGain
from edgeailite.quantization.methods.post_training import Quality
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.modules.pact2 import quantizers

# Preset and what it is. PACT2: QuantCalibrateModule by its defaults.
PACT2 = "PACT2"
SCHEMES = {
    PACT2: "W8A8, power of two, per tensor",
    "WT8SYMP2_AT8SYMP2": "W8A8, power of two, per tensor",
    "WC8SYMP2_AT8SYMP2": "W8A8, power of two, per channel",
    "WC8_AT8": "W8A8, free scales, per channel",
    "WC4_AT8": "W4A8, free scales, per channel",
}
# With 4-bit weights, only the network that such weights suit.
ONLY = {"WC4_AT8": ("resnet20",)}
BATCHES = 20
COMPARED = 10
NUM_WORST = 5
PLAIN = "plain"


def best_without(method: str) -> Quality:
    """The quality ``best``, less one of its methods."""
    best = QUALITIES["best"]
    ways = (tuple(name for name in way if name != method) for way in best.ways)
    added = tuple(name for name in best.added if name != method)
    return replace(best, ways=tuple(dict.fromkeys(ways)), added=added)


# Without ranges of activations nothing is calibrated.
LESS = {
    f"best without {name}": best_without(name)
    for name in QUALITIES["best"].methods
    if name != "activation_ranges"
}
WAYS = (PLAIN, *QUALITIES, *LESS)


def calibrate(task: Task, preset: str, way: str | Sequence[str]) -> QuantModule:
    """A copy of the task's model, calibrated plainly, with a quality or with methods."""
    model, example = copy.deepcopy(task.model), task.calibration[0][:1]
    wrapper: QuantModule
    if preset == PACT2:
        wrapper = QuantCalibrateModule(model, dummy_input=example)
    else:
        wrapper = PTCFxModule(model, qconfig_type=preset, example_inputs=example, verbose=False)
    if way == PLAIN:
        return wrapper.calibrate(islice(cycle(task.calibration), BATCHES))
    return wrapper.calibrate(task.calibration, quality=way)


def activations_alone(task: Task, preset: str) -> QuantModule:
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
    found = {"all": score(task, reference, logits(wrapper, task.images))}
    for quantizer in quantizers(wrapper.module).values():
        quantizer.fake_quant_enabled = False
    for path, quantizer in quantizers(wrapper.module).items():
        quantizer.fake_quant_enabled = True
        found[path] = score(task, reference, logits(wrapper, task.images))
        quantizer.fake_quant_enabled = False
    print(
        f"\nActivations alone, weights in float ({preset})\n\n"
        "| on its grid | top-1 % | agreement with float % | SQNR dB |\n|---|---|---|---|"
    )
    for path in sorted(found, key=lambda name: found[name].sqnr)[: 1 + NUM_WORST]:
        print("| " + " | ".join([path, *(f"{value:.2f}" for value in found[path])]) + " |")


class Measured(NamedTuple):
    """A way to calibrate, and what came of it.

    Attributes:
        way: Its name.
        output: Logits of the evaluated images, (N, classes).
        seconds: Time that calibrating took.
        differ: Values that differ where it is deployed.
        gains: Effect of what was tried.
    """

    way: str
    output: Tensor
    seconds: float
    differ: str = "-"
    gains: Sequence[MethodGain] = ()


def measure(task: Task, preset: str, way: str) -> Measured:
    """Calibrate in one way, evaluate, and count the values that differ."""
    started = time.perf_counter()
    with redirect_stdout(sys.stderr):  # notes of the wrapper: not part of the table
        wrapper = calibrate(task, preset, way)
        seconds = time.perf_counter() - started
        output = logits(wrapper, task.images)
        differ = num_different(wrapper, [task.images[0][:COMPARED]])
    return Measured(way, output, seconds, differ, wrapper.post_training)


def print_row(task: Task, reference: Tensor, preset: str, measured: Measured) -> None:
    """One row of a network's table."""
    found = score(task, reference, measured.output)
    change = found.top1 - percent_correct(reference, task.labels)
    print(
        f"| {SCHEMES[preset]} ({preset}) | {measured.way} | {found.top1:.2f} | {change:+.2f} | "
        f"{found.agreement:.2f} | {found.sqnr:.2f} | {measured.seconds:.1f} | {measured.differ} |",
        flush=True,
    )


def print_peers(
    task: Task, reference: Tensor, preset: str, names: list[str], environments: Path
) -> None:
    """The rows of the peers with this kind of scales; one that fails says why in its row."""
    chosen = {name: PEERS[name] for name in names if PEERS[name].preset == preset}
    with TemporaryDirectory() as folder:
        network = write_network(task, Path(folder)) if chosen else Path(folder)
        for name, peer in chosen.items():
            try:
                measured = Measured(peer.title, *run_peer(name, network, environments))
                print_row(task, reference, preset, measured)
            except PeerFailed as error:
                why = str(error).replace("|", "/")
                print(f"| {SCHEMES[preset]} ({preset}) | {peer.title} | skipped: {why} ||||||")


def print_task(
    task: Task, presets: list[str], ways: list[str], peers: list[str], environments: Path
) -> None:
    """Calibrate and evaluate each scheme in each way and by peers; print the table, and gains."""
    reference = logits(task.model, task.images)
    seen = sum(len(batch) for batch in task.calibration)
    print(
        f"\n## {task.name}\n\nFloat top-1 {percent_correct(reference, task.labels):.2f} % on "
        f"{len(task.labels)} images; calibrated on {seen} others, seed {task.seed}\n\n"
        "| scheme | calibration | top-1 % | change | agreement with float % | SQNR dB | seconds "
        "| values that differ |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    gains: dict[str, Sequence[MethodGain]] = {}
    for preset in presets:
        for way in ways:
            measured = measure(task, preset, way)
            print_row(task, reference, preset, measured)
            gains[f"{preset}, {way}"] = measured.gains
        print_peers(task, reference, preset, peers, environments)
    print_gains(gains)


def print_gains(gains: dict[str, Sequence[MethodGain]]) -> None:
    """Table of what each quality tried and kept."""
    if not any(gains.values()):
        return
    print(
        "\n| scheme, quality | tried | changed | SQNR dB | seconds | kept |\n"
        "|---|---|---|---|---|---|"
    )
    for name, steps in gains.items():
        for gain in steps:
            print(
                f"| {name} | {gain.method} | {gain.num_changed} | {gain.sqnr:.2f} | "
                f"{gain.seconds:.1f} | {'yes' if gain.kept else 'no'} |"
            )


def read_arguments() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder with cifar10_small and imagenet_samples")
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--presets", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    add("--images", type=int, help="evaluate on so many images, evenly spread; all by default")
    add("--seeds", type=int, nargs="+", default=[0], help="each draws the calibration images anew")
    add("--peers", nargs="*", choices=PEERS, help="quantizers of others too; all by default")
    add(
        "--environments",
        type=Path,
        default=Path.home() / ".cache/edgeailite/peers",
        help="folder of the environments that are made for them",
    )
    add("--activations", action="store_true", help="also what the grids of activations leave")
    return parser.parse_args()


def main() -> None:
    """Print the tables of each network."""
    args = read_arguments()
    QUALITIES.update(LESS)
    peers = list(PEERS) if args.peers == [] else args.peers or []
    print(f"# Post-training methods\n\n{environment()}")
    for seed in args.seeds:
        for task in available_tasks(args.data, args.networks, seed):
            task = task.spread(args.images)
            presets = [p for p in args.presets if task.name in ONLY.get(p, NETWORKS)]
            print_task(task, presets, args.ways, peers, args.environments)
            for preset in presets if args.activations else ():
                print_activations(task, preset)


if __name__ == "__main__":
    main()
