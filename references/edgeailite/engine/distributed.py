"""One process or many: devices, ``torchrun``, and starting several processes without it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed import run as torchrun


@dataclasses.dataclass(frozen=True)
class Process:
    """This process among all of them."""

    device: torch.device
    """Where its model lives."""
    rank: int = 0
    """Number of this process, over all machines."""
    world_size: int = 1
    """Number of processes, over all machines."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def check_alone(self, *, verify: bool, at_once: bool, budgets: Mapping[str, float]) -> None:
        """Refuse in several processes what one alone can do.

        Raises:
            ValueError: The message names the option.
        """
        if self.world_size == 1:
            return
        if verify:
            raise ValueError(
                "--verify needs one process: validate the checkpoint with it afterwards."
            )
        if at_once:
            raise ValueError(
                "--ptq and --max_drop need one process: they take minutes, on one device."
            )
        for name in budgets:
            raise ValueError(f"--{name} needs one process: bits are chosen on one device.")


def started_by_torchrun() -> bool:
    """Tell from the environment whether a launcher started this process."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys()


def check_gpus(gpus: Sequence[int] | None) -> None:
    """Refuse GPUs that this machine does not have.

    Raises:
        ValueError: A number that is not there, or twice the same.
    """
    present = torch.cuda.device_count()
    missing = [gpu for gpu in gpus or () if not 0 <= gpu < present]
    if missing:
        have = f"has GPUs 0 to {present - 1}" if present else "has no GPU that PyTorch can use"
        raise ValueError(
            f"--gpus {' '.join(map(str, gpus or ()))}: there is no GPU {missing[0]}; this machine "
            f"{have}. Leave --gpus out to use what is there."
        )
    if gpus and len(set(gpus)) < len(gpus):
        raise ValueError(f"--gpus {' '.join(map(str, gpus))} names a GPU twice.")


def start_processes(gpus: Sequence[int] | None, script: Path, arguments: Sequence[str]) -> bool:
    """Run the script once per GPU, as ``torchrun`` would, where several GPUs are asked for.

    Args:
        gpus: Numbers of the GPUs, as the user gave them.
        script: The script's file.
        arguments: Its arguments.

    Returns:
        True if other processes did the work, False if this process is to do it.
    """
    if gpus is None or len(gpus) < 2 or started_by_torchrun():
        return False
    torchrun.main(["--standalone", f"--nproc_per_node={len(gpus)}", str(script), *arguments])
    return True


def _select_device(gpus: Sequence[int] | None, local_rank: int) -> torch.device:
    check_gpus(gpus)
    if gpus is None:
        gpus = range(torch.cuda.device_count())
    if not gpus:
        return torch.device("cpu")
    if local_rank >= len(gpus):
        raise ValueError(
            f"Process {local_rank} of this machine has no GPU: {len(gpus)} are selected. "
            f"Start torchrun with --nproc_per_node={len(gpus)}."
        )
    return torch.device("cuda", gpus[local_rank])


@contextmanager
def process_group(gpus: Sequence[int] | None) -> Iterator[Process]:
    """Join the other processes, if any, for the time of a ``with`` block.

    Args:
        gpus: GPUs of this machine to use; None: all that torchrun starts processes for, or the
            first; empty: CPU.

    Yields:
        This process, its device selected.

    Raises:
        ValueError: A GPU that this machine does not have.
    """
    if not started_by_torchrun():
        device = _select_device(gpus, 0)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        yield Process(device)
        return
    device = _select_device(gpus, int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Process(device, distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def from_main(value: Any) -> Any:
    """Give every process the main process's `value`."""
    if not distributed.is_initialized():
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]
