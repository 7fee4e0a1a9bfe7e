"""Evaluation in PyTorch, integer graph and ONNX Runtime, compared value by value.

As a program:
``python -m edgeailite.quantization.verify model.onnx --data images --model my.py:build``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.graph.modes import modes_kept
from edgeailite.quantization.graph.recording import Hook, hooked, results_kept
from edgeailite.quantization.integer.grid import IntegerOperator
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.verify.c_code import CompiledNetwork
from edgeailite.quantization.verify.notes import has_free_scales, model_notes
from edgeailite.quantization.verify.onnx_runtime import (
    cpu_note,
    first_onnx_difference,
    open_session,
)
from edgeailite.quantization.verify.outputs import OutputGrid, flat, output_grids
from edgeailite.quantization.verify.proofs import length_hooks, operation_kinds
from edgeailite.quantization.verify.verification import Verification

EVALUATION_INTEGER = "evaluation vs integer graph"
INTEGER_ORT_PLAIN = "integer graph vs ONNX Runtime, optimizations off"
INTEGER_ORT_OPTIMIZED = "integer graph vs ONNX Runtime, optimizations on"
INTEGER_C = "integer graph vs C"
RUNTIMES = ("c",)


def verify(
    wrapper: nn.Module,
    batches: Iterable[Tensor | tuple[Tensor, ...]],
    onnx_path: str | os.PathLike[str] | None = None,
    runtimes: Sequence[str] = (),
) -> Verification:
    """Compare evaluation by the wrapper, its integer graph, ONNX Runtime and others on data.

    How far the simulation differs that training uses is noted beside.

    Args:
        wrapper: Trained or calibrated; or converted already, which leaves evaluation out. It stays
            in the mode that it is in, and counts no epoch.
        batches: Inputs of the model; a tuple for several.
        onnx_path: QDQ or TINPU file exported from `wrapper`; None compares without ONNX Runtime.
        runtimes: Further ones. ``"c"``: the C of ``export_c``, compiled for this machine.

    Returns:
        Counts for each pair. With several outputs all of them are compared.

    Raises:
        TypeError: `wrapper` is no wrapper and no converted model.
        ValueError: `batches` is empty, there is nothing to compare with, outputs differ in shape,
            there is no such runtime, or an operation has no form in C.
        FileNotFoundError: There is no file at `onnx_path`, or no C compiler.
    """
    unknown = set(runtimes) - set(RUNTIMES)
    if unknown:
        raise ValueError(f"runtimes holds {sorted(unknown)}; allowed: {', '.join(RUNTIMES)}.")
    model = wrapper_model(wrapper)
    convert = getattr(wrapper, "convert", None)
    if convert is None and onnx_path is None and not runtimes:
        raise ValueError(
            "A converted model alone is nothing to compare: give onnx_path or runtimes as well."
        )
    with modes_kept(wrapper):
        nn.Module.train(wrapper, False)  # not the wrapper's own, which counts
        converted = model if convert is None else convert().module
        run = _Run(None if convert is None else wrapper, converted, onnx_path, "c" in runtimes)
        for batch in batches:
            run.compare(batch if isinstance(batch, tuple) else (batch,))
        if run.result.num_values == 0:
            raise ValueError("There were no batches to compare on.")
        run.explain()
    return run.result


def wrapper_model(wrapper: Any) -> GraphModel:
    """Return the model in a wrapper or converted model.

    Raises:
        TypeError: `wrapper` is neither.
    """
    model = getattr(wrapper, "module", None)
    if not isinstance(model, GraphModel):
        raise TypeError(
            f"{type(wrapper).__name__} holds no quantized model. Give a wrapper (QATFxModule, "
            "QuantCalibrateModule, ...) or what its convert() returned."
        )
    return model


class _Run:
    """One verification: the models, the sessions, the result so far."""

    def __init__(
        self,
        wrapper: nn.Module | None,
        converted: GraphModel,
        onnx_path: str | os.PathLike[str] | None,
        in_c: bool,
    ) -> None:
        self.in_c = in_c
        self.network: CompiledNetwork | None = None
        self.wrapper, self.converted, self.onnx_path = wrapper, converted, onnx_path
        self.simulation = None if wrapper is None else wrapper_model(wrapper)
        levels = {INTEGER_ORT_PLAIN: "off", INTEGER_ORT_OPTIMIZED: "all"}
        self.sessions = (
            {} if onnx_path is None else {p: open_session(onnx_path, x) for p, x in levels.items()}
        )
        self.grids, self.has_free_scales = output_grids(converted), has_free_scales(converted)
        self.result = Verification(cpu_note=cpu_note(), notes=model_notes(converted))
        self.lengths: dict[nn.Module, int] = {}

    def explain(self) -> None:
        """Add what shows that the operations are exact."""
        self.result.operations = operation_kinds(
            self.converted, self.lengths, self.result.num_values, self.simulation, self.onnx_path
        )

    def compare(self, inputs: tuple[Tensor, ...]) -> None:
        """Compare all pairs on one batch."""
        with torch.no_grad():
            with hooked(length_hooks(self.converted, self.lengths)):
                integer = flat(self.converted(*inputs))
            evaluated = [] if self.wrapper is None else flat(self.wrapper(*inputs))
            simulated = []
            if self.simulation is not None and self.has_free_scales:
                simulated = flat(self.simulation(*inputs))
        result = self.result
        result.num_inputs += flat(inputs)[0].shape[0]
        result.num_values += sum(y.numel() for y in integer)
        grids = self.grids if len(self.grids) == len(integer) else [OutputGrid()] * len(integer)
        before = dict(result.mismatches)
        for i, (b, grid) in enumerate(zip(integer, grids, strict=True)):
            scale = None if grid.scale is None else grid.scale * grid.factor
            if evaluated:
                result.count(EVALUATION_INTEGER, evaluated[i], b * grid.factor, scale)
            if simulated:
                result.count_simulation(simulated[i], b * grid.factor, scale)
        for pair, session in self.sessions.items():
            names = [i.name for i in session.get_inputs()]
            feed = {n: x.cpu().numpy() for n, x in zip(names, flat(inputs), strict=True)}
            for a, b, grid in zip(integer, session.run(None, feed), grids, strict=True):
                result.count(pair, a.cpu(), torch.from_numpy(b), grid.scale)
        if self.in_c:
            self._compare_c(inputs, integer, grids)
        self._locate(before, inputs)

    def _compare_c(
        self, inputs: tuple[Tensor, ...], integer: list[Tensor], grids: list[OutputGrid]
    ) -> None:
        """Compare with the C files, which are compiled for the shapes of the first batch."""
        given = [x.cpu() for x in flat(inputs)]
        if self.network is None:
            self.network = CompiledNetwork(self.converted, given)
        for a, b, grid in zip(integer, self.network(*given), grids, strict=True):
            self.result.count(INTEGER_C, a.cpu() * grid.factor, b, grid.scale)

    def _locate(self, before: dict[str, int], inputs: tuple[Tensor, ...]) -> None:
        """Find the place of a difference once, on the first batch that has one."""
        result = self.result

        def is_new(pair: str) -> bool:
            return result.mismatches.get(pair, 0) > before.get(pair, 0)

        if result.first_difference is None and is_new(EVALUATION_INTEGER):
            assert self.simulation is not None
            result.first_difference = first_difference(self.simulation, self.converted, inputs)
        if result.first_onnx_difference is None and is_new(INTEGER_ORT_PLAIN):
            assert self.onnx_path is not None
            result.first_onnx_difference = first_onnx_difference(
                self.converted, self.onnx_path, inputs
            )


@torch.no_grad()
def first_difference(
    simulation: nn.Module, converted: nn.Module, inputs: tuple[Tensor, ...]
) -> str | None:
    """Return the path of the first quantizer at which simulation and integer graph differ.

    Args:
        simulation: Prepared model in evaluation mode.
        converted: Its integer graph.
        inputs: One batch.
    """
    quantizers = (
        (path, m) for path, m in simulation.named_modules() if isinstance(m, FakeQuantize)
    )
    with results_kept(quantizers) as expected:
        simulation(*inputs)
    found: list[str] = []

    def compare(path: str) -> Hook:
        def hook(module: nn.Module, _args: Any, output: Tensor) -> None:
            assert isinstance(module, IntegerOperator)
            grid = module.output_grid
            if path in expected and grid is not None:
                real = (output - grid.zero_point) * grid.scale
                if not torch.equal(real, expected[path]):
                    found.append(path)

        return hook

    computing = (m for m in converted.modules() if isinstance(m, IntegerOperator))
    with hooked((m, compare(m.quantizer_path)) for m in computing if m.quantizer_path):
        converted(*inputs)
    return found[0] if found else None
