"""Values that are rounded to two grids, one after the other, stay rounded twice."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, helper

from edgeailite.quantization.export.moves import same_grid
from edgeailite.quantization.export.proto import ProtoGraph

# ONNX Runtime removes them where the grid behind them ends at their bounds.
_CLIPS = ("Relu", "Clip")


def keep_both_roundings(proto: onnx.ModelProto) -> None:
    """Let ONNX Runtime not merge two pairs of quantize nodes that follow each other.

    It makes one rounding of ``QuantizeLinear, DequantizeLinear, QuantizeLinear`` (its
    ``DoubleQDQPairsRemover``), also with a clip between them, where nothing else reads the first
    pair's values; that gives other integers. A maximum
    with the smallest value of the second grid changes nothing, and it leaves that alone.

    Args:
        proto: File, in which nodes are added.
    """
    graph = ProtoGraph(proto.graph)
    for node in list(graph.nodes):
        if node.op_type == "QuantizeLinear" and _follows_another_grid(graph, node):
            _limit(graph, node)
    graph.write()


def _follows_another_grid(graph: ProtoGraph, node: NodeProto) -> bool:
    """Return True for the second pair, if it alone reads the first one."""
    name = node.input[0]
    source = graph.makers.get(name)
    while source is not None and source.op_type in _CLIPS and len(graph.readers[name]) == 1:
        name = source.input[0]
        source = graph.makers.get(name)
    if source is None or source.op_type != "DequantizeLinear":
        return False
    alone = all(len(graph.readers[read]) == 1 for read in (name, source.input[0]))
    scale = graph.constant(node.input[1])
    return alone and scale is not None and scale.ndim == 0 and not same_grid(graph, node, source)


def _limit(graph: ProtoGraph, node: NodeProto) -> None:
    scale, zero_point = (graph.constant(node.input[i]) for i in (1, 2))
    assert scale is not None
    assert zero_point is not None
    steps = np.iinfo(zero_point.dtype).min - zero_point.astype(np.float32)
    smallest = graph.add_constant(f"{node.output[0]}.smallest", np.float32(steps * scale))
    limited = graph.fresh(f"{node.output[0]}.limited")
    place = next(i for i, other in enumerate(graph.nodes) if other is node)
    graph.nodes.insert(
        place, helper.make_node("Max", [node.input[0], smallest], [limited], limited)
    )
    node.input[0] = limited
