"""What all ONNX writers share: tracing, names, opset, metadata, a file whole or not there."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import onnxscript.optimizer
import torch
from torch import Tensor

from edgeailite.quantization.export.formats import ExportFormat
from edgeailite.quantization.export.names import name_tensors
from edgeailite.quantization.export.opset import OLDEST_OPSET, TORCH_OPSET, lower_opset
from edgeailite.quantization.graph.model import GraphModel

_LOG = logging.getLogger(__name__)


def write_onnx(
    model: GraphModel,
    example_inputs: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    *,
    model_format: ExportFormat,
    rewrite: Callable[[onnx.ModelProto], None] | None = None,
    fuse: bool = True,
    opset_version: int = TORCH_OPSET,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
) -> Path:
    """Export `model` as it is to `path`.

    Args:
        model: In evaluation mode.
        example_inputs: What to trace with.
        path: File to write; it appears complete or not at all.
        model_format: What kind of file it is; stored in it.
        rewrite: Changes the file's content before it is checked.
        fuse: Let the exporter fuse operators (a batch norm into the convolution before it).
        opset_version: 13 or newer; the file holds exactly this one.
        input_names: Names of the inputs; None: those of the model's own ``forward``.
        output_names: Names of the outputs.
        dynamic_batch: Leave the first dimension open; if the model fixes it, a message says so.

    Returns:
        `path`.

    Raises:
        ValueError: The opset is not one that can be written, for this model or at all.
    """
    target = Path(path)
    if not OLDEST_OPSET <= opset_version <= onnx.defs.onnx_opset_version():
        raise ValueError(
            f"opset_version is {opset_version}; this installation writes {OLDEST_OPSET} to "
            f"{onnx.defs.onnx_opset_version()}."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    names = input_names or [str(n.target) for n in model.graph.find_nodes(op="placeholder")]
    program = _trace(
        model, example_inputs, max(opset_version, TORCH_OPSET), names, output_names, dynamic_batch,
        fuse,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        temporary = Path(folder) / target.name
        program.save(str(temporary))
        proto = onnx.load(str(temporary))
        name_tensors(proto, model)
        _drop_traces(proto)
        if rewrite is not None:
            rewrite(proto)
        proto = _with_opset(proto, opset_version)
        # The oldest that goes with the opset: tools of its time read no newer one.
        proto.ir_version = onnx.helper.find_min_ir_version_for(list(proto.opset_import), True)
        properties = {"model_source": "edgeailite", "model_format": model_format.value}
        onnx.helper.set_model_props(proto, properties)
        onnx.checker.check_model(proto, full_check=True)
        onnx.save(proto, str(temporary))
        os.replace(temporary, target)  # noqa: PTH105 -- the word that says atomic
    return target


def _with_opset(proto: onnx.ModelProto, opset_version: int) -> onnx.ModelProto:
    """The file in exactly the opset that was asked for."""
    written = next(o.version for o in proto.opset_import if not o.domain)
    if opset_version < written == TORCH_OPSET:
        return lower_opset(proto, opset_version)
    if written != opset_version:
        raise ValueError(
            f"opset_version is {opset_version}, but torch.onnx wrote {written} for this model. "
            f"Ask for {written}, or for {OLDEST_OPSET} to {TORCH_OPSET}."
        )
    return proto


def _drop_traces(proto: onnx.ModelProto) -> None:
    """Remove the exporter's notes: a third of a small file, and paths of the machine it was on."""
    for item in (
        *proto.graph.node,
        *proto.graph.value_info,
        *proto.graph.input,
        *proto.graph.output,
    ):
        item.ClearField("metadata_props")
    proto.graph.ClearField("metadata_props")


def _trace(
    model: GraphModel,
    example_inputs: tuple[Tensor, ...],
    opset_version: int,
    input_names: Sequence[str],
    output_names: Sequence[str] | None,
    dynamic_batch: bool,
    fuse: bool,
) -> torch.onnx.ONNXProgram:
    def run(dynamic: bool) -> torch.onnx.ONNXProgram:
        # One level more than inputs: a GraphModel takes *args.
        shapes = (tuple({0: "batch"} for _ in example_inputs),) if dynamic else None
        # Two or more examples: torch.export takes a dimension of 1 for a constant.
        inputs = tuple(
            x if not dynamic or x.shape[0] > 1 else x.repeat(2, *[1] * (x.dim() - 1))
            for x in example_inputs
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model, inputs, dynamo=True, verbose=False, opset_version=opset_version,
                external_data=False, input_names=list(input_names),
                output_names=list(output_names) if output_names else None, dynamic_shapes=shapes,
                optimize=fuse,
            )  # fmt: skip
            assert program is not None
            if not fuse:
                onnxscript.optimizer.fold_constants(program.model)
                onnxscript.optimizer.remove_unused_nodes(program.model)
        return program

    if dynamic_batch:
        try:
            return run(dynamic=True)
        except torch.onnx.OnnxExporterError as error:
            _LOG.warning(
                "The model fixes its batch size, so does the file (%s).", str(error).splitlines()[0]
            )
    return run(dynamic=False)
