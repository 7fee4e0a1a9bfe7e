"""The interface of a hardware target; the targets are in :mod:`edgeailite.quantization.targets`."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor, fx, nn

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import QuantSpec, Rounding
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.graph.registry import Operation
    from edgeailite.quantization.prepare.policy import OutputAnnotation


class Target(ABC):
    """All that the engine asks about a hardware target.

    Attributes:
        name: As users name it.
        arithmetic: ``"scale"``: integers times a float or power-of-two scale; ``"fixed_point"``:
            offset, multiplier and shift. Export formats are for one of them, or for both.
        default_format: Export format of its integer graphs.
        traced_format: What ``torch.onnx.export`` of a prepared model writes.
        rounding: Of activations, where a configuration leaves it open.
        takes_presets: Presets, and configurations of torch.ao, suit it.
        writes_tables: A function of one value is a table in every file of integers. Otherwise it is
            one where float arithmetic between two grids gives another integer.
    """

    name: ClassVar[str]
    arithmetic: ClassVar[Literal["scale", "fixed_point"]] = "scale"
    default_format: ClassVar[str]
    traced_format: ClassVar[str]
    rounding: ClassVar[Rounding] = "half_even"
    takes_presets: ClassVar[bool] = True
    writes_tables: bool = False

    @abstractmethod
    def computes(self, operation: Operation) -> bool:
        """Return True for an operation whose operands and results are integers."""

    def quantizes_input_of(self, operation: Operation) -> bool:
        """Return True for an operation for which the network's input is quantized."""
        return self.computes(operation)

    def refuses(self, node: fx.Node, module: nn.Module | None) -> str:
        """Say why a call of an operation that it computes runs in float; empty: it is computed.

        Args:
            node: The call.
            module: The module it calls, for ``call_module`` nodes.
        """
        return ""

    def annotate(self, node: fx.Node, annotation: OutputAnnotation) -> OutputAnnotation:
        """Adapt the annotation of a value to the target's arithmetic.

        Args:
            node: Whose value is quantized. Its ``meta["module"]``, or that of a node before it, may
                be set to a :class:`~edgeailite.quantization.prepare.policy.ModuleAnnotation`.
            annotation: By the common rules.
        """
        return annotation

    def check_specs(self, weight: QuantSpec, activation: QuantSpec) -> None:
        """Raise a ValueError for grids that the target does not compute."""
        return

    @abstractmethod
    def convert(self, model: GraphModel, integer_outputs: bool | None = None) -> GraphModel:
        """Make the integer graph of a prepared model, which stays as it is.

        Args:
            model: Prepared for this target.
            integer_outputs: Return the outputs' integers; False: real values. None: as the device
                does.
        """

    def remarks(self, converted: GraphModel) -> list[str]:
        """Name what of an integer graph the accelerator leaves to another processor."""
        return []

    def check(self, converted: GraphModel, inputs: Sequence[Tensor], strict: bool = False) -> None:
        """Compare an integer graph with what the hardware computes; warn of each difference.

        Args:
            converted: Integer graph of this target.
            inputs: Of the shape the model is used with.
            strict: Raise instead of warning. Without effect, and said so, where the target has no
                rules.

        Raises:
            ValueError: `strict`, and the hardware does not compute something.
        """
        if strict:
            self.warn_of_strict()

    def warn_of_strict(self) -> None:
        """Say that `strict` has no effect on files for this target."""
        warnings.warn(
            "strict=True has no effect: only integer graphs for TI's NPU are compared with what "
            "the hardware computes.",
            stacklevel=5,
        )

    def write_c(
        self,
        converted: GraphModel,
        example_inputs: tuple[Tensor, ...],
        folder: str | os.PathLike[str],
        name: str,
    ) -> list[Path]:
        """Write an integer graph as C, with test vectors.

        Args:
            converted: Integer graph of this target.
            example_inputs: Test vectors, one for each element of the batch.
            folder: Folder to write to.
            name: A C identifier, with which all names begin.

        Returns:
            The files.

        Raises:
            ValueError: The target, or an operation, has no form in C.
        """
        raise ValueError(
            f"Target '{self.name}' writes no C. Use a wrapper for another target, or give this one "
            "a write_c."
        )
