"""Result of a comparison: counts for each pair, as text too."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class OperationKind:
    """Operations of one kind that are exact for the same reason.

    Attributes:
        operation: A layer's type, the name of an operator; ``function``: of one value; ``input``.
        count: Number of such operations.
        proven: No input can give another integer; else only the comparison says so.
        by: Proof, or what stands in its place.
    """

    operation: str
    count: int
    proven: bool
    by: str


@dataclass
class Verification:
    """Result of :func:`verify`.

    Attributes:
        num_inputs: Number of inputs (batch elements).
        num_values: Number of output values that each pair was compared on.
        mismatches: For each pair, the number of values that differ.
        max_difference: For each pair, the largest difference, in units of the output.
        steps: For each pair, the number of values by their difference in steps, which are integers
            of the output's grid. Outputs that lie on no grid are not counted here.
        simulation: Where scales are free, the number of values by which the simulation that
            training uses differs from the integer graph, by steps of the output's grid (0: none of
            a grid's). No part of `mismatches`: evaluation computes the integers.
        first_difference: Path of the first quantizer at which simulation and integer graph differ,
            if evaluation differs; or None.
        first_onnx_difference: Likewise for integer graph and ONNX Runtime without optimizations.
        operations: Kinds of operations, with what shows that they are exact.
        cpu_note: Remark on the integer kernels of this CPU.
        notes: Remarks on the numbers.
    """

    num_inputs: int = 0
    num_values: int = 0
    mismatches: dict[str, int] = field(default_factory=dict)
    max_difference: dict[str, float] = field(default_factory=dict)
    steps: dict[str, Counter[int]] = field(default_factory=dict)
    simulation: Counter[int] = field(default_factory=Counter)
    first_difference: str | None = None
    first_onnx_difference: str | None = None
    operations: list[OperationKind] = field(default_factory=list)
    cpu_note: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """True if something was compared and no value differs anywhere."""
        return self.num_values > 0 and not any(self.mismatches.values())

    @property
    def max_steps(self) -> int:
        """Largest difference of any pair, in steps of the output's grid."""
        return max((max(c, default=0) for c in self.steps.values()), default=0)

    def count(self, pair: str, a: Tensor, b: Tensor, scale: float | None = None) -> None:
        """Add one batch's comparison; NaN equals nothing.

        Args:
            pair: Name of the pair.
            a: Output of one side.
            b: Output of the other side, of the same shape.
            scale: Scale of the output's grid; None: it lies on no grid.

        Raises:
            ValueError: The shapes differ.
        """
        if a.shape != b.shape:
            raise ValueError(f"{pair}: outputs have shapes {tuple(a.shape)} and {tuple(b.shape)}.")
        difference, differs = _apart(a, b)
        self.mismatches[pair] = self.mismatches.get(pair, 0) + int(differs.sum())
        largest = float(difference.max()) if difference.numel() else 0.0
        self.max_difference[pair] = max(self.max_difference.get(pair, 0.0), largest)
        counts = self.steps.setdefault(pair, Counter())
        if scale is not None:
            counts.update(_in_steps(difference[differs], scale))

    def count_simulation(self, a: Tensor, b: Tensor, scale: float | None) -> None:
        """Add one batch of the simulation and of the integer graph, as in :meth:`count`."""
        difference, differs = _apart(a, b)
        self.simulation.update(_in_steps(difference[differs], scale or math.inf))

    def __str__(self) -> str:
        lines = [f"{self.num_values} output values of {self.num_inputs} inputs"]
        for pair, count in self.mismatches.items():
            lines.append(f"  {pair}: {count} differ{self._how_far(pair) if count else ''}")
        if self.simulation:
            count, most = sum(self.simulation.values()), max(self.simulation)
            share = 100 * count / max(self.num_values, 1)
            far = f", by at most {most} step{'s' if most > 1 else ''}" if most else ""
            lines.append(
                f"  (the simulation, which training uses: {count} differ ({share:.3g} %){far})"
            )
        if self.first_difference is not None:
            place = f"'{self.first_difference}'"
            lines.append(f"  first difference between simulation and integer graph: {place}")
        if self.first_onnx_difference is not None:
            lines.append(
                "  first difference between integer graph and ONNX Runtime, optimizations off: "
                f"'{self.first_onnx_difference}'"
            )
        for kind in self.operations:
            word = "proven: " if kind.proven else ""
            lines.append(f"  {kind.count} {kind.operation}: {word}{kind.by}")
        return "\n".join([*lines, *(f"  {note}" for note in (*self.notes, self.cpu_note) if note)])

    def _how_far(self, pair: str) -> str:
        share = 100 * self.mismatches[pair] / max(self.num_values, 1)
        counts = self.steps.get(pair, Counter())
        more = sum(n for steps, n in counts.items() if steps > 2)
        by_step = f"; {counts.get(1, 0)} by one step, {counts.get(2, 0)} by two, {more} by more"
        absolute = f" ({share:.3g} %), largest difference {self.max_difference[pair]:g}"
        return absolute + (by_step if counts else "")


def _apart(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Difference of all values, and which differ; NaN equals nothing."""
    return (a.double() - b.double()).abs(), ~(a == b)


def _in_steps(differences: Tensor, scale: float) -> list[int]:
    """Differences in steps of a grid."""
    return torch.round(differences / scale).long().tolist()
