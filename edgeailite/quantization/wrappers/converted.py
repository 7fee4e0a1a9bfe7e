"""Converted models: integer graphs that evaluate, save, load and export."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeailite.quantization.export.export_format import ExportFormat
from edgeailite.quantization.export.formats import OnnxOptions, Writer, find_writer, writers
from edgeailite.quantization.graph.model import GraphModel


class ConvertedModule(nn.Module):
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
        self.format = ExportFormat.parse(format or model.target.default_format)
        self.training = False

    @property
    def formats(self) -> tuple[ExportFormat, ...]:
        """Formats that :meth:`export` writes."""
        return tuple(ExportFormat(w.format) for w in self._writers)

    @property
    def _writers(self) -> list[Writer]:
        return writers(self.module.target.arithmetic, "converted")

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

    def export(
        self,
        example_input: Tensor | tuple[Tensor, ...],
        path: str | os.PathLike[str],
        *,
        format: ExportFormat | str | None = None,
        opset_version: int | None = None,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        dynamic_batch: bool = True,
        simplify: bool | None = None,
        strict: bool = False,
    ) -> Path:
        """Write the integer graph as ONNX; for TI's NPU, warn of operations it does not compute.

        Args:
            example_input: Input to trace with.
            path: File to write.
            format: Contents of the file; None: the format that :meth:`QuantModule.convert` was
                asked for.
            opset_version: As in :meth:`QuantModule.export`.
            input_names: As in :meth:`QuantModule.export`.
            output_names: As in :meth:`QuantModule.export`.
            dynamic_batch: As in :meth:`QuantModule.export`.
            simplify: As in :meth:`QuantModule.export`.
            strict: As in :meth:`QuantModule.export`.

        Raises:
            ValueError: A format that these integers do not have, an opset that cannot be written,
                or, with `strict`, an operation that the NPU does not compute.
        """
        options = OnnxOptions(opset_version, input_names, output_names, dynamic_batch, simplify)
        return self.write(example_input, path, format, options, strict)

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
        self.module.target.check(self.module, inputs, strict)
        return chosen.write(self.module, inputs, path, options)

    def export_c(
        self, example_input: Tensor, folder: str | os.PathLike[str], name: str = "model"
    ) -> list[Path]:
        """Write C for a device, a runner and test vectors.

        Args:
            example_input: Test vectors, one for each element of the batch.
            folder: Folder to write to.
            name: A C identifier, with which all names begin.

        Returns:
            The files.

        Raises:
            ValueError: The model is not of a TINPU wrapper, or an operation has no form in C.
        """
        return self.module.target.write_c(self.module, example_input, folder, name)


class TinyMLConvertedModule(ConvertedModule):
    """The integer graph of a microcontroller wrapper, see :class:`ConvertedModule`."""

    def export(
        self,
        example_input: Tensor | tuple[Tensor, ...],
        path: str | os.PathLike[str],
        *,
        format: ExportFormat | str | None = None,
        model_qconfig_format: ExportFormat | str | None = None,
        opset_version: int | None = None,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        dynamic_batch: bool = True,
        simplify: bool | None = None,
        strict: bool = False,
    ) -> Path:
        """Write the integer graph as ONNX; for the NPU, warn of operations it does not compute.

        Args:
            example_input: Input to trace with.
            path: File to write.
            format: Contents of the file; None: the format that ``convert`` was asked for.
            model_qconfig_format: The historical name of `format`.
            opset_version: As in :meth:`QuantModule.export`.
            input_names: As in :meth:`QuantModule.export`.
            output_names: As in :meth:`QuantModule.export`.
            dynamic_batch: As in :meth:`QuantModule.export`.
            simplify: As in :meth:`QuantModule.export`.
            strict: As in :meth:`QuantModule.export`; see
                :func:`~edgeailite.quantization.targets.tinpu.hardware_rules.check_hardware_rules`.

        Raises:
            ValueError: A format that these integers do not have, two different formats, an opset
                that cannot be written, or, with `strict`, an operation that the NPU does not
                compute.
        """
        options = OnnxOptions(opset_version, input_names, output_names, dynamic_batch, simplify)
        chosen = one_format(format, model_qconfig_format)
        return self.write(example_input, path, chosen, options, strict)


def one_format(
    format: ExportFormat | str | None, model_qconfig_format: ExportFormat | str | None
) -> ExportFormat | str | None:
    """Return the format that was given under one of its two names, or None.

    Raises:
        ValueError: Two different formats were given.
    """
    if format is None or model_qconfig_format is None:
        return model_qconfig_format if format is None else format
    if format != model_qconfig_format:
        raise ValueError(
            f"format is {str.__str__(format)!r} and model_qconfig_format, its historical name, is "
            f"{str.__str__(model_qconfig_format)!r}. Give one of them."
        )
    return format


def as_tuple(example_input: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return one input, or several, as a tuple."""
    return (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
