"""PyTorch simulation, integer graph and ONNX Runtime, compared value by value."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeailite.quantization.fake_quantize import FakeQuantize
from edgeailite.quantization.integer import IntegerLayer, Quantize, Requantize
from edgeailite.quantization.wrappers import ConvertedModule, QuantModule

SIMULATION_INTEGER = "simulation vs integer graph"
INTEGER_ORT_PLAIN = "integer graph vs ONNX Runtime, optimizations off"
INTEGER_ORT_OPTIMIZED = "integer graph vs ONNX Runtime, optimizations on"


@dataclass
class Verification:
    """What :func:`verify` found.

    Attributes:
        num_inputs: Inputs (batch elements) that were run.
        num_values: Output values that each pair was compared on.
        mismatches: For each pair, how many of them differ.
        max_difference: For each pair, the largest difference, in units of the output.
        first_difference: Path of the first quantizer at which simulation and integer graph differ,
            or None.
        cpu_note: What this CPU's integer kernels do that others may not.
    """

    num_inputs: int = 0
    num_values: int = 0
    mismatches: dict[str, int] = field(default_factory=dict)
    max_difference: dict[str, float] = field(default_factory=dict)
    first_difference: str | None = None
    cpu_note: str = ""

    @property
    def exact(self) -> bool:
        """Whether something was compared and no value differs anywhere."""
        return self.num_values > 0 and not any(self.mismatches.values())

    def count(self, pair: str, a: Tensor, b: Tensor) -> None:
        """Add one batch's comparison; NaN equals nothing."""
        if a.shape != b.shape:
            raise ValueError(f"{pair}: outputs have shapes {tuple(a.shape)} and {tuple(b.shape)}.")
        difference = (a.double() - b.double()).abs()
        differs = ~(a == b)
        self.mismatches[pair] = self.mismatches.get(pair, 0) + int(differs.sum())
        largest = float(difference.max()) if difference.numel() else 0.0
        self.max_difference[pair] = max(self.max_difference.get(pair, 0.0), largest)

    def __str__(self) -> str:
        lines = [f"{self.num_values} output values of {self.num_inputs} inputs"]
        for pair, count in self.mismatches.items():
            largest = f", largest difference {self.max_difference[pair]:g}" if count else ""
            lines.append(f"  {pair}: {count} differ{largest}")
        if self.first_difference is not None:
            lines.append(
                f"  first difference between simulation and integer graph: '{self.first_difference}'"
            )
        return "\n".join([*lines, f"  {self.cpu_note}"])


def cpu_note() -> str:
    """Whether ONNX Runtime's 8-bit kernels are exact on this CPU.

    Without VNNI, kernels for unsigned times signed 8-bit values add pairs of products in 16 bits, which saturates.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"CPU {platform.machine()}: 8-bit products are summed in 32 bits"
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return (
            "CPU flags are unknown here: without VNNI, 8-bit kernels of ONNX Runtime may saturate"
        )
    if "vnni" in flags:
        return "CPU has VNNI: ONNX Runtime sums 8-bit products in 32 bits"
    return "CPU without VNNI: ONNX Runtime's u8*s8 kernels saturate pairs of products in 16 bits"


def verify(
    wrapper: QuantModule,
    batches: Iterable[Tensor | tuple[Tensor, ...]],
    onnx_path: str | os.PathLike[str] | None = None,
) -> Verification:
    """Compare the simulation (evaluation mode), its integer graph, and ONNX Runtime on data.

    Args:
        wrapper: Trained or calibrated.
        batches: Inputs of the model; a tuple for several.
        onnx_path: QDQ file exported from `wrapper`; None compares without ONNX Runtime.

    Returns:
        Counts for each pair. With several outputs all of them are compared.

    Raises:
        ValueError: `batches` is empty, or outputs differ in shape.
        FileNotFoundError: There is no file at `onnx_path`.
    """
    training = wrapper.training
    simulation = wrapper.module.eval()
    converted = wrapper.convert()
    sessions = {} if onnx_path is None else _sessions(onnx_path)
    result = Verification(cpu_note=cpu_note())
    try:
        for batch in batches:
            inputs = batch if isinstance(batch, tuple) else (batch,)
            _verify_batch(result, simulation, converted, sessions, inputs)
    finally:
        if training:
            _resume_training(wrapper)
    if result.num_values == 0:
        raise ValueError("There were no batches to compare on.")
    return result


def _resume_training(wrapper: QuantModule) -> None:
    """Back to training mode without starting an epoch of the schedule."""
    wrapper.epoch -= 1
    wrapper.train()


def _verify_batch(
    result: Verification, simulation: nn.Module, converted: ConvertedModule,
    sessions: dict[str, Any], inputs: tuple[Tensor, ...],
) -> None:  # fmt: skip
    with torch.no_grad():
        simulated, integer = _flat(simulation(*inputs)), _flat(converted(*inputs))
    before = result.mismatches.get(SIMULATION_INTEGER, 0)
    for a, b in zip(simulated, integer, strict=True):
        result.count(SIMULATION_INTEGER, a, b)
        result.num_values += a.numel()
    result.num_inputs += inputs[0].shape[0]
    if result.first_difference is None and result.mismatches[SIMULATION_INTEGER] > before:
        result.first_difference = first_difference(simulation, converted.module, inputs)
    for pair, session in sessions.items():
        feed = {i.name: x.cpu().numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
        for a, b in zip(integer, session.run(None, feed), strict=True):
            result.count(pair, a.cpu(), torch.from_numpy(b))


def _sessions(path: str | os.PathLike[str]) -> dict[str, Any]:
    import onnxruntime as ort

    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no ONNX file at {os.fspath(path)!r}; export one first.")
    levels = {
        INTEGER_ORT_PLAIN: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        INTEGER_ORT_OPTIMIZED: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }
    sessions = {}
    for pair, level in levels.items():
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        sessions[pair] = ort.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
    return sessions


def _flat(output: Any) -> list[Tensor]:
    """All tensors of a model's output, in order."""
    if isinstance(output, Tensor):
        return [output]
    items = output.values() if isinstance(output, dict) else output
    return [tensor for item in items for tensor in _flat(item)]


@torch.no_grad()
def first_difference(
    simulation: nn.Module, converted: nn.Module, inputs: tuple[Tensor, ...]
) -> str | None:
    """Path of the first activation quantizer whose values differ between simulation and integer graph.

    Args:
        simulation: Prepared model in evaluation mode.
        converted: Its integer graph.
        inputs: One batch.
    """
    expected: dict[str, Tensor] = {}
    found: list[str] = []

    def record(path: str) -> Any:
        return lambda _module, _args, output: expected.__setitem__(path, output)

    def compare(path: str) -> Any:
        def hook(module: nn.Module, _args: Any, output: Tensor) -> None:
            real = _real_values(module, output)
            if path in expected and real is not None and not torch.equal(real, expected[path]):
                found.append(path)

        return hook

    handles = [
        m.register_forward_hook(record(path))
        for path, m in simulation.named_modules()
        if isinstance(m, FakeQuantize)
    ]
    handles += [
        m.register_forward_hook(compare(m.quantizer_path))
        for m in converted.modules()
        if isinstance(m, Quantize | Requantize | IntegerLayer) and m.quantizer_path
    ]
    try:
        simulation(*inputs)
        converted(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _real_values(module: nn.Module, output: Tensor) -> Tensor | None:
    holder = module.output if isinstance(module, IntegerLayer) else module
    if holder is None:
        return None
    return (output - holder.grid.zero_point) * holder.grid.scale  # type: ignore[union-attr]
