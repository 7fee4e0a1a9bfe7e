"""PyTorch simulation, integer graph and ONNX Runtime, compared value by value.

As a program:
``python -m edgeailite.quantization.verify model.onnx --data images --model my.py:build``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.graph.operations import node_kind
from edgeailite.quantization.integer.conversion import COMPUTES_INTEGERS
from edgeailite.quantization.integer.operators import (
    Dequantize,
    Grid,
    IntegerLayer,
    Quantize,
    Requantize,
)
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.prepare.annotate import MOVES_VALUES
from edgeailite.quantization.verify.onnx_runtime import (
    cpu_note,
    first_onnx_difference,
    open_session,
)
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
        steps: For each pair, how many values differ by how many steps of their output's grid.
            Outputs that lie on no grid are not counted here.
        first_difference: Path of the first quantizer at which simulation and integer graph differ,
            or None.
        first_onnx_difference: Likewise for integer graph and ONNX Runtime without optimizations.
        cpu_note: What this CPU's integer kernels do that others may not.
        notes: What to know when reading the numbers.
    """

    num_inputs: int = 0
    num_values: int = 0
    mismatches: dict[str, int] = field(default_factory=dict)
    max_difference: dict[str, float] = field(default_factory=dict)
    steps: dict[str, Counter[int]] = field(default_factory=dict)
    first_difference: str | None = None
    first_onnx_difference: str | None = None
    cpu_note: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether something was compared and no value differs anywhere."""
        return self.num_values > 0 and not any(self.mismatches.values())

    @property
    def max_steps(self) -> int:
        """The largest difference of any pair, in steps of the output's grid."""
        return max((max(c, default=0) for c in self.steps.values()), default=0)

    def count(self, pair: str, a: Tensor, b: Tensor, step: float | None = None) -> None:
        """Add one batch's comparison; NaN equals nothing.

        Args:
            pair: What is compared.
            a: One side's output.
            b: The other's, of the same shape.
            step: Of the output's grid; None: it lies on none.

        Raises:
            ValueError: The shapes differ.
        """
        if a.shape != b.shape:
            raise ValueError(f"{pair}: outputs have shapes {tuple(a.shape)} and {tuple(b.shape)}.")
        difference, differs = (a.double() - b.double()).abs(), ~(a == b)
        self.mismatches[pair] = self.mismatches.get(pair, 0) + int(differs.sum())
        largest = float(difference.max()) if difference.numel() else 0.0
        self.max_difference[pair] = max(self.max_difference.get(pair, 0.0), largest)
        counts = self.steps.setdefault(pair, Counter())
        if step is not None and differs.any():
            counts.update(torch.round(difference[differs] / step).long().tolist())

    def __str__(self) -> str:
        lines = [f"{self.num_values} output values of {self.num_inputs} inputs"]
        for pair, count in self.mismatches.items():
            lines.append(f"  {pair}: {count} differ{self._how_far(pair) if count else ''}")
        if self.first_difference is not None:
            place = f"'{self.first_difference}'"
            lines.append(f"  first difference between simulation and integer graph: {place}")
        if self.first_onnx_difference is not None:
            lines.append(
                "  first difference between integer graph and ONNX Runtime, optimizations off: "
                f"'{self.first_onnx_difference}'"
            )
        return "\n".join([*lines, *(f"  {note}" for note in (*self.notes, self.cpu_note) if note)])

    def _how_far(self, pair: str) -> str:
        share = 100 * self.mismatches[pair] / max(self.num_values, 1)
        counts = self.steps.get(pair, Counter())
        more = sum(n for steps, n in counts.items() if steps > 2)
        by_step = f"; {counts.get(1, 0)} by one step, {counts.get(2, 0)} by two, {more} by more"
        absolute = f" ({share:.3g} %), largest difference {self.max_difference[pair]:g}"
        return absolute + (by_step if counts else "")


def verify(
    wrapper: QuantModule | ConvertedModule,
    batches: Iterable[Tensor | tuple[Tensor, ...]],
    onnx_path: str | os.PathLike[str] | None = None,
) -> Verification:
    """Compare the simulation (evaluation mode), its integer graph, and ONNX Runtime on data.

    Args:
        wrapper: Trained or calibrated; or converted already, which leaves the simulation out.
        batches: Inputs of the model; a tuple for several.
        onnx_path: QDQ or TINPU file exported from `wrapper`; None compares without ONNX Runtime.

    Returns:
        Counts for each pair. With several outputs all of them are compared.

    Raises:
        ValueError: `batches` is empty, there is nothing to compare with, or outputs differ in
            shape.
        FileNotFoundError: There is no file at `onnx_path`.
    """
    if isinstance(wrapper, ConvertedModule) and onnx_path is None:
        raise ValueError("A converted model alone is nothing to compare: give onnx_path as well.")
    training = wrapper.training
    simulation = None if isinstance(wrapper, ConvertedModule) else wrapper.module.eval()
    converted = wrapper if isinstance(wrapper, ConvertedModule) else wrapper.convert()
    run = _Run(simulation, converted.module, onnx_path)
    try:
        for batch in batches:
            run.compare(batch if isinstance(batch, tuple) else (batch,))
    finally:
        if training and isinstance(wrapper, QuantModule):
            _resume_training(wrapper)
    if run.result.num_values == 0:
        raise ValueError("There were no batches to compare on.")
    return run.result


def _resume_training(wrapper: QuantModule) -> None:
    """Back to training mode without starting an epoch of the schedule."""
    wrapper.epoch -= 1
    wrapper.train()


class _Run:
    """One verification: the models, the sessions, the result so far."""

    def __init__(
        self,
        simulation: nn.Module | None,
        converted: GraphModel,
        onnx_path: str | os.PathLike[str] | None,
    ) -> None:
        self.simulation, self.converted, self.onnx_path = simulation, converted, onnx_path
        levels = {INTEGER_ORT_PLAIN: "off", INTEGER_ORT_OPTIMIZED: "all"}
        self.sessions = (
            {} if onnx_path is None else {p: open_session(onnx_path, x) for p, x in levels.items()}
        )
        self.steps, self.units = output_steps(converted), output_units(converted)
        self.result = Verification(cpu_note=cpu_note(), notes=model_notes(converted))

    def compare(self, inputs: tuple[Tensor, ...]) -> None:
        with torch.no_grad():
            integer = _flat(self.converted(*inputs))
            simulated = [] if self.simulation is None else _flat(self.simulation(*inputs))
        result = self.result
        result.num_inputs += inputs[0].shape[0]
        result.num_values += sum(y.numel() for y in integer)
        steps = self.steps if len(self.steps) == len(integer) else [None] * len(integer)
        units = self.units if len(self.units) == len(integer) else [1.0] * len(integer)
        before = dict(result.mismatches)
        for a, b, step, unit in zip(simulated, integer, steps, units, strict=False):
            result.count(SIMULATION_INTEGER, a, b * unit, None if step is None else step * unit)
        for pair, session in self.sessions.items():
            names = [i.name for i in session.get_inputs()]
            feed = {n: x.cpu().numpy() for n, x in zip(names, inputs, strict=True)}
            for a, b, step in zip(integer, session.run(None, feed), steps, strict=True):
                result.count(pair, a.cpu(), torch.from_numpy(b), step)
        self._locate(before, inputs)

    def _locate(self, before: dict[str, int], inputs: tuple[Tensor, ...]) -> None:
        """Find the place of a difference once, on the first batch that has one."""
        result = self.result

        def is_new(pair: str) -> bool:
            return result.mismatches.get(pair, 0) > before.get(pair, 0)

        if result.first_difference is None and is_new(SIMULATION_INTEGER):
            assert self.simulation is not None
            result.first_difference = first_difference(self.simulation, self.converted, inputs)
        if result.first_onnx_difference is None and is_new(INTEGER_ORT_PLAIN):
            assert self.onnx_path is not None
            result.first_onnx_difference = first_onnx_difference(
                self.converted, self.onnx_path, inputs
            )


def _flat(output: Any) -> list[Any]:
    """All tensors (or graph nodes) of a model's output, in order."""
    if output is None:
        return []
    if isinstance(output, Tensor | fx.Node):
        return [output]
    items = output.values() if isinstance(output, dict) else output
    return [leaf for item in items for leaf in _flat(item)]


def output_steps(converted: GraphModel) -> list[float | None]:
    """Step of each output of an integer graph, 1 where it is an integer; None: on no grid."""
    steps: list[float | None] = []
    for module in _output_modules(converted):
        real = module.grid.scale if isinstance(module, Dequantize) else None
        steps.append(1.0 if isinstance(module, COMPUTES_INTEGERS) else real)
    return steps


def output_units(converted: GraphModel) -> list[float]:
    """What each output of an integer graph is multiplied with to be real: 1 if it is already."""
    grids = [
        _grid_of(module) if isinstance(module, COMPUTES_INTEGERS) else None
        for module in _output_modules(converted)
    ]
    return [1.0 if grid is None else grid.scale for grid in grids]


def _output_modules(converted: GraphModel) -> list[nn.Module | None]:
    """The modules whose values the outputs are, or are moved from."""
    (output,) = converted.graph.find_nodes(op="output")
    modules = []
    for node in _flat(output.args[0]):
        source, module = node, converted.module_of(node)
        while not isinstance(module, (*COMPUTES_INTEGERS, Dequantize)) and source.all_input_nodes:
            if node_kind(source, module) not in MOVES_VALUES:
                break
            source = source.all_input_nodes[0]
            module = converted.module_of(source)
        modules.append(module)
    return modules


def model_notes(converted: GraphModel) -> list[str]:
    """What the model's own numbers say about its comparison with ONNX Runtime."""
    layers = [m for m in converted.modules() if isinstance(m, IntegerLayer)]
    risky = [m.layer_path for m in layers if _can_saturate(m)]
    grids = [m.grid for m in converted.modules() if isinstance(m, Quantize | Requantize)]
    free = any(not grid.is_power_of_two for grid in grids)
    notes = []
    if free:
        notes.append(
            "free scales: with optimizations off ONNX Runtime sums floats, which differs by a step "
            "on rare ties; its integer kernels run with optimizations on"
        )
    if layers:
        notes.append(
            f"{len(risky)} of {len(layers)} layers could saturate u8*s8 kernels of a CPU without "
            f"VNNI, the first: '{risky[0]}'"
            if risky
            else "no layer can saturate the u8*s8 kernels of a CPU without VNNI"
        )
    return notes


def _can_saturate(layer: IntegerLayer) -> bool:
    """Whether two products of unsigned inputs and weights can exceed 16 bits in one sum."""
    grid = layer.input.grid
    if grid.signed or layer.weight.dtype != torch.int8:
        return False
    rows = layer.operation.rows(layer.weight.float())
    pairs = min(2, rows.shape[1])
    largest = max(
        float(part.clamp_min(0).topk(pairs, dim=1).values.sum(1).max()) for part in (rows, -rows)
    )
    return largest * grid.quant_max > (1 << 15) - 1


@torch.no_grad()
def first_difference(
    simulation: nn.Module, converted: nn.Module, inputs: tuple[Tensor, ...]
) -> str | None:
    """Path of the first quantizer whose values differ between simulation and integer graph.

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
            grid = _grid_of(module)
            if path in expected and grid is not None:
                real = (output - grid.zero_point) * grid.scale
                if not torch.equal(real, expected[path]):
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
        if isinstance(m, COMPUTES_INTEGERS) and m.quantizer_path
    ]
    try:
        simulation(*inputs)
        converted(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _grid_of(module: Any) -> Grid | None:
    """The grid that a module's integers lie on."""
    holder = getattr(module, "output", module)
    return None if holder is None else holder.grid
