"""Rewrite a QDQ file in operators that take and return integers: QLinearConv, QGemm, QLinearAdd."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import NodeProto, helper

from edgeailite.quantization.export.moves import move_integers, use_unsigned_activations
from edgeailite.quantization.export.proto import ProtoGraph
from edgeailite.quantization.export.qlinear_forms import CONTRIB, Site, find_integer_form


def use_integer_operators(proto: onnx.ModelProto) -> Counter[str]:
    """Replace ``dequantize, operator, (clip,) quantize`` by one integer operator.

    Args:
        proto: A QDQ file; changed in place. Values stay what they were, except that activations
            are stored unsigned.

    Returns:
        Number of operators of each kind that still read dequantized values. ``Requantize`` is a
        change of grid alone.
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
    return _count_floats(graph)


def _fuse(graph: ProtoGraph, quantize: NodeProto) -> None:
    """Replace a QuantizeLinear and the operators before it by an integer operator, if possible."""
    source, limits = quantize.input[0], None
    maker = graph.makers.get(source)
    if maker is not None and maker.op_type == "Clip" and _feeds_only(graph, source):
        limits = _integer_limits(graph, maker, quantize)
        source = maker.input[0]
        maker = graph.makers.get(source)
        if limits is None:
            return
    form = None if maker is None else find_integer_form(maker.op_type)
    if maker is None or form is None or not _feeds_only(graph, source):
        return
    result = quantize.output[0]
    output = result if limits is None else graph.fresh(f"{result}.unclipped")
    nodes = form(Site(graph, maker, quantize, output))
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
    """Return True if a tensor has one reader and is not a result of the model."""
    return len(graph.readers[name]) == 1 and name not in graph.interface


def _integer_limits(
    graph: ProtoGraph, clip: NodeProto, quantize: NodeProto
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the bounds of a Clip as integers; None if they do not lie on the grid."""
    scale, zero_point = graph.constant(quantize.input[1]), graph.constant(quantize.input[2])
    bounds = [graph.constant(name) for name in clip.input[1:3]]
    if scale is None or zero_point is None or len(bounds) < 2:
        return None
    info, limits = np.iinfo(zero_point.dtype), []
    for bound in bounds:
        if bound is None:
            return None
        multiple = np.rint(bound / scale)
        if abs(float(multiple * scale) - float(bound)) > 1e-6 * abs(float(bound)):
            return None
        integer = np.clip(int(multiple) + int(zero_point), info.min, info.max)
        limits.append(np.array(integer, zero_point.dtype))
    return limits[0], limits[1]


def _count_floats(graph: ProtoGraph) -> Counter[str]:
    """Count the operators that still read dequantized values."""
    stayed: Counter[str] = Counter()
    for node in graph.nodes:
        makers = [graph.makers.get(name) for name in node.input]
        if any(m is not None and m.op_type == "DequantizeLinear" for m in makers):
            stayed[{"QuantizeLinear": "Requantize"}.get(node.op_type, node.op_type)] += 1
    return stayed
