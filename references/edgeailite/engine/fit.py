"""From the first epoch, or where ``--resume`` stopped, to the last; checkpoints in between."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import torch

from edgeailite import xnn
from references.edgeailite.engine import distributed, run_folder
from references.edgeailite.engine.averaging import WeightAverage
from references.edgeailite.engine.data import Data
from references.edgeailite.engine.distributed import Process
from references.edgeailite.engine.loops import (
    Task,
    TrainingState,
    run_epochs,
    run_post_training,
    validate_start,
)
from references.edgeailite.engine.model import Steps, float_or_inner, make_optimizer
from references.edgeailite.engine.options import Options
from references.edgeailite.engine.recorder import Recorder

logger = logging.getLogger("edgeailite.fit")


def open_run_folder(options: Options, process: Process) -> Path:
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
    options: Options,
    steps: Steps,
    data: Data,
    task: Task,
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
    scaler = torch.amp.GradScaler("cuda", enabled=fp16)
    average = WeightAverage(steps.module, options.weight_averaging)
    state = TrainingState(optimizer, scheduler, scaler, average)
    if options.resume is not None:
        resume(options, steps, task, state)
    if options.evaluate_start and state.epoch == 0:
        recorder.set(start=validate_start(options, steps, task))

    def after_epoch(state: TrainingState, is_best: bool) -> None:
        recorder.epoch(state)
        if process.is_main:
            if task.pictures is not None:
                with state.average.in_place():
                    picture = task.pictures(steps.eval_forward, steps.device)
                recorder.picture("val/input_target_prediction", picture)
            save(options, recorder.folder, steps, task, state, is_best)

    if not options.calibrates_at_once:
        run_epochs(options, steps, data.train, task, state, process, after_epoch)
    else:
        run_post_training(options, steps, data.train, task, state, after_epoch)
        gains = [dataclasses.asdict(gain) for gain in steps.module.post_training]
        recorder.set(post_training=gains)
        if steps.module.drop_result is not None:
            recorder.set(drops=steps.module.drop_result.drops)
    state.average.keep()
    recorder.set(epochs=state.epoch, **{f"best_{task.best}": state.best}, history=state.history)


def save(
    options: Options,
    folder: Path,
    steps: Steps,
    task: Task,
    state: TrainingState,
    is_best: bool,
) -> None:
    """Write ``checkpoint.pth`` and, where it is the best so far, ``model_best.pth``."""
    with state.average.in_place():
        model = float_or_inner(steps.module, options).state_dict()
        if options.weight_averaging:
            model = {name: value.clone() for name, value in model.items()}
    weights = {
        "model": model,
        "model_name": options.model_name,
        "epoch": state.epoch,
        task.best: state.history[-1][f"val_{task.best}"],
    }
    if is_best:
        run_folder.save_checkpoint(folder / run_folder.BEST, weights)
    training = {
        "module": steps.module.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict(),
        "scaler": state.scaler.state_dict(),
        "average": state.average.state_dict(),
        f"best_{task.best}": state.best,
        "history": state.history,
        "options": options.to_dict(),
    }
    run_folder.save_checkpoint(folder / run_folder.CHECKPOINT, weights | training)


def resume(options: Options, steps: Steps, task: Task, state: TrainingState) -> None:
    """Put model, schedule, optimizer and counters where the checkpoint has them.

    Raises:
        ValueError: The checkpoint is of another model or phase.
        FileNotFoundError: There is none.
    """
    assert options.resume is not None
    content = run_folder.load_checkpoint(options.resume, steps.device)
    # What the checkpoint's script had no option for yet is at its default.
    before = type(options)().to_dict() | content["options"]
    run_folder.check_same_run(before, options.to_dict())
    steps.module.load_state_dict(content["module"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.scheduler.load_state_dict(content["scheduler"])
    state.scaler.load_state_dict(content["scaler"])
    state.average.load_state_dict(content.get("average", {}))
    state.epoch, state.best = content["epoch"], content[f"best_{task.best}"]
    state.history = content["history"]
    logger.info("resumed from %s after epoch %d", options.resume, state.epoch)
