"""Sizes of inputs for which an exported graph holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """Conditions on sizes that the code of a model met on its way.

    Attributes:
        fixed: For each input tensor its sizes; None where any is allowed.
        conditions: Python expressions over ``t``, the input tensors.
        example: Shapes that the graph was captured with.
        allowed: Shapes that were compared with all of it.
    """

    fixed: tuple[tuple[int | None, ...], ...]
    conditions: tuple[str, ...]
    example: tuple[tuple[int, ...], ...]
    allowed: set[Any] = field(default_factory=set, repr=False)

    @classmethod
    def of(cls, exported: torch.export.ExportedProgram, tensors: Sequence[Tensor]) -> Sizes:
        """Read them from an exported program whose inputs are `tensors`."""
        names = [
            s.arg.name for s in exported.graph_signature.input_specs if s.kind.name == "USER_INPUT"
        ]
        placeholders = {n.name: n for n in exported.graph.find_nodes(op="placeholder")}
        fixed = tuple(
            tuple(s if isinstance(s, int) else None for s in placeholders[name].meta["val"].shape)
            for name in names
        )
        conditions = tuple(c.replace("L['tensors']", "t") for c in exported._guards_code)
        return cls(fixed, conditions, tuple(tuple(t.shape) for t in tensors))

    def check(self, tensors: Sequence[Tensor]) -> None:
        """Compare inputs with the sizes that the graph holds for.

        Raises:
            ValueError: It does not hold for theirs.
        """
        shapes = tuple(tuple(t.shape) for t in tensors)
        if shapes in self.allowed:
            return
        for shape, fixed in zip(shapes, self.fixed, strict=False):
            if len(shape) != len(fixed) or any(
                f is not None and f != s for s, f in zip(shape, fixed, strict=False)
            ):
                self._refuse(shapes, f"sizes {fixed}, None for any")
        for condition in self.conditions:
            if not eval(condition, {"t": list(tensors), "math": math, "torch": torch}):
                self._refuse(shapes, condition.replace("t[", "input["))
        self.allowed.add(shapes)

    def _refuse(self, shapes: Any, needed: str) -> None:
        example = ", ".join(map(str, self.example))
        raise ValueError(
            f"The inputs have shapes {', '.join(map(str, shapes))}; the model's code depends on "
            f"sizes and was captured with {example}, which holds for {needed}. Give inputs of "
            "that size, or wrap the model with an example input of the size you use."
        )
