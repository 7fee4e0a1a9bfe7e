"""ONNX Runtime's side of :mod:`verify`: sessions, the CPU, and the first difference of a file."""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeailite.quantization.graph.recording import results_kept
from edgeailite.quantization.integer.grid import IntegerOperator
from edgeailite.quantization.verify.outputs import flat

LEVELS = {
    "off": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_FLAGS = ("avx2", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def open_session(path: str | os.PathLike[str], level: str) -> Any:
    """Open an ONNX Runtime session on the CPU at an optimization level of :data:`LEVELS`.

    Raises:
        FileNotFoundError: There is no file at `path`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no ONNX file at {os.fspath(path)!r}; export one first.")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = getattr(levels, LEVELS[level])
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        os.fspath(path), options, providers=["CPUExecutionProvider"]
    )


def cpu_note() -> str:
    """Say if ONNX Runtime's 8-bit kernels are exact on this CPU.

    Without VNNI, kernels for unsigned times signed 8-bit values add pairs of products in 16 bits,
    which saturates.
    """
    import onnxruntime

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
    """Return the path of the first quantizer at which integer graph and ONNX Runtime differ.

    A QDQ file names the integers of quantizer ``P`` ``P``; without such names nothing is found.

    Args:
        converted: The integer graph.
        path: QDQ file of it.
        inputs: One batch.
    """
    from edgeailite.quantization.export.proto import add_outputs

    computing = (m for m in converted.modules() if isinstance(m, IntegerOperator))
    with results_kept((m.quantizer_path, m) for m in computing if m.quantizer_path) as expected:
        converted(*inputs)
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / "named.onnx"
        names = add_outputs(path, list(expected), named)
        session = open_session(named, "off")
    sources = [i.name for i in session.get_inputs()]
    feed = {n: x.cpu().numpy() for n, x in zip(sources, flat(inputs), strict=True)}
    for name, found in zip(names, session.run(names, feed) if names else [], strict=True):
        if not torch.equal(torch.from_numpy(found).float(), expected[name].cpu().float()):
            return name
    return None
