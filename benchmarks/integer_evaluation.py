"""Time of evaluation: float, the simulation, and the integers of the device.

    python benchmarks/integer_evaluation.py
    python benchmarks/integer_evaluation.py --models mobilenet_v3_small swin_t --batch_size 4

Each wrapper is calibrated on noise. Evaluation with integers makes the integer graph once, which is
timed apart, and looks for changes of weights and ranges with each batch, which is part of it.
Medians of `--repeats` forwards at 224 px, the variants taking turns.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch

from edgeailite.quantization import PTCFxModule


def seconds(function: Callable[[], object]) -> float:
    """Time of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@torch.no_grad()
def measure(name: str, preset: str, batch_size: int, repeats: int) -> dict[str, float]:
    """Seconds of one forward of each variant, and of making the integer graph."""
    from torchvision import models  # after edgeailite, which makes it importable

    torch.manual_seed(0)
    x = torch.randn(batch_size, 3, 224, 224)
    model = models.get_model(name, weights=None).eval()
    wrapper = PTCFxModule(model, qconfig_type=preset, example_inputs=x[:1], verbose=False)
    wrapper.calibrate([x])
    original = models.get_model(name, weights=None).eval()
    found = {"conversion": seconds(lambda: wrapper.convert())}
    variants: dict[str, Callable[[], object]] = {
        "float": lambda: original(x),
        "simulation": lambda: wrapper.module(x),
        "integers": lambda: wrapper(x),
    }
    for run in variants.values():
        run()
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for _ in range(repeats):
        for variant, run in variants.items():
            times[variant].append(seconds(run))
    return found | {variant: statistics.median(values) for variant, values in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2", "resnet18"])
    parser.add_argument("--presets", nargs="+", default=["WC8_AT8", "WT8SYMP2_AT8SYMP2"])
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"batch {args.batch_size}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"{platform.machine()}, one thread\n"
    )
    print("| network | preset | float s | simulation s | integers s | ratio | conversion s |")
    print("|---|---|---|---|---|---|---|")
    for name in args.models:
        for preset in args.presets:
            found = measure(name, preset, args.batch_size, args.repeats)
            ratio = found["integers"] / found["simulation"]
            numbers = (found["float"], found["simulation"], found["integers"], ratio)
            cells = " | ".join(f"{n:.3f}" for n in (*numbers, found["conversion"]))
            print(f"| {name} | {preset} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
