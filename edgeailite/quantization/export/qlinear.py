"""The integer graph in operators that take and return integers: QLinearConv, QGemm, QLinearAdd."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper
from torch import Tensor

from edgeailite.quantization.export.formats import ExportFormat
from edgeailite.quantization.export.moves import move_integers, use_unsigned_activations
from edgeailite.quantization.export.onnx_file import write_onnx
from edgeailite.quantization.export.proto import ProtoGraph
from edgeailite.quantization.export.qlinear_forms import CONTRIB, FORMS, Site
from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.integer.operators import IntegerLayer

_LOG = logging.getLogger(__name__)


def export_int(
    converted: GraphModel,
    example_inputs: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    **options: Any,
) -> Path:
    """Write a converted model in integer operators; `options` as in :func:`write_onnx`.

    Operators of the domain ``com.microsoft`` are ONNX Runtime's. What has no integer operator stays
    between DequantizeLinear and QuantizeLinear, and a warning says which and how many; grids that
    QuantizeLinear does not compute are written as in :func:`export_qdq`.
    """
    layers = [m for m in converted.modules() if isinstance(m, IntegerLayer)]
    carried = [layer.layer_path for layer in layers if not layer.has_onnx_form]

    def rewrite(proto: onnx.ModelProto) -> None:
        left = use_integer_operators(proto)
        if carried:
            _LOG.warning(
                "%d layers have a grid that no ONNX operator computes (%s...): their integers are "
                "carried in float.", len(carried), carried[0],
            )  # fmt: skip
        if left:
            counts = ", ".join(f"{count} {name}" for name, count in sorted(left.items()))
            _LOG.warning("No integer operator for %s: quantize nodes stay around them.", counts)

    return write_onnx(
        converted, example_inputs, path, model_format=ExportFormat.INT_MODEL, rewrite=rewrite,
        **options,
    )  # fmt: skip


def use_integer_operators(proto: onnx.ModelProto) -> Counter[str]:
    """Rewrite a QDQ file: ``dequantize, operator, (clip,) quantize`` becomes one integer operator.

    Args:
        proto: A QDQ file; changed in place. Values stay what they were, except that activations
            are stored unsigned.

    Returns:
        How many operators of each kind still read dequantized values. ``Requantize`` is a change
        of grid alone.
    """
    graph = ProtoGraph(proto.graph)
    use_unsigned_activations(graph)
    move_integers(graph)
    for node in [n for n in graph.nodes if n.op_type == "QuantizeLinear"]:
        _fuse(graph, node)
    graph.prune()
    graph.write()
    if any(node.domain == CONTRIB for node in graph.nodes):
        proto.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return _what_stayed(graph)


def _fuse(graph: ProtoGraph, quantize: NodeProto) -> None:
    """Replace a QuantizeLinear, and what feeds it, by an integer operator if there is one."""
    source, limits = quantize.input[0], None
    maker = graph.makers.get(source)
    if maker is not None and maker.op_type == "Clip" and _feeds_only(graph, source):
        limits = _integer_limits(graph, maker, quantize)
        source = maker.input[0]
        maker = graph.makers.get(source)
        if limits is None:
            return
    if maker is None or maker.op_type not in FORMS or not _feeds_only(graph, source):
        return
    result = quantize.output[0]
    output = result if limits is None else graph.fresh(f"{result}.unclipped")
    nodes = FORMS[maker.op_type](Site(graph, maker, quantize, output))
    if not nodes:
        return
    if limits is not None:
        bounds = [
            graph.add_constant(f"{result}.{name}", value)
            for name, value in zip(("min", "max"), limits, strict=True)
        ]
        nodes.append(helper.make_node("Clip", [output, *bounds], [result], f"{result}_clip"))
    place = next(i for i, n in enumerate(graph.nodes) if n is quantize)
    graph.nodes[place : place + 1] = nodes
    graph.index()


def _feeds_only(graph: ProtoGraph, name: str) -> bool:
    """Whether a tensor has one reader and is not a result of the model."""
    return len(graph.readers[name]) == 1 and name not in graph.fixed


def _integer_limits(
    graph: ProtoGraph, clip: NodeProto, quantize: NodeProto
) -> tuple[np.ndarray, np.ndarray] | None:
    """The bounds of a Clip as integers; None if they do not lie on the grid."""
    scale, zero_point = graph.constant(quantize.input[1]), graph.constant(quantize.input[2])
    bounds = [graph.constant(name) for name in clip.input[1:3]]
    if scale is None or zero_point is None or len(bounds) < 2:
        return None
    info, limits = np.iinfo(zero_point.dtype), []
    for bound in bounds:
        if bound is None:
            return None
        steps = np.rint(bound / scale)
        if abs(float(steps * scale) - float(bound)) > 1e-6 * abs(float(bound)):
            return None
        integer = np.clip(int(steps) + int(zero_point), info.min, info.max)
        limits.append(np.array(integer, zero_point.dtype))
    return limits[0], limits[1]


def _what_stayed(graph: ProtoGraph) -> Counter[str]:
    stayed: Counter[str] = Counter()
    for node in graph.nodes:
        makers = [graph.makers.get(name) for name in node.input]
        if any(m is not None and m.op_type == "DequantizeLinear" for m in makers):
            stayed[{"QuantizeLinear": "Requantize"}.get(node.op_type, node.op_type)] += 1
    return stayed
