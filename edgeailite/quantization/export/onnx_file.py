"""What every ONNX writer shares: tracing, names, opset, metadata, and a file that is whole or not there."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor

from edgeailite.quantization.graph import GraphModel

MIN_OPSET = 18  # the oldest that torch.onnx writes
_LOG = logging.getLogger(__name__)


def write_onnx(
    model: GraphModel,
    example_inputs: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    *,
    opset_version: int,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
    dynamic_batch: bool,
    metadata: dict[str, str],
) -> Path:
    """Export `model` as it is to `path`.

    Args:
        model: In evaluation mode.
        example_inputs: What to trace with.
        path: File to write; it appears complete or not at all.
        opset_version: 18 or newer; the file holds exactly this one.
        input_names: Names of the inputs; None: those of the model's own ``forward``.
        output_names: Names of the outputs.
        dynamic_batch: Leave the first dimension open; if the model fixes it, a message says so.
        metadata: Key-value pairs stored in the file.

    Returns:
        `path`.

    Raises:
        ValueError: The opset is not one that can be written.
    """
    target = Path(path)
    if not MIN_OPSET <= opset_version <= onnx.defs.onnx_opset_version():
        raise ValueError(
            f"opset_version is {opset_version}; this installation writes {MIN_OPSET} to "
            f"{onnx.defs.onnx_opset_version()}."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    names = input_names or [str(n.target) for n in model.graph.find_nodes(op="placeholder")]
    program = _trace(model, example_inputs, opset_version, names, output_names, dynamic_batch)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        temporary = Path(folder) / target.name
        program.save(str(temporary))
        proto = onnx.load(str(temporary))
        written = next(o.version for o in proto.opset_import if o.domain == "")
        if written != opset_version:
            _LOG.warning(
                "Asked for opset %d, the exporter wrote %d: %s.", opset_version, written, target
            )
        _drop_traces(proto)
        onnx.helper.set_model_props(proto, {"model_source": "edgeailite", **metadata})
        onnx.checker.check_model(proto)
        onnx.save(proto, str(temporary))
        os.replace(temporary, target)  # noqa: PTH105 -- the word that says atomic
    return target


def _drop_traces(proto: onnx.ModelProto) -> None:
    """Remove the exporter's notes on every node: a third of a small file, and paths of the machine it was made on."""
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
                model, inputs, dynamo=True, verbose=False, opset_version=opset_version, external_data=False,
                input_names=list(input_names),
                output_names=list(output_names) if output_names else None, dynamic_shapes=shapes,
            )  # fmt: skip
        assert program is not None
        return program

    if dynamic_batch:
        try:
            return run(dynamic=True)
        except torch.onnx.OnnxExporterError as error:
            _LOG.warning(
                "The model fixes its batch size, so does the file (%s).", str(error).splitlines()[0]
            )
    return run(dynamic=False)
