"""Moves on integers: which ones, under which condition, with which numbers."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeailite.quantization.export.moves import move_integers, use_unsigned_activations
from edgeailite.quantization.export.proto import ProtoGraph


def quantized(move: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    """``x`` (1, 4, 2, 2) on a signed grid, `move` from ``r`` to ``m``, and the same grid again."""
    values = {"s": np.float32(0.25), "z": np.int8(3), **constants}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["r"]),
        move,
        helper.make_node("QuantizeLinear", ["m", "s", "z"], ["named"]),
        helper.make_node("DequantizeLinear", ["named", "s", "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 2, 2])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in values.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 18)]
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=opset, ir_version=8)
    )


def run(proto: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(0).normal(scale=8, size=(1, 4, 2, 2)).astype(np.float32)
    return session.run(None, {"x": x})[0]


def moved(proto: onnx.ModelProto) -> list[str]:
    """Rewrite; the operators that are left."""
    graph = ProtoGraph(proto.graph)
    use_unsigned_activations(graph)
    move_integers(graph)
    graph.prune()
    graph.write()
    onnx.checker.check_model(proto, full_check=True)
    return [node.op_type for node in proto.graph.node]


def node(operator: str, *inputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, ["r", *inputs], ["m"], **attributes)


PADS = np.array([0, 0, 1, 1, 0, 0, 1, 1], dtype=np.int64)
MOVES = {
    "reshape": (node("Reshape", "a"), {"a": np.array([2, 8], dtype=np.int64)}),
    "transpose": (node("Transpose", perm=[0, 2, 1, 3]), {}),
    "max_pool": (node("MaxPool", kernel_shape=[2, 2], pads=[1, 1, 0, 0]), {}),
    "depth_to_space": (node("DepthToSpace", blocksize=2), {}),
    "resize": (node("Resize", "", "a"), {"a": np.array([1, 1, 2, 2], dtype=np.float32)}),
    "reduce_max": (node("ReduceMax", "a", keepdims=0), {"a": np.array([2, 3], dtype=np.int64)}),
    "zero_pad": (node("Pad", "a"), {"a": PADS}),
    "pad_with_a_value": (node("Pad", "a", "v"), {"a": PADS, "v": np.float32(-1.5)}),
    "reflect_pad": (node("Pad", "a", mode="reflect"), {"a": PADS}),
}
COMPUTES = {
    "pad_between_two_integers": (node("Pad", "a", "v"), {"a": PADS, "v": np.float32(0.3)}),
    "pad_beyond_the_grid": (node("Pad", "a", "v"), {"a": PADS, "v": np.float32(-100)}),
    "bilinear": (
        node("Resize", "", "a", mode="linear"), {"a": np.array([1, 1, 2, 2], dtype=np.float32)}
    ),
    "relu": (node("Relu"), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", list(MOVES))
def test_a_move_runs_on_integers_and_keeps_the_name_of_the_result(case):
    move, constants = MOVES[case]
    proto = quantized(move, **constants)
    expected = run(proto)
    assert moved(proto) == ["QuantizeLinear", move.op_type, "DequantizeLinear"]
    assert proto.graph.node[1].output[0] == "named"
    np.testing.assert_array_equal(run(proto), expected)


@pytest.mark.parametrize("case", list(COMPUTES))
def test_what_computes_stays_in_real_numbers(case):
    operation, constants = COMPUTES[case]
    proto = quantized(operation, **constants)
    expected = run(proto)
    assert moved(proto)[1:4] == ["DequantizeLinear", operation.op_type, "QuantizeLinear"]
    np.testing.assert_array_equal(run(proto), expected)


def test_activations_become_unsigned():
    proto = quantized(*MOVES["transpose"][:1])
    moved(proto)
    zero_points = {n.input[2] for n in proto.graph.node if len(n.input) > 2}
    values = [numpy_helper.to_array(t) for t in proto.graph.initializer if t.name in zero_points]
    assert [(v.dtype, int(v)) for v in values] == [(np.uint8, 131)]
