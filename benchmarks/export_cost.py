"""Time and peak memory of an export: calibrate, convert, ONNX, check, one batch in ONNX Runtime.

Each format runs in a process of its own (a process's peak never goes down); the peak of a process
that only imports the libraries and builds the float model is printed for comparison.

    python benchmarks/export_cost.py --model mobilenet_v2 --size 224 --threads 2
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeailite.quantization.export.formats import writers
from edgeailite.quantization.wrappers import QuantCalibrateModule

LIMITS = {"seconds": 30.0, "peak_gb": 2.0}
STEPS = ("convert", "export", "check", "onnxruntime")


def timed(seconds: dict[str, float], step: str, function: Callable[[], Any]) -> Any:
    """Call `function` and note how long it took."""
    start = time.perf_counter()
    result = function()
    seconds[step] = time.perf_counter() - start
    return result


def build(name: str, size: int) -> tuple[torch.nn.Module, Tensor]:
    """A torchvision model with random weights, and a batch of noise."""
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).eval(), torch.randn(2, 3, size, size)


def run_onnx(path: Path, images: Tensor) -> Tensor:
    """One batch in ONNX Runtime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(np.asarray(result))


def measure(name: str, size: int, form: str) -> dict[str, Any]:
    """One export in this process; ``form`` empty: the libraries and the float model alone."""
    import onnx

    model, images = build(name, size)
    seconds: dict[str, float] = {}
    differing = 0
    if form:
        wrapper = QuantCalibrateModule(model, images).train()
        wrapper(images)
        wrapper.eval()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            converted = timed(seconds, "convert", wrapper.convert)
            timed(seconds, "export", lambda: converted.export(images, path, format=form))
            timed(seconds, "check", lambda: onnx.checker.check_model(str(path), full_check=True))
            actual = timed(seconds, "onnxruntime", lambda: run_onnx(path, images))
            differing = int((actual != converted(images)).sum())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    return {"seconds": seconds, "differing": differing, "peak_gb": peak}


def in_child(args: argparse.Namespace, form: str) -> dict[str, Any]:
    """:func:`measure` in a process of its own."""
    command = [sys.executable, __file__, "--model", args.model, "--size", str(args.size)]
    command += ["--threads", str(args.threads), "--child", form]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Print the table; 1 if a limit is exceeded or a value differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mobilenet_v2", help="a torchvision model")
    parser.add_argument("--size", type=int, default=224, help="side of the input image")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child is not None:
        print(json.dumps(measure(args.model, args.size, args.child)))
        return 0
    print(f"{args.model}, {args.size} x {args.size}, {args.threads} threads, {platform.machine()}")
    print(f"libraries and float model: {in_child(args, '')['peak_gb']:.2f} GB")
    print("| format | " + " | ".join(STEPS) + " | total s | peak GB | values that differ |")
    print("|---|" + "---|" * (len(STEPS) + 3))
    failed = False
    for form in (w.format for w in writers("scale", "converted")):
        result = in_child(args, form)
        total = sum(result["seconds"].values())
        cells = [f"{result['seconds'][step]:.2f}" for step in STEPS]
        cells += [f"{total:.2f}", f"{result['peak_gb']:.2f}", str(result["differing"])]
        print(f"| {form} | " + " | ".join(cells) + " |")
        failed |= total > LIMITS["seconds"] or result["peak_gb"] > LIMITS["peak_gb"]
        failed |= result["differing"] > 0
    verdict = "missed" if failed else "kept"
    print(f"{LIMITS['seconds']:.0f} s, {LIMITS['peak_gb']:.0f} GB, no value differs: {verdict}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
