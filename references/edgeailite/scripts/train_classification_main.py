"""Train, calibrate or validate an image classifier, in float or quantized.

    python references/edgeailite/scripts/train_classification_main.py --help

One run writes one folder: options, log, TensorBoard events, checkpoints, ONNX, report, result.
The loops are in ``references/edgeailite/engine/loops.py``, loss and metrics of classification in
``train_classification.py`` beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from references.edgeailite.engine.data import images_of
from references.edgeailite.engine.data_classification import build_data
from references.edgeailite.engine.deploy import finish
from references.edgeailite.engine.distributed import Process
from references.edgeailite.engine.fit import fit, open_run_folder
from references.edgeailite.engine.launch import launch
from references.edgeailite.engine.loops import seed_everything, validate_steps
from references.edgeailite.engine.mixed_precision import with_chosen_bits
from references.edgeailite.engine.model import build_model, prepare_steps
from references.edgeailite.engine.options_classification import ClassificationOptions
from references.edgeailite.engine.recorder import Recorder
from references.edgeailite.engine.train_classification import classification_task


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run, in as many processes as ``--gpus`` asks for."""
    launch(ClassificationOptions, run, Path(__file__), arguments)


def run(options: ClassificationOptions, process: Process) -> dict[str, Any]:
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
    task = classification_task(options, data, process.device)
    options = with_chosen_bits(options, data, task, process, folder)
    model = build_model(options, len(data.classes), process.device)
    steps = prepare_steps(model, options, process)
    with Recorder(folder, options, process.is_main) as recorder:
        if options.phase != "validation":
            fit(options, steps, data, task, process, recorder)
        recorder.set(val=validate_steps(steps, task))
        if process.is_main:
            finish(options, model, task, partial(images_of, data.val), recorder)
            recorder.finish()
    return recorder.result


if __name__ == "__main__":
    main()
