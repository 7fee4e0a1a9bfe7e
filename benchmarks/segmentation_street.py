"""Segmentation of real street images, trained from scratch: float, calibrated, trained quantized.

DeepLabV3+Lite on MobileNetV2 by the scripts that users run, beside a peer without a network: the
commonest class of each pixel position in the training targets. Each accuracy is that of the last
checkpoint, at the targets' own resolution, on images that nothing was trained or calibrated with;
mean over the classes that occur in them.

    python benchmarks/segmentation_street.py --data FOLDER

``FOLDER`` is in the Cityscapes layout. Writes the runs to ``--runs`` and the curve to ``--plot``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from ptq_accuracy import environment

mpl.use("Agg")
from matplotlib import pyplot as plt

from edgeailite.datasets import create_dataset

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "references/edgeailite/scripts/train_segmentation_main.py"
RESULTS = ROOT / "benchmarks/results"
DATASET = "cityscapes_segmentation"
COMMON = ["--dataset_name", DATASET, "--img_resize", "128", "160", "--batch_size", "8"]
COMMON += ["--workers", "1", "--gpus"]
FLOAT = ["--epochs", "100", "--lr", "2e-3", "--scheduler", "cosine", "--rand_scale", "0.75", "1.5"]
CALIBRATED = ["--phase", "calibration", "--epochs", "1"]
QAT = ["--quantize", "True", "--epochs", "12", "--lr", "1e-4", "--scheduler", "cosine"]
QAT += ["--rand_scale", "0.75", "1.5"]


def commonest_class_per_position(root: Path) -> float:
    """Mean IoU of the peer, percent."""
    train, val = (create_dataset(DATASET, root, split) for split in ("train", "val"))
    num_classes = len(val.classes)
    targets = np.stack([train.load_target(i) for i in range(len(train))])
    counts = np.stack([(targets == c).sum(0) for c in range(num_classes)])
    prediction = counts.argmax(0)
    confusion = np.zeros((num_classes, num_classes), np.int64)
    for index in range(len(val)):
        target = val.load_target(index)
        counted = target < num_classes
        np.add.at(confusion, (target[counted], prediction[counted]), 1)
    true, occurring = confusion.diagonal(), confusion.sum(1)
    union = occurring + confusion.sum(0) - true
    return float(100.0 * (true / union)[occurring > 0].mean())


def run(folder: Path, data: Path, *options: str) -> tuple[dict[str, Any], str, float]:
    """One run of the script: its result, its command, its seconds."""
    arguments = ["--data_path", str(data), *COMMON[:-1], *options, "--save_path", str(folder)]
    started = time.monotonic()
    command = [sys.executable, str(SCRIPT), *arguments, "--gpus"]
    subprocess.run(command, stdout=sys.stderr, check=True)  # its log is not part of the table
    words = " ".join(arguments).replace(str(data), "FOLDER").replace(str(folder.parent), "RUNS")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result, f"{words} --gpus", time.monotonic() - started


def plot(path: Path, runs: dict[str, dict[str, Any]], peer: float) -> None:
    """Curve of the float and the quantization-aware training."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    first = 0
    for name in ("float", "quantization-aware"):
        rows = runs[name]["history"]
        epochs = [first + row["epoch"] for row in rows]
        axes.plot(epochs, [row["val_miou"] for row in rows], label=name)
        first = epochs[-1]
    axes.axhline(peer, color="grey", linestyle=":", label="commonest class per position")
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation mIoU, %")
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run all, print the table, write the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("data/checkpoints/segmentation_street"))
    parser.add_argument("--plot", type=Path, default=RESULTS / "segmentation_street.png")
    arguments = parser.parse_args()
    peer = commonest_class_per_position(arguments.data)
    weights = ["--pretrained", str(arguments.runs / "float" / "checkpoint.pth")]
    steps = {
        "float": FLOAT,
        "calibrated": [*CALIBRATED, *weights, "--verify", "True", "--export_argmax", "True"],
        "quantization-aware": [*QAT, *weights, "--verify", "True", "--export_argmax", "True"],
    }
    results, commands, rows = {}, [], []
    for name, options in steps.items():
        folder = arguments.runs / name.replace("quantization-aware", "qat")
        result, command, seconds = run(folder, arguments.data, *options)
        results[name] = result
        commands.append(command)
        miou, start = result["val"]["miou"], results["float"]["val"]["miou"]
        differing = result.get("verify", {}).get("mismatches", {})
        pixels = result.get("verify_argmax", {})
        rows.append(
            f"| {name} | {miou:.2f} | {miou - start:+.2f} | {result['val']['accuracy']:.2f} | "
            f"{sum(differing.values()) if differing else '-'} | "
            f"{pixels.get('mismatches', '-')} of {pixels.get('num_pixels', '-')} | "
            f"{seconds / 60:.1f} |"
        )
    plot(arguments.plot, results, peer)
    print("# Street images, trained from scratch\n")
    print(f"{environment()}\n\n{results['float']['model_name']}, 128x160\n")
    print("| network | mIoU % | change | pixels right % | logits that differ | classes | minutes |")
    print("|---|---|---|---|---|---|---|")
    print(f"| commonest class per position | {peer:.2f} | | | | | |")
    print("\n".join(rows))
    print("\nIoU per class, percent (absent classes are left out):\n")
    classes = [name for name, value in results["float"]["val"]["iou"].items() if value is not None]
    print("| network | " + " | ".join(classes) + " |")
    print("|---" * (len(classes) + 1) + "|")
    for name, result in results.items():
        values = (f"{result['val']['iou'][c]:.1f}" for c in classes)
        print(f"| {name} | " + " | ".join(values) + " |")
    print("\nOptions of train_segmentation_main.py:\n\n```")
    print("\n".join(commands))
    print("```")


if __name__ == "__main__":
    main()
