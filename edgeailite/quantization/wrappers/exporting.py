"""Export of wrappers and converted models: one signature, and the one of microcontrollers."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from edgeailite.quantization.export.formats import OnnxOptions

if TYPE_CHECKING:
    from edgeailite.quantization.export.export_format import ExportFormat


class Exporter(nn.Module):
    """A module that writes files."""

    @abstractmethod
    def write(
        self,
        example_input: Tensor | Sequence[Tensor],
        path: str | os.PathLike[str],
        format: ExportFormat | str | None,
        options: OnnxOptions,
        strict: bool,
    ) -> Path:
        """Write a file; :meth:`export` with its options in one object."""

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
        """Write ONNX; beside TIDL's integer graph also its settings, as ``<stem>.tidl.json``.

        For TI's NPU, warn of operations that it does not compute.

        Args:
            example_input: Input to trace with.
            path: File to write; it appears complete or not at all.
            format: Contents of the file, see :class:`ExportFormat`; None: of a wrapper the target's
                own integers (``QDQ_MODEL``; for TI's NPU ``TINPU_INT_MODEL``), of a converted model
                the format that ``convert`` was asked for.
            opset_version: 13 or newer; the file holds exactly this one. None: 18
                (``TINPU_INT_MODEL``: 17).
            input_names: Names of the inputs; None: those of the model's own ``forward``.
            output_names: Names of the outputs; None: the exporter's.
            dynamic_batch: Leave the batch size open.
            simplify: Let the exporter fuse operators; False: leave them, with constants folded.
                None: fuse, except in ``FLOAT_MODEL``.
            strict: For TI's NPU: raise, instead of warning, where the model has an operation that
                it does not compute.

        Raises:
            ValueError: A format that the target or the converted model does not have, an opset that
                cannot be written, an activation range that has never seen data (``FLOAT_MODEL``
                needs none), or, with `strict`, an operation that the NPU does not compute.
        """
        options = OnnxOptions(opset_version, input_names, output_names, dynamic_batch, simplify)
        return self.write(example_input, path, format, options, strict)


class TinyMLExporter(Exporter):
    """An :class:`Exporter` that takes the format under its historical name too."""

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
        """Write ONNX; for TI's NPU, warn of operations that it does not compute.

        Args:
            example_input: As in :meth:`QuantModule.export`.
            path: As in :meth:`QuantModule.export`.
            format: As in :meth:`QuantModule.export`.
            model_qconfig_format: The historical name of `format`.
            opset_version: As in :meth:`QuantModule.export`.
            input_names: As in :meth:`QuantModule.export`.
            output_names: As in :meth:`QuantModule.export`.
            dynamic_batch: As in :meth:`QuantModule.export`.
            simplify: As in :meth:`QuantModule.export`.
            strict: As in :meth:`QuantModule.export`; see
                :func:`~edgeailite.quantization.targets.tinpu.hardware_rules.check_hardware_rules`.

        Raises:
            ValueError: A format that the target or the converted model does not have, two different
                formats, an opset that cannot be written, an activation range that has never seen
                data, or, with `strict`, an operation that the NPU does not compute.
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
