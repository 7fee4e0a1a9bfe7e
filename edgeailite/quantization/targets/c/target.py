"""Targets whose integer graphs requantize by a scale, and are written as C."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from edgeailite.quantization.integer.rule_target import RuleTarget
from edgeailite.quantization.targets.c.files import export_c

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel


class ScaleTarget(RuleTarget):
    """A target with float or power-of-two scales."""

    def write_c(
        self,
        converted: GraphModel,
        example_inputs: tuple[Tensor, ...],
        folder: str | os.PathLike[str],
        name: str,
    ) -> list[Path]:
        """Write C that calls kernels."""
        return export_c(converted, example_inputs, folder, name)
