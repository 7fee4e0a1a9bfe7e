"""A network as C, compiled for this machine and run from Python."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from edgeailite.quantization.graph.model import target_of
from edgeailite.quantization.integer.grid import Dequantize
from edgeailite.quantization.targets.c.files import KERNELS, in_memory, network_files
from edgeailite.quantization.targets.c.program import Port, Program, bytes_of, offset_of
from edgeailite.quantization.targets.c.reader import Reader

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

_FLAGS = ("-std=c99", "-O2", "-fPIC", "-march=native")
_TYPES = {1: np.int8, 2: np.int16}


def compiler() -> str:
    """Path of the C compiler.

    Raises:
        FileNotFoundError: There is none.
    """
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if found is None:
        raise FileNotFoundError(
            "There is no C compiler (cc, gcc or clang) on the path: install one, or leave 'c' out "
            "of runtimes."
        )
    return found


def _compile(*args: str | Path) -> None:
    run = subprocess.run([compiler(), *args], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"The C compiler failed:\n{run.stderr}")


@functools.cache
def _kernels(flags: tuple[str, ...]) -> bytes:
    """Object file of the kernels, compiled once in a process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        for name, text in network_files(Program(), "none").items():
            (path / name).write_text(text, encoding="utf-8")
        _compile(*flags, "-c", path / KERNELS[1], "-o", path / "kernels.o")
        return (path / "kernels.o").read_bytes()


class CompiledNetwork:
    """An integer graph in C.

    Args:
        model: Integer graph that requantizes by a scale.
        example_inputs: Of the shapes that it is run with.
        flags: Of the compiler.

    Raises:
        FileNotFoundError: There is no C compiler.
        ValueError: An operation has no form in C; the message names it.
    """

    def __init__(
        self,
        model: GraphModel,
        example_inputs: Sequence[Tensor],
        flags: tuple[str, ...] = _FLAGS,
    ) -> None:
        arithmetic = target_of(model).arithmetic
        if arithmetic != "scale":
            raise ValueError(
                "Models for TI's NPU are written as C of their own, with a runner: export_c, and "
                "compile that. Leave 'c' out of runtimes."
            )
        with torch.no_grad():
            self.program = Reader(model, example_inputs).read()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            for name, text in network_files(self.program, "net").items():
                (path / name).write_text(text, encoding="utf-8")
            (path / "kernels.o").write_bytes(_kernels(flags))
            library = path / "net.so"
            _compile(*flags, "-shared", path / "net.c", path / "kernels.o", "-o", library)
            self._run = ctypes.CDLL(str(library)).net_run
        self._arena = np.zeros(self.program.arena // 4 + 1, dtype=np.int32)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Real values of the outputs for a batch, in PyTorch's layout."""
        ports = self.program.outputs
        stored = [in_memory(x, p) for x, p in zip(inputs, self.program.inputs, strict=True)]
        rows = [self._compute([x[i] for x in stored]) for i in range(len(inputs[0]))]
        columns = [torch.stack([row[i] for row in rows]) for i in range(len(ports))]
        return [_real(values, port) for values, port in zip(columns, ports, strict=True)]

    def _compute(self, inputs: list[Tensor]) -> list[Tensor]:
        for values, port in zip(inputs, self.program.inputs, strict=True):
            self._place(port)[:] = values.numpy()
        self._run(self._arena.ctypes.data_as(ctypes.c_void_p))
        return [torch.from_numpy(self._place(p).astype(np.int64)) for p in self.program.outputs]

    def _place(self, port: Port) -> np.ndarray[Any, Any]:
        size, start = bytes_of(port.grid), port.buffer.place
        held = self._arena.view(np.int8)[start : start + port.count * size]
        return held.view(_TYPES[size])


def _real(stored: Tensor, port: Port) -> Tensor:
    shaped = stored.reshape(len(stored), *(port.shape[a] for a in port.order))
    back = torch.tensor(port.order, dtype=torch.int64).argsort().tolist()
    integers = shaped.permute(0, *(axis + 1 for axis in back)) + offset_of(port.grid)
    return Dequantize(port.grid).real(integers)
