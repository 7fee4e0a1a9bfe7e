"""Train, calibrate or validate a semantic segmentation model, in float or quantized.

    python references/edgeailite/scripts/train_segmentation_main.py --help

One run writes one folder: options, log, TensorBoard events, checkpoints, ONNX, report, pictures,
result. The loops are in ``references/edgeailite/engine/loops.py``, loss, metrics and pictures of
segmentation in ``train_pixel2pixel.py`` beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from references.edgeailite.engine.data import images_of
from references.edgeailite.engine.data_segmentation import build_data
from references.edgeailite.engine.deploy import finish
from references.edgeailite.engine.distributed import Process
from references.edgeailite.engine.fit import fit, open_run_folder
from references.edgeailite.engine.launch import launch
from references.edgeailite.engine.loops import seed_everything, validate_steps
from references.edgeailite.engine.mixed_precision import with_chosen_bits
from references.edgeailite.engine.model import build_model, prepare_steps
from references.edgeailite.engine.options_segmentation import SegmentationOptions
from references.edgeailite.engine.recorder import Recorder
from references.edgeailite.engine.train_pixel2pixel import (
    check_model,
    compare_pictures,
    export_classes,
    log_classes,
    segmentation_task,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run, in as many processes as ``--gpus`` asks for."""
    launch(SegmentationOptions, run, Path(__file__), arguments)


def run(options: SegmentationOptions, process: Process) -> dict[str, Any]:
    """Do what the options ask, in this process.

    Returns:
        What ``result.json`` holds.

    Raises:
        ValueError: The options, the data or a checkpoint can't be used; the message says why.
        FileNotFoundError: Something that was named does not exist.
    """
    process.check_alone(
        verify=options.verify, at_once=options.calibrates_at_once, budgets=options.budgets
    )
    data = build_data(options, process)
    folder = open_run_folder(options, process)
    seed_everything(options.seed)
    check = partial(check_model, options=options, num_classes=len(data.classes))
    task = segmentation_task(options, data, process.device)
    options = with_chosen_bits(options, data, task, process, folder, check)
    model = build_model(options, len(data.classes), process.device, check)
    steps = prepare_steps(model, options, process)
    with Recorder(folder, options, process.is_main) as recorder:
        if options.phase != "validation":
            fit(options, steps, data, task, process, recorder)
        results = validate_steps(steps, task)
        recorder.set(val=results)
        log_classes(results)
        if process.is_main:
            finish(options, model, task, partial(images_of, data.val), recorder)
            if options.quantize:
                compare_pictures(options, model, data, recorder)
            if options.export_argmax:
                export_classes(options, model, data, recorder)
            recorder.finish()
    return recorder.result


if __name__ == "__main__":
    main()
