"""Print a table of the runs in a folder, and plot them.

    python references/edgeailite/scripts/summarize_runs.py FOLDER

Reads ``FOLDER/NAME/result.json`` and writes ``FOLDER/summary.txt`` and ``FOLDER/summary.png``. The
accuracies are those of the last checkpoint of each run, on images that neither training nor
calibration has seen.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from edgeailite.files.atomic import write_atomically
from references.edgeailite.engine.run_folder import RESULT, write_text

# What decides, by task: the key in results, and its name.
METRICS = {"top1": "top-1", "miou": "mIoU"}
TITLES = {"float": "float", "calibrated": "calibrated", "qat": "quantization-aware trained"}


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Results of the finished runs, by the name of their folder.

    Raises:
        FileNotFoundError: There are none.
    """
    results = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob(f"*/{RESULT}"))
    }
    if not results:
        raise FileNotFoundError(f"No finished run in '{folder}': no folder in it has a {RESULT}.")
    return results


def validations(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Results of the validation runs by what they validate, in the order of the main job."""
    found = {
        name.removesuffix("_validation"): result
        for name, result in results.items()
        if result["phase"] == "validation"
    }
    return dict(sorted(found.items(), key=lambda item: _sort_key(item[0])))


def _sort_key(name: str) -> tuple[int, str]:
    order = list(TITLES)
    return (order.index(name) if name in order else len(order), name)


def find_metric(results: dict[str, dict[str, Any]]) -> str:
    """The key of the metric that all results have.

    Raises:
        ValueError: They are of different tasks.
    """
    common = [key for key in METRICS if all(key in r["val"] for r in results.values())]
    if not common:
        raise ValueError(
            f"The runs {', '.join(results)} are of different tasks; give each its own folder."
        )
    return common[0]


def table_row(name: str, result: dict[str, Any], metric: str) -> tuple[str, ...]:
    """One line of the table; a dash for what was not measured."""
    compared = result.get("verify")
    return (
        TITLES.get(name, name),
        f"{result['val'][metric]:.2f}",
        f"{result['onnx'][metric]:.2f}" if "onnx" in result else "-",
        f"{result['onnx_bytes']:,}" if "onnx_bytes" in result else "-",
        f"{compared['num_values']:,}" if compared else "-",
        str(sum(compared["mismatches"].values())) if compared else "-",
    )


def render(folder: Path, results: dict[str, dict[str, Any]]) -> str:
    """The table, what its numbers are, and where the files lie."""
    metric = find_metric(results)
    shown = METRICS[metric]
    header = ("network", f"{shown} %", f"{shown} % in ONNX Runtime", "ONNX bytes", "values")
    rows = [(*header, "mismatching")]
    rows += [table_row(name, result, metric) for name, result in validations(results).items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    lines += [
        "",
        "Of the last checkpoint, on images that neither training nor calibration has seen.",
        "Mismatching: of the output values, how many differ between PyTorch's simulation, the",
        "integer graph, and ONNX Runtime with graph optimizations off and on (three comparisons).",
        "",
        f"plot: {folder / 'summary.png'}",
    ]
    for name in results:
        files = sorted(p.name for p in (folder / name).iterdir() if p.suffix in (".onnx", ".pth"))
        lines.append(f"{folder / name}: {', '.join(files) or 'result.json, run.log'}")
    pictures = sorted(folder.glob("*/predictions.png"))
    lines += [f"picture of float and quantized predictions: {path}" for path in pictures[-1:]]
    return "\n".join(lines)


def _plot_curves(axes: Axes, results: dict[str, dict[str, Any]], key: str, label: str) -> None:
    for name, result in sorted(results.items(), key=lambda item: _sort_key(item[0])):
        history = result.get("history", [])
        if len(history) > 1:
            epochs = [row["epoch"] for row in history]
            for split, style in (("train", "--"), ("val", "-")):
                if f"{split}_{key}" not in history[0]:
                    continue
                values = [row[f"{split}_{key}"] for row in history]
                axes.plot(epochs, values, style, label=f"{TITLES.get(name, name)}, {split}")
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    if axes.lines:
        axes.legend(fontsize="small")


def plot(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """Training curves, and bars of the accuracies."""
    metric = find_metric(results)
    title = f"{METRICS[metric]}, %"
    figure, (loss, accuracy, bars) = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    _plot_curves(loss, results, "loss", "loss")
    loss.set_yscale("log")
    _plot_curves(accuracy, results, metric, title)
    found = validations(results)
    heights = [result["val"][metric] for result in found.values()]
    bars.bar_label(bars.bar([TITLES.get(name, name) for name in found], heights), fmt="%.2f")
    if heights:
        bars.set_ylim(max(0.0, min(heights) - 2.0), min(100.5, max(heights) + 0.5))
    bars.set_ylabel(title)
    bars.tick_params(axis="x", labelsize="small")
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def main() -> None:
    """Parse the command line, write table and plot, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds the run folders")
    folder = parser.parse_args().folder
    try:
        results = read_results(folder)
        text = render(folder, results)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    write_text(folder / "summary.txt", text + "\n")
    plot(folder / "summary.png", results)
    print(f"\n{text}")


if __name__ == "__main__":
    main()
