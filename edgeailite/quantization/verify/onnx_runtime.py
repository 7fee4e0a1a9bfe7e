"""ONNX Runtime's side of :mod:`verify`: sessions, the CPU, and where a file's values part."""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from edgeailite.quantization.export.proto import add_outputs
from edgeailite.quantization.integer.conversion import COMPUTES_INTEGERS

_LEVELS = onnxruntime.GraphOptimizationLevel
LEVELS = {
    "off": _LEVELS.ORT_DISABLE_ALL,
    "basic": _LEVELS.ORT_ENABLE_BASIC,
    "extended": _LEVELS.ORT_ENABLE_EXTENDED,
    "all": _LEVELS.ORT_ENABLE_ALL,
}
_FLAGS = ("avx2", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def open_session(path: str | os.PathLike[str], level: str) -> Any:
    """An ONNX Runtime session on the CPU at an optimization level of :data:`LEVELS`.

    Raises:
        FileNotFoundError: There is no file at `path`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no ONNX file at {os.fspath(path)!r}; export one first.")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        os.fspath(path), options, providers=["CPUExecutionProvider"]
    )


def cpu_note() -> str:
    """Whether ONNX Runtime's 8-bit kernels are exact on this CPU, and on what that depends.

    Without VNNI, kernels for unsigned times signed 8-bit values add pairs of products in 16 bits,
    which saturates.
    """
    runtime = f"ONNX Runtime {onnxruntime.__version__}"
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return f"{runtime}; CPU flags are unknown here: without VNNI, 8-bit kernels may saturate"
    flags = ", ".join(f for f in _FLAGS if f in words) or "none of " + ", ".join(_FLAGS)
    if platform.machine() not in ("x86_64", "AMD64"):
        machine = platform.machine()
        return f"{runtime}; CPU {machine} ({flags}): 8-bit products are summed in 32 bits"
    if "vnni" in flags:
        return f"{runtime}; CPU has VNNI ({flags}): 8-bit products are summed in 32 bits"
    return f"{runtime}; CPU without VNNI ({flags}): u8*s8 kernels saturate pairs of products"


@torch.no_grad()
def first_onnx_difference(
    converted: nn.Module, path: str | os.PathLike[str], inputs: tuple[Tensor, ...]
) -> str | None:
    """Path of the first quantizer whose integers differ between integer graph and ONNX Runtime.

    A QDQ file names the integers of quantizer ``P`` ``P``; without such names nothing is found.

    Args:
        converted: The integer graph.
        path: QDQ file of it.
        inputs: One batch.
    """
    expected: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(_record(expected, module.quantizer_path))
        for module in converted.modules()
        if isinstance(module, COMPUTES_INTEGERS) and module.quantizer_path
    ]
    try:
        converted(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / "named.onnx"
        names = add_outputs(path, list(expected), named)
        session = open_session(named, "off")
    sources = [i.name for i in session.get_inputs()]
    feed = {n: x.cpu().numpy() for n, x in zip(sources, inputs, strict=True)}
    for name, found in zip(names, session.run(names, feed) if names else [], strict=True):
        if not torch.equal(torch.from_numpy(found).float(), expected[name].cpu().float()):
            return name
    return None


def _record(expected: dict[str, Tensor], path: str) -> Any:
    return lambda _module, _args, output: expected.__setitem__(path, output)
