"""Peers' quantizers, on the networks and images of a benchmark.

Each runs in an environment of its own with pinned packages; what those need beyond them, torch
above all, is that of the environment the benchmark runs in, where its version fits.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ptq_accuracy import Task
from torch import Tensor

HERE = Path(__file__).resolve().parent
LIMIT_S = 3600  # of one quantizer on one network


class Peer(NamedTuple):
    """One quantizer.

    Attributes:
        title: Name and way.
        preset: Ours with the same kind of scales.
        packages: The versions that were tried.
        command: Driver and its options.
    """

    title: str
    preset: str
    packages: tuple[str, ...]
    command: tuple[str, ...]


_ESP_PPQ = ("esp-ppq==1.3.12",)
PEERS = {
    "onnxruntime": Peer(
        "ONNX Runtime 1.31.1",
        "WC8_AT8",
        ("onnxruntime==1.31.1", "onnx==1.23.2", "sympy==1.14.0"),
        ("peer_onnxruntime.py",),
    ),
    "nncf": Peer("NNCF 3.4.0", "WC8_AT8", ("nncf==3.4.0",), ("peer_nncf.py",)),
    "mct": Peer(
        "MCT 2.6.1, activations power of two",
        "WC8_AT8",
        ("model-compression-toolkit==2.6.1",),
        ("peer_mct.py",),
    ),
    "esp_ppq": Peer(
        "ESP-PPQ 1.3.12, esp32p4", "WC8SYMP2_AT8SYMP2", _ESP_PPQ, ("peer_esp_ppq.py", "esp32p4")
    ),
    "esp_ppq_trained": Peer(
        "ESP-PPQ 1.3.12, esp32p4, thresholds trained",
        "WC8SYMP2_AT8SYMP2",
        _ESP_PPQ,
        ("peer_esp_ppq.py", "esp32p4", "trained"),
    ),
    "esp_ppq_tensor": Peer(
        "ESP-PPQ 1.3.12, esp32s3", "WT8SYMP2_AT8SYMP2", _ESP_PPQ, ("peer_esp_ppq.py", "esp32s3")
    ),
    "esp_ppq_tensor_trained": Peer(
        "ESP-PPQ 1.3.12, esp32s3, thresholds trained",
        "WT8SYMP2_AT8SYMP2",
        _ESP_PPQ,
        ("peer_esp_ppq.py", "esp32s3", "trained"),
    ),
}


class PeerFailed(RuntimeError):
    """The environment could not be made, or the quantizer failed; says why."""


def make_environment(packages: Sequence[str], environments: Path) -> Path:
    """Make the environment of these packages, unless it is there; return its interpreter.

    It sees the packages of this environment behind its own; pip installs what does not fit anew.

    Raises:
        PeerFailed: They could not be installed.
    """
    folder = environments.resolve() / packages[0]
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    outer = sysconfig.get_path("purelib")
    wanted, stamp = "\n".join([sys.version, outer, *packages]), folder / "installed.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"making {folder}: {' '.join(packages)}", file=sys.stderr)
    try:
        venv.create(folder, clear=True, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PeerFailed(f"no environment could be made in {folder}: {error}") from error
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (own / "outer.pth").write_text(outer, encoding="utf-8")
    _run([str(python), "-m", "pip", "install", *packages], folder / "install.log")
    part = stamp.with_suffix(".part")
    part.write_text(wanted, encoding="utf-8")
    part.replace(stamp)
    return python


def write_network(task: Task, folder: Path) -> Path:
    """Write what the drivers read: see ``driver.py``."""
    example = task.images[0][:2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter, about its own internals
        torch.onnx.export(
            task.model,
            (example,),
            folder / "model.onnx",
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch"},),
        )
    torch.save(task.model.state_dict(), folder / "weights.pth")
    (folder / "name.txt").write_text(task.name)
    np.save(folder / "calibration.npy", torch.cat(task.calibration).numpy())
    np.save(folder / "images.npy", torch.cat(task.images).numpy())
    return folder


def run_peer(name: str, network: Path, environments: Path) -> tuple[Tensor, float]:
    """Quantize a network and run it.

    Args:
        name: A key of :data:`PEERS`.
        network: Folder of :func:`write_network`.
        environments: Folder of the environments, which are made where they are missing.

    Returns:
        Logits (N, classes), and the seconds that quantizing took.

    Raises:
        PeerFailed: It could not be installed, or it failed.
    """
    peer = PEERS[name]
    python = make_environment(peer.packages, environments)
    script, *options = peer.command
    result = network / f"{name}.npz"
    command = [str(python), str(HERE / script), str(network), str(result), *options]
    _run(command, environments / f"{name}.log")
    with np.load(result) as found:
        return torch.from_numpy(found["logits"]), float(found["seconds"])


def _run(command: list[str], log: Path) -> None:
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)])
    with log.open("w+", encoding="utf-8", errors="replace") as file:
        try:
            done = subprocess.run(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": paths},
                timeout=LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            raise PeerFailed(f"it took more than {LIMIT_S} seconds; see {log}") from None
        file.seek(0)
        lines = file.read().strip().splitlines() or ["no output"]
    if done.returncode:
        raise PeerFailed(f"{lines[-1]} (exit status {done.returncode}; see {log})")
