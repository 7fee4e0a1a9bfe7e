"""Move integers instead of real values, and use one integer type for all activations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import NodeProto, TensorProto, helper

from edgeailite.quantization.export.proto import ProtoGraph, attributes
from edgeailite.quantization.graph.registry import moving_onnx_operators


def use_unsigned_activations(graph: ProtoGraph) -> None:
    """Store signed 8-bit activations as unsigned: ``q + 128`` with zero point ``z + 128``.

    The values are the same. ONNX Runtime's integer operators want one type for all operands and
    results, and are fastest for unsigned activations with signed weights.
    """
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear":
            continue
        zero_point = graph.constant(node.input[2])
        readers = graph.readers[node.output[0]]
        if zero_point is None or zero_point.dtype != np.int8 or node.output[0] in graph.interface:
            continue
        if any(reader.op_type != "DequantizeLinear" for reader in readers):
            continue
        for user in (node, *readers):
            user.input[2] = _unsigned(graph, zero_point)
        if node.output[0] in graph.infos:
            graph.infos[node.output[0]].type.tensor_type.elem_type = TensorProto.UINT8
    graph.index()


def _unsigned(graph: ProtoGraph, zero_point: np.ndarray) -> str:
    value = (zero_point.astype(np.int16) + 128).astype(np.uint8)
    name = f"zero_point_{value}"
    if name not in graph.initializers:
        graph.add_constant(name, value)
    return name


def move_integers(graph: ProtoGraph) -> None:
    """Write ``dequantize, move`` as ``move, dequantize``, and drop pairs that cancel.

    A pair ``dequantize, quantize`` of one grid changes nothing.
    """
    moving = moving_onnx_operators()
    for node in list(graph.nodes):
        source = graph.makers.get(node.input[0]) if node.input else None
        if source is None or source.op_type != "DequantizeLinear":
            continue
        if node.op_type in moving and source.input[0] not in graph.initializers:
            _move(graph, node, source)
        elif node.op_type == "QuantizeLinear" and same_grid(graph, node, source):
            _cancel(graph, node, source)


def _move(graph: ProtoGraph, node: NodeProto, source: NodeProto) -> None:
    """Let `node` move the integers that `source` dequantizes, and dequantize its results."""
    allowed = _CONDITIONS.get(node.op_type)
    if len([o for o in node.output if o]) > 1 and node.op_type != "Split":
        return
    if allowed is not None and not allowed(graph, node, source):
        return
    integer, scale, zero_point = source.input
    place = _index(graph, node) + 1
    node.input[0] = integer
    for i, real in enumerate(list(node.output)):
        node.output[i] = graph.fresh(f"{real}.quantized")
        back = helper.make_node(
            "DequantizeLinear", [node.output[i], scale, zero_point], [real], f"{node.name}_real_{i}"
        )
        graph.nodes.insert(place, back)
    graph.index()


def _cancel(graph: ProtoGraph, node: NodeProto, source: NodeProto) -> None:
    """Read the integers directly; moved integers get the name of the quantizer's result."""
    integer, name = source.input[0], node.output[0]
    if name in graph.interface:
        return
    del graph.nodes[_index(graph, node)]
    graph.index()
    if graph.makers[integer].op_type in moving_onnx_operators():
        graph.rename({integer: name})
    else:
        graph.rename({name: integer})


def _index(graph: ProtoGraph, node: NodeProto) -> int:
    return next(i for i, n in enumerate(graph.nodes) if n is node)


def same_grid(graph: ProtoGraph, node: NodeProto, other: NodeProto) -> bool:
    """Return True if two quantize nodes have the same constants."""
    pairs = [(graph.constant(node.input[i]), graph.constant(other.input[i])) for i in (1, 2)]
    return all(
        a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b)
        for a, b in pairs
    )


# ---- operators that need a condition -------------------------------------------------------------


def _pads_with_a_grid_value(graph: ProtoGraph, node: NodeProto, source: NodeProto) -> bool:
    """Return True if Pad's constant lies on the grid; the node then gets the integer.

    Minus infinity, which a max pool alone reads, is the least integer.
    """
    if attributes(node).get("mode", b"constant") != b"constant":
        return True
    given = len(node.input) > 2 and node.input[2] != ""
    value = graph.constant(node.input[2]) if given else np.float32(0)
    scale, zero_point = graph.constant(source.input[1]), graph.constant(source.input[2])
    if value is None or scale is None or zero_point is None:
        return False
    limits = np.iinfo(zero_point.dtype)
    if np.isneginf(value):
        integer = limits.min
    else:
        multiple = np.rint(value / scale)
        integer = int(multiple + zero_point.astype(np.int64))
        if multiple * scale != value or not limits.min <= integer <= limits.max:
            return False
    name = graph.add_constant(f"{node.output[0]}.value", np.array(integer, zero_point.dtype))
    node.input[:] = [node.input[0], node.input[1], name, *node.input[3:]]
    return True


def _is_nearest(graph: ProtoGraph, node: NodeProto, source: NodeProto) -> bool:
    """Return True if Resize only copies: other modes compute, cropping may add a constant."""
    values = attributes(node)
    crops = values.get("coordinate_transformation_mode") == b"tf_crop_and_resize"
    return values.get("mode", b"nearest") == b"nearest" and not crops


def _is_unsigned(graph: ProtoGraph, node: NodeProto, source: NodeProto) -> bool:
    """Return True for unsigned integers: ONNX Runtime has no signed kernel."""
    zero_point = graph.constant(source.input[2])
    return zero_point is not None and zero_point.dtype == np.uint8


_CONDITIONS: dict[str, Callable[[ProtoGraph, NodeProto, NodeProto], bool]] = {
    "Pad": _pads_with_a_grid_value,
    "Resize": _is_nearest,
    "DepthToSpace": _is_unsigned,
    "SpaceToDepth": _is_unsigned,
}
