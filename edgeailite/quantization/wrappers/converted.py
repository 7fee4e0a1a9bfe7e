"""Converted models: integer graphs that evaluate, save, load and export."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeailite.quantization.export.export_format import ExportFormat
from edgeailite.quantization.export.formats import OnnxOptions, Writer, find_writer, writers
from edgeailite.quantization.graph.model import GraphModel, target_of
from edgeailite.quantization.prepare.prepare import check_finite_weights
from edgeailite.quantization.wrappers.exporting import Exporter, TinyMLExporter


class ConvertedModule(Exporter):
    """An integer graph in ``.module``: evaluates, saves, loads, exports; cannot be trained.

    Args:
        model: From a conversion.
        format: Default of :meth:`export`; None: the target's own.
    """

    def __init__(
        self,
        model: GraphModel,
        format: ExportFormat | str | None = None,
    ) -> None:
        super().__init__()
        self.module = model
        self.format = ExportFormat.parse(format or target_of(model).default_format)
        self.training = False

    @property
    def formats(self) -> tuple[ExportFormat, ...]:
        """Formats that :meth:`export` writes."""
        return tuple(ExportFormat(w.format) for w in self._writers)

    @property
    def _writers(self) -> list[Writer]:
        return writers(target_of(self.module).arithmetic, "converted")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the integer graph: real values in and out, integers in between."""
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> ConvertedModule:
        """Stay in evaluation mode, the only one.

        Raises:
            RuntimeError: Training mode was asked for.
        """
        if mode:
            raise RuntimeError(
                "A converted model holds integers and cannot be trained; "
                "train the wrapper it came from."
            )
        super().train(False)
        return self

    def write(
        self,
        example_input: Tensor | Sequence[Tensor],
        path: str | os.PathLike[str],
        format: ExportFormat | str | None,
        options: OnnxOptions,
        strict: bool,
    ) -> Path:
        """Write a file; :meth:`export` with its options in one object."""
        chosen = find_writer(format or self.format, self._writers)
        inputs = as_tuple(example_input)
        target_of(self.module).check(self.module, inputs, strict)
        return chosen.write(self.module, inputs, path, options)

    def export_c(
        self,
        example_input: Tensor | tuple[Tensor, ...],
        folder: str | os.PathLike[str],
        name: str = "model",
    ) -> list[Path]:
        """Write C for a device, with test vectors.

        Args:
            example_input: Test vectors, one for each element of the batch.
            folder: Folder to write to.
            name: A C identifier, with which all names begin.

        Returns:
            The files.

        Raises:
            ValueError: An operation, or the target, has no form in C; the message names it.
        """
        inputs = as_tuple(example_input)
        return target_of(self.module).write_c(self.module, inputs, folder, name)


class TinyMLConvertedModule(TinyMLExporter, ConvertedModule):
    """The integer graph of a microcontroller wrapper, see :class:`ConvertedModule`."""


def convert_model(
    model: GraphModel,
    format: ExportFormat | str | None = None,
    integer_outputs: bool | None = None,
) -> tuple[GraphModel, str]:
    """Make the integer graph of a prepared model; return it with the name of its format.

    Args:
        model: Prepared model; it does not change.
        format: Format of later exports; None: the target's own.
        integer_outputs: As in :meth:`~edgeailite.quantization.prepare.target.Target.convert`.

    Raises:
        ValueError: A format that holds no integers or is another target's; a weight or a range is
            NaN or infinite, or a range has never seen data.
    """
    target = target_of(model)
    offered = writers(target.arithmetic, "converted")
    chosen = find_writer(format or target.default_format, offered).format
    check_finite_weights(model)
    return target.convert(model, integer_outputs), chosen


def integer_graph(model: GraphModel) -> GraphModel:
    """Make the integer graph of a prepared model, with real values in and out."""
    return convert_model(model, integer_outputs=False)[0]


def as_tuple(example_input: Any) -> tuple[Any, ...]:
    """Return one input, or several, as a tuple."""
    if isinstance(example_input, tuple | list):
        return tuple(example_input)
    return (example_input,)
