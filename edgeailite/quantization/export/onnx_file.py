"""Trace a model and write it as ONNX: tensor names, opset, metadata, an atomic file."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnxscript.optimizer
import torch
from torch import Tensor, fx

from edgeailite.files.atomic import write_atomically
from edgeailite.quantization.export.double_rounding import keep_both_roundings
from edgeailite.quantization.export.functions import keep_proven
from edgeailite.quantization.export.moves import use_unsigned_activations
from edgeailite.quantization.export.names import name_tensors
from edgeailite.quantization.export.opset import OLDEST_OPSET, TORCH_OPSET, lower_opset
from edgeailite.quantization.export.proto import ProtoGraph, drop_traces
from edgeailite.quantization.graph.model import graph_of, recompile
from edgeailite.quantization.graph.structure import paths, rebuild

if TYPE_CHECKING:
    from edgeailite.quantization.export.formats import OnnxOptions
    from edgeailite.quantization.graph.model import GraphModel

_LOG = logging.getLogger(__name__)
# Since this opset QuantizeLinear names its type, and ONNX Runtime 1.31, which computes signed
# activations as unsigned ones, fails to load moves of signed integers that follow each other.
_UNSIGNED_FROM = 21


def write_onnx(
    model: GraphModel,
    example_inputs: tuple[Any, ...],
    path: str | os.PathLike[str],
    options: OnnxOptions,
    *,
    model_format: str,
    rewrite: Callable[[onnx.ModelProto], None] | None = None,
) -> Path:
    """Export `model` as it is to `path`.

    Args:
        model: In evaluation mode.
        example_inputs: Inputs to trace with.
        path: File to write; it appears complete or not at all.
        options: None in it stands for opset 18 and for fused operators.
        model_format: Name of the format; stored in the file.
        rewrite: Changes the file's content before it is checked.

    Returns:
        `path`.

    Raises:
        ValueError: The opset cannot be written, for this model or at all.
    """
    options = options.with_defaults(opset_version=TORCH_OPSET, fuse=True)
    opset_version = options.opset_version
    assert opset_version is not None
    if not OLDEST_OPSET <= opset_version <= onnx.defs.onnx_opset_version():
        raise ValueError(
            f"opset_version is {opset_version}; this installation writes {OLDEST_OPSET} to "
            f"{onnx.defs.onnx_opset_version()}."
        )
    model = _with_exportable_names(model)
    program = _trace(model, example_inputs, max(opset_version, TORCH_OPSET), options)
    with write_atomically(path) as temporary:
        program.save(str(temporary))
        proto = onnx.load(str(temporary))
        name_tensors(proto, model)
        drop_traces(proto)
        if rewrite is not None:
            rewrite(proto)
        keep_both_roundings(proto)
        proto = _with_opset(proto, opset_version)
        keep_proven(proto, model)
        if opset_version >= _UNSIGNED_FROM:
            graph = ProtoGraph(proto.graph)
            use_unsigned_activations(graph)
            graph.write()
        _describe(proto, model_format)
        onnx.checker.check_model(proto, full_check=True)
        onnx.save(proto, str(temporary))
    return Path(path)


def _with_exportable_names(model: GraphModel) -> GraphModel:
    """Rename children that have the name of an attribute of torch's graph modules.

    ``torch.export`` puts a model's tensors into such a module, under their own paths.
    """
    names = {n: f"{n}_" for n in model._modules if hasattr(fx.GraphModule, n) or n == "meta"}
    if not names:
        return model
    renamed = copy.deepcopy(model)
    children = [(names.get(name, name), child) for name, child in renamed._modules.items()]
    renamed._modules.clear()
    renamed._modules.update(children)
    for node in graph_of(renamed).nodes:
        if node.op in ("call_module", "get_attr"):
            first, dot, rest = str(node.target).partition(".")
            node.target = f"{names.get(first, first)}{dot}{rest}"
    recompile(renamed)
    return renamed


def _describe(proto: onnx.ModelProto, model_format: str) -> None:
    """Set the metadata, and the oldest IR version that goes with the opset.

    Tools of the opset's time read no newer IR version.
    """
    proto.ir_version = onnx.helper.find_min_ir_version_for(list(proto.opset_import), True)
    properties = {"model_source": "edgeailite", "model_format": model_format}
    onnx.helper.set_model_props(proto, properties)


def _with_opset(proto: onnx.ModelProto, opset_version: int) -> onnx.ModelProto:
    """Return the file in exactly the requested opset."""
    written = next(o.version for o in proto.opset_import if not o.domain)
    if opset_version < written == TORCH_OPSET:
        return lower_opset(proto, opset_version)
    if written != opset_version:
        raise ValueError(
            f"opset_version is {opset_version}, but torch.onnx wrote {written} for this model. "
            f"Ask for {written}, or for {OLDEST_OPSET} to {TORCH_OPSET}."
        )
    return proto


def _trace(
    model: GraphModel,
    example_inputs: tuple[Any, ...],
    opset_version: int,
    options: OnnxOptions,
) -> torch.onnx.ONNXProgram:
    """Export with an open batch size if the options ask for it and the model allows it."""
    if options.dynamic_batch:
        try:
            # One level more than inputs: a GraphModel takes *args.
            shapes = (rebuild(example_inputs, lambda _: {0: "batch"}),)
            # Two or more examples: torch.export takes a dimension of 1 for a constant.
            inputs = rebuild(example_inputs, _with_two_examples)
            return _run_exporter(model, inputs, opset_version, options, shapes)
        except torch.onnx.OnnxExporterError as error:
            _LOG.warning(
                "The model fixes its batch size, so does the file (%s).", str(error).splitlines()[0]
            )
    return _run_exporter(model, example_inputs, opset_version, options, None)


def _with_two_examples(x: Tensor) -> Tensor:
    return x if x.shape[0] > 1 else x.repeat(2, *[1] * (x.dim() - 1))


def _input_names(model: GraphModel, inputs: tuple[Any, ...]) -> list[str]:
    """Names of forward's arguments; of tensors within one, their keys behind it."""
    placeholders = graph_of(model).find_nodes(op="placeholder")
    return [
        "_".join([str(node.target), *(str(key) for _, key in path)])
        for node, value in zip(placeholders, inputs, strict=False)
        for path, _ in paths(value)
    ]


def _run_exporter(
    model: GraphModel,
    inputs: tuple[Any, ...],
    opset_version: int,
    options: OnnxOptions,
    dynamic_shapes: tuple[Any, ...] | None,
) -> torch.onnx.ONNXProgram:
    input_names = options.input_names or _input_names(model, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            # torch.onnx takes a dict at the end for inputs by name.
            (*inputs, {}) if inputs and isinstance(inputs[-1], dict) else inputs,
            dynamo=True,
            verbose=False,
            opset_version=opset_version,
            external_data=False,
            input_names=list(input_names),
            output_names=list(options.output_names) if options.output_names else None,
            dynamic_shapes=dynamic_shapes,
            optimize=bool(options.fuse),
        )
        assert program is not None
        if not options.fuse:
            onnxscript.optimizer.fold_constants(program.model)
            onnxscript.optimizer.remove_unused_nodes(program.model)
    return program
