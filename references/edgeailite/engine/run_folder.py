"""The folder of one run: options, log, TensorBoard events, checkpoints, results.

Files are written to a temporary name and renamed: a reader never meets half a file.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgeailite.files.atomic import write_atomically

CHECKPOINT = "checkpoint.pth"
BEST = "model_best.pth"
OPTIONS = "options.json"
RESULT = "result.json"
LOG = "run.log"

# A resumed run must agree with its checkpoint in the first; the second don't touch the numbers.
SAME_MODEL = ("phase", "quantize", "model_name", "strides", "bitwidth_weights")
SAME_MODEL += ("bitwidth_activations", "per_channel_q", "quantize_method", "qconfig_type")
SAME_MODEL += ("learned_ranges", "distillation", "weight_averaging")
NO_EFFECT = ("pretrained", "save_path", "resume", "save_onnx", "verify", "gpus", "workers")
NO_EFFECT += ("data_path", "evaluate_start")

logger = logging.getLogger("edgeailite")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically."""
    with write_atomically(path) as temporary:
        torch.save(dict(content), temporary)


def load_checkpoint(path: Path, device: torch.device | None = None) -> dict[str, Any]:
    """Read a checkpoint of `save_checkpoint`.

    Args:
        path: The file, or the run folder that holds it.
        device: Where its tensors go; default: where they were.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is truncated, or no checkpoint of these scripts.
    """
    if path.is_dir():
        path = path / CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(
            f"No checkpoint '{path}' to resume from. Pass a {CHECKPOINT} or the folder holding it."
        )
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(
            f"Can't read checkpoint '{path}' ({type(error).__name__}): it is truncated or no "
            f"PyTorch checkpoint. Take an earlier one, or start anew without --resume."
        ) from error
    if not isinstance(content, dict) or not {"model", "epoch", "optimizer"} <= content.keys():
        raise ValueError(
            f"'{path}' holds weights but no training state; it can't be resumed. "
            f"Start from it with --pretrained {path}."
        )
    return content


def check_same_run(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare a checkpoint's options with those of the run that resumes it.

    Warns where the result will not be that of an uninterrupted run.

    Raises:
        ValueError: It is another model, or another phase.
    """
    differing = [name for name in now if before.get(name) != now[name] and name not in NO_EFFECT]
    changes = [f"--{name} {before.get(name)} -> {now[name]}" for name in differing]
    if set(differing) & set(SAME_MODEL):
        raise ValueError(
            f"--resume {now['resume']} is another run ({', '.join(changes)}). "
            f"Use the options in its {OPTIONS}, or start from its weights with --pretrained."
        )
    if changes:
        logger.warning(
            "options changed since the checkpoint: %s; the result is not that of one run",
            ", ".join(changes),
        )


def default_run_folder(dataset_name: str, model_name: str, phase: str, quantize: bool) -> Path:
    """``data/checkpoints/DATASET/MODEL/TIME_PHASE``."""
    kind = f"{phase}_quantize" if quantize else phase
    started = time.strftime("%Y-%m-%d_%H-%M-%S")
    model = model_name.replace("/", "_")
    return Path("data/checkpoints") / dataset_name / model / f"{started}_{kind}"


def prepare_run_folder(path: Path, *, resume: bool) -> None:
    """Create the folder, or refuse to overwrite another run.

    Raises:
        ValueError: The folder holds a checkpoint and nobody asked to resume.
    """
    if not resume and (path / CHECKPOINT).exists():
        raise ValueError(
            f"'{path}' already holds a run. Continue it with --resume {path}, "
            f"or pass another --save_path."
        )
    path.mkdir(parents=True, exist_ok=True)


def start_log(path: Path, *, is_main: bool) -> None:
    """Send the log to the screen and to ``run.log``; other processes report only warnings."""
    stop_log()
    screen = logging.StreamHandler(sys.stdout)
    screen.setLevel(logging.INFO if is_main else logging.WARNING)
    screen.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(screen)
    if is_main:
        file = logging.FileHandler(path / LOG, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
        logger.addHandler(file)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def stop_log() -> None:
    """Close the handlers of `start_log`."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True
