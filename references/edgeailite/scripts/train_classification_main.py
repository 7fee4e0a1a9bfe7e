"""Train, calibrate or validate an image classifier, in float or quantized.

    python references/edgeailite/scripts/train_classification_main.py --help

One run writes one folder: options, log, TensorBoard events, checkpoints, ONNX, report, result.
The loops are in ``references/edgeailite/engine/train_classification.py``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from edgeailite import xnn
from references.edgeailite.engine import deploy, distributed, run_folder
from references.edgeailite.engine.data import ClassificationData, build_data, images_of
from references.edgeailite.engine.distributed import Process
from references.edgeailite.engine.model import (
    Steps,
    build_model,
    example_input,
    float_or_inner,
    make_optimizer,
    prepare_steps,
)
from references.edgeailite.engine.options import ClassificationOptions, parse_options
from references.edgeailite.engine.recorder import Recorder
from references.edgeailite.engine.train_classification import (
    TrainingState,
    run_epochs,
    seed_everything,
    validate,
    validate_start,
    validate_steps,
)

logger = logging.getLogger("edgeailite.main")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run, in as many processes as ``--gpus`` asks for."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parse_options(arguments)
    try:
        distributed.check_gpus(options.gpus)
        if distributed.start_processes(options.gpus, Path(__file__), arguments):
            return
        with distributed.process_group(options.gpus) as process:
            run(options, process)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    finally:
        run_folder.stop_log()


def run(options: ClassificationOptions, process: Process) -> dict[str, Any]:
    """Do what the options ask, in this process.

    Returns:
        What ``result.json`` holds.

    Raises:
        ValueError: The options, the data or a checkpoint can't be used; the message says why.
        FileNotFoundError: Something that was named does not exist.
    """
    if options.verify and process.world_size > 1:
        raise ValueError("--verify needs one process: validate the checkpoint with it afterwards.")
    data = build_data(options, process)
    folder = open_run_folder(options, process)
    seed_everything(options.seed)
    model = build_model(options, len(data.classes), process.device)
    steps = prepare_steps(model, options, process)
    with Recorder(folder, options, process.is_main) as recorder:
        if options.phase != "validation":
            fit(options, steps, data, process, recorder)
        recorder.set(val=validate_steps(steps, data))
        if process.is_main:
            finish(options, steps.module, data, recorder)
    return recorder.result


def open_run_folder(options: ClassificationOptions, process: Process) -> Path:
    """Find the run's folder, begin its log and write the resolved options into it."""
    folder = options.save_path
    if folder is None and options.resume is not None:
        folder = options.resume if options.resume.is_dir() else options.resume.parent
    if folder is None:
        folder = distributed.from_main(
            run_folder.default_run_folder(
                options.dataset_name, options.model_name, options.phase, bool(options.quantize)
            )
        )
    if process.is_main:
        run_folder.prepare_run_folder(folder, resume=options.resume is not None)
        run_folder.write_text(folder / run_folder.OPTIONS, options.to_json())
    run_folder.start_log(folder, is_main=process.is_main)
    logger.info("run folder: %s\n%s", folder, options.to_json().rstrip())
    return folder


def fit(
    options: ClassificationOptions,
    steps: Steps,
    data: ClassificationData,
    process: Process,
    recorder: Recorder,
) -> None:
    """Train or calibrate: from the beginning, or from where ``--resume`` stopped."""
    assert data.train is not None
    optimizer = make_optimizer(steps.module, options)
    scheduler = xnn.optim.make_lr_scheduler(
        optimizer,
        options.scheduler,
        options.epochs,
        steps_per_epoch=len(data.train),
        warmup_epochs=options.warmup_epochs,
        milestones=options.milestones or (),
        gamma=options.gamma,
    )
    fp16 = options.enable_fp16 and process.device.type == "cuda"
    state = TrainingState(optimizer, scheduler, torch.amp.GradScaler("cuda", enabled=fp16))
    if options.resume is not None:
        resume(options, steps, state)
    if options.evaluate_start and state.epoch == 0:
        recorder.set(start=validate_start(options, steps, data))

    def after_epoch(state: TrainingState, is_best: bool) -> None:
        recorder.epoch(state)
        if process.is_main:
            save(options, recorder.folder, steps, state, is_best)

    run_epochs(options, steps, data, state, process, after_epoch)
    recorder.set(epochs=state.epoch, best_top1=state.best_top1, history=state.history)


def save(
    options: ClassificationOptions, folder: Path, steps: Steps, state: TrainingState, is_best: bool
) -> None:
    """Write ``checkpoint.pth`` and, where it is the best so far, ``model_best.pth``."""
    weights = {
        "model": float_or_inner(steps.module, options).state_dict(),
        "model_name": options.model_name,
        "epoch": state.epoch,
        "top1": state.history[-1]["val_top1"],
    }
    if is_best:
        run_folder.save_checkpoint(folder / run_folder.BEST, weights)
    training = {
        "module": steps.module.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict(),
        "scaler": state.scaler.state_dict(),
        "best_top1": state.best_top1,
        "history": state.history,
        "options": options.to_dict(),
    }
    run_folder.save_checkpoint(folder / run_folder.CHECKPOINT, weights | training)


def resume(options: ClassificationOptions, steps: Steps, state: TrainingState) -> None:
    """Put model, schedule, optimizer and counters where the checkpoint has them.

    Raises:
        ValueError: The checkpoint is of another model or phase.
        FileNotFoundError: There is none.
    """
    assert options.resume is not None
    content = run_folder.load_checkpoint(options.resume, steps.device)
    # What the checkpoint's script had no option for yet is at its default.
    before = ClassificationOptions().to_dict() | content["options"]
    run_folder.check_same_run(before, options.to_dict())
    steps.module.load_state_dict(content["module"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.scheduler.load_state_dict(content["scheduler"])
    state.scaler.load_state_dict(content["scaler"])
    state.epoch, state.best_top1 = content["epoch"], content["best_top1"]
    state.history = content["history"]
    logger.info("resumed from %s after epoch %d", options.resume, state.epoch)


def finish(
    options: ClassificationOptions, model: nn.Module, data: ClassificationData, recorder: Recorder
) -> None:
    """Export the last model, report on it, and compare it with ONNX Runtime if asked to."""
    model.eval().cpu()
    path = recorder.folder / "model.onnx"
    if options.quantize:
        title = f"{options.model_name}, {options.phase}"
        images = images_of(data.val)
        recorder.report(deploy.write_report(model, recorder.folder, title, images))
    if options.save_onnx or options.verify:
        deploy.export_onnx(model, example_input(options), path, quantized=bool(options.quantize))
        recorder.set(onnx_bytes=path.stat().st_size)
    if options.verify:
        recorder.set(verify=deploy.verify_onnx(model, images_of(data.val), path))
        forward, device = deploy.onnx_forward(path), torch.device("cpu")
        recorder.set(onnx=validate(forward, data.val, len(data.classes), device, nullcontext))
    recorder.finish()


if __name__ == "__main__":
    main()
