"""Time and memory of a training step: float, ours before and after the freeze, ``torch.ao`` FX QAT.

All variants run alternately in one process on the same batch; medians and ratios to float are
printed. Peak memory is measured afterwards, each variant in a process of its own (a process's peak
never goes down).

    python benchmarks/qat_step.py --models mobilenet_v2 resnet50 --batch_size 16 --steps 7
"""

from __future__ import annotations

import argparse
import platform
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import edgeailite  # noqa: F401  (makes torchvision importable beside a CPU build of torch)
from edgeailite import xnn

VARIANTS = ("float", "edgeailite", "edgeailite frozen", "torch.ao FX")


def build_float(name: str) -> nn.Module:
    """A torchvision model with random weights."""
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None)


def build(variant: str, name: str, example: Tensor) -> nn.Module:
    """The model in training mode, ready for a step."""
    model = build_float(name)
    if variant == "float":
        return model.train()
    if variant == "torch.ao FX":
        from torch.ao.quantization import get_default_qat_qconfig_mapping
        from torch.ao.quantization.quantize_fx import prepare_qat_fx

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return prepare_qat_fx(
                model.train(), get_default_qat_qconfig_mapping("x86"), example[:1]
            )
    wrapper = xnn.quantize.QuantTrainModule(model, dummy_input=example[:1], total_epochs=10)
    wrapper.train()
    if variant == "edgeailite frozen":
        wrapper(example)  # ranges need one batch
        wrapper.freeze()
    return wrapper


def make_step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """One step of SGD with momentum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    loss_function = nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_function(model(x), y).backward()
        optimizer.step()

    return step


def batch(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Noise: the arithmetic does not depend on the values."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(args.batch_size, 3, args.size, args.size, generator=generator)
    return x, torch.randint(0, 1000, (args.batch_size,), generator=generator)


def measure_times(name: str, variants: list[str], args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step; the variants take turns."""
    x, y = batch(args)
    steps = {v: make_step(build(v, name, x), x, y) for v in variants}
    times: dict[str, list[float]] = {v: [] for v in variants}
    for round_ in range(args.steps + 1):
        for variant, step in steps.items():
            start = time.perf_counter()
            step()
            if round_:  # the first is a warm-up
                times[variant].append(time.perf_counter() - start)
    return {v: statistics.median(t) for v, t in times.items()}


def measure_memory(name: str, variant: str, args: argparse.Namespace) -> float:
    """Peak resident MiB of a process that builds the model and does three steps (Linux)."""
    command = [sys.executable, __file__, "--memory_of", variant, "--models", name]
    command += ["--batch_size", str(args.batch_size), "--size", str(args.size)]
    return float(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
    )


def print_memory(variant: str, args: argparse.Namespace) -> None:
    """The child's part of :func:`measure_memory`."""
    x, y = batch(args)
    step = make_step(build(variant, args.models[0], x), x, y)
    for _ in range(3):
        step()
    # Not ru_maxrss: a child starts with its parent's.
    print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2", "resnet50"])
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--no_memory", action="store_true", help="only measure time")
    parser.add_argument("--memory_of", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print_memory(args.memory_of, args)
        return
    machine = platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, {machine}, {torch.get_num_threads()} threads")
    print(f"batch {args.batch_size} x 3 x {args.size} x {args.size}, medians of {args.steps} steps")
    print(f"{'model':14} {'variant':20} {'s/step':>8} {'ratio':>7} {'peak MiB':>9} {'ratio':>7}")
    for name in args.models:
        times = measure_times(name, args.variants, args)
        peaks = {} if args.no_memory else {v: measure_memory(name, v, args) for v in args.variants}
        for variant, seconds in times.items():
            line = f"{name:14} {variant:20} {seconds:8.3f} {seconds / times['float']:7.2f}"
            if peaks:
                line += f" {peaks[variant]:9.0f} {peaks[variant] / peaks['float']:7.2f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
