"""Does loading keep up with training? Images per second of both, at the size of Cityscapes.

The loader reads scenes of 2048x1024 pixels (rendered; PNG files like those of Cityscapes) and gives
augmented crops of 384x768, as train_segmentation_main.py has it by default; the training step is
the one of that script. Loader and steps alternate, and the medians of the rounds count.

    python benchmarks/segmentation_loader.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from ptq_accuracy import environment
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.make_street_scenes import Settings, make_street_scenes
from references.edgeailite.engine.data import set_epoch
from references.edgeailite.engine.data_segmentation import build_data
from references.edgeailite.engine.distributed import Process
from references.edgeailite.engine.loops import TrainingState, train_one_epoch
from references.edgeailite.engine.model import build_model, make_optimizer, prepare_steps
from references.edgeailite.engine.options_segmentation import SegmentationOptions
from references.edgeailite.engine.train_pixel2pixel import segmentation_task

SCENES = Settings(num_train=16, num_val=1, width=2048, height=1024)
ROUNDS = 3
STEPS = 2


def loading_rate(loader: DataLoader, epoch: int) -> float:
    """Images per second, the start of the workers not counted."""
    set_epoch(loader, epoch)
    batches = iter(loader)
    next(batches)
    started, count = time.perf_counter(), 0
    for images, _ in batches:
        count += len(images)
    return count / (time.perf_counter() - started)


def make_training(options: SegmentationOptions, process: Process) -> Callable[[], float]:
    """A function that trains on batches from memory and gives images per second."""
    data = build_data(options, process)
    batch = next(iter(data.train))
    model = build_model(options, len(data.classes), process.device)
    steps = prepare_steps(model, options, process)
    task = segmentation_task(options, data, process.device)
    optimizer = make_optimizer(model, options)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    state = TrainingState(optimizer, scheduler, torch.amp.GradScaler("cuda", enabled=False))

    def measure() -> float:
        started = time.perf_counter()
        metrics = task.new_metrics()
        train_one_epoch(steps, [batch] * STEPS, task.criterion, state, metrics, freeze_bn=False)
        metrics.compute()  # waits for the device
        return STEPS * len(batch[0]) / (time.perf_counter() - started)

    measure()
    return measure


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch_size", type=int, default=4)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    process = Process(device)
    with tempfile.TemporaryDirectory() as folder:
        root = make_street_scenes(Path(folder) / "scenes", SCENES)

        def options(workers: int) -> SegmentationOptions:
            return SegmentationOptions(
                data_path=root, workers=workers, batch_size=arguments.batch_size
            )

        loaders = {n: build_data(options(n), process).train for n in arguments.workers}
        train = make_training(options(0), process)
        rates: dict[int, list[float]] = {n: [] for n in loaders}
        needed = []
        for round_number in range(ROUNDS):
            needed.append(train())
            for n, loader in loaders.items():
                rates[n].append(loading_rate(loader, round_number))
    need = statistics.median(needed)
    print("# Loading against training\n")
    print(f"{environment()}, device {device.type}\n")
    print(
        f"{options(0).model_name} at 384x768, batch {arguments.batch_size}: the training step "
        f"takes {need:.2f} images per second. The loader, from files of 2048x1024:\n"
    )
    print("| workers | images per second | of the step's need |")
    print("|---|---|---|")
    for n, measured in rates.items():
        rate = statistics.median(measured)
        print(f"| {n} | {rate:.1f} | {rate / need:.1f} times |")


if __name__ == "__main__":
    main()
