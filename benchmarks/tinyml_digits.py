"""Accuracy of the microcontroller wrappers on handwritten digits: bits, targets, seeds.

python benchmarks/tinyml_digits.py [--seeds 5]
"""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from tinyml_common import Options
from tinyml_digits import main

WRAPPERS = ("tinpu_qat", "tinpu_ptq", "generic_qat", "generic_ptq")


@dataclass(frozen=True)
class Benchmark:
    """Command line."""

    seeds: int = 5
    """Networks to train for each row."""
    output_dir: Path = Path("data/checkpoints/tinyml")
    """Folder of the ONNX files."""


def run(options: Benchmark) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    rows = [(wrapper, bits, None) for wrapper in WRAPPERS for bits in (8, 4, 2)]
    rows[3:3] = [("tinpu_qat", 4, "soft_sigmoid"), ("tinpu_qat", 2, "default")]
    print("| wrapper | weight bits | float | quantized | worst change | differing values |")
    print("|---|---|---|---|---|---|")
    for wrapper, bits, soft in tqdm(rows, leave=False, disable=None):
        results = []
        for seed in range(options.seeds):
            given = Options(wrapper, bits, soft, seed=seed, output_dir=options.output_dir)
            with contextlib.redirect_stdout(io.StringIO()):
                results.append(main(given))
        floats = [r["float"] for r in results]
        quantized = [r["ONNX Runtime"] for r in results]
        worst = min(q - f for f, q in zip(floats, quantized, strict=True))
        mean = [sum(values) / len(values) for values in (floats, quantized)]
        differing = sum(r["differing"] for r in results)
        numbers = f"{mean[0]:.2f} | {mean[1]:.2f} | {worst:+.2f} | {differing:.0f}"
        words = {None: "", "default": ", hard from the start", "soft_sigmoid": ", begun soft"}
        print(f"| {wrapper} | {bits}{words[soft]} | {numbers} |", flush=True)


if __name__ == "__main__":
    run(tyro.cli(Benchmark, description=__doc__))
