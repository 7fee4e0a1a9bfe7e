"""Integer forms that hold only under a condition."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeailite.quantization.export.proto import ProtoGraph
from edgeailite.quantization.export.qlinear_forms import (
    CONTRIB,
    Site,
    find_integer_form,
    integer_form,
)

VALUES = {
    "s": np.float32(0.25), "z": np.uint8(0), "ys": np.float32(0.5), "t": np.float32(1 / 3),
    "w": np.arange(-8, 8, dtype=np.int8).reshape(4, 4), "wz": np.int8(0), "zi": np.int32(0),
    "b": np.arange(4, dtype=np.int32), "bs": np.float32(0.0625), "axes": np.int64([2, 3]),
    "si": np.int8(0),
}  # fmt: skip


def site(node, shape, y_scale="ys", weight_shape=None):
    """`node` from ``x`` (and the weight ``wr``, the bias ``br``) to a quantized ``y``."""
    values = dict(VALUES)
    if weight_shape is not None:
        values["w"] = values["w"].reshape(weight_shape)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "s", "wz"], ["wr"]),
        helper.make_node("DequantizeLinear", ["b", "bs", "zi"], ["br"]),
        helper.make_node("DequantizeLinear", ["b", "s", "zi"], ["other_bias"]),
        helper.make_node("DequantizeLinear", ["i", "s", "si"], ["signed"]),
        node,
        helper.make_node("QuantizeLinear", ["m", y_scale, "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("q", TensorProto.UINT8, shape),
         helper.make_tensor_value_info("i", TensorProto.INT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in values.items()],
        value_info=[helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    return Site(ProtoGraph(graph), node, nodes[-1], "y")


def form(node, shape, **options) -> list[str]:
    """Operators of the integer form; none if there is no form."""
    write = find_integer_form(node.op_type)
    assert write is not None
    return [n.op_type for n in write(site(node, shape, **options))]


def make(operator: str, *inputs: str, **attributes: object):
    return helper.make_node(operator, inputs, ["m"], **attributes)


@pytest.mark.parametrize(
    ("node", "shape", "expected"),
    [
        (make("Gemm", "x", "wr", "br", transB=1), [1, 4], ["QGemm"]),
        (make("Gemm", "x", "wr", "other_bias", transB=1), [1, 4], []),
        (make("Gemm", "x", "wr", alpha=2.0), [1, 4], []),
        (make("Gemm", "x", "wr", transA=1), [4, 4], []),
        (make("Add", "x", "x"), [1, 4], ["QLinearAdd"]),
        (make("Add", "x", "signed"), [1, 4], []),
        (make("Concat", "x", "signed", axis=1), [1, 4], []),
        (make("MatMul", "x", "x"), [4, 4], ["QLinearMatMul"]),
        (make("MatMul", "x", "wr"), [4, 4], []),
        (make("AveragePool", "x", kernel_shape=[2, 2], dilations=[1, 1]), [1, 4, 4, 4],
         ["QLinearAveragePool"]),
        (make("AveragePool", "x", kernel_shape=[2, 2], dilations=[2, 2]), [1, 4, 4, 4], []),
        (make("ReduceMean", "x", "axes", keepdims=0), [1, 4, 4, 4],
         ["QLinearGlobalAveragePool", "Squeeze"]),
        (make("ReduceMean", "x", "axes"), ["n", 4, 4, "w"], []),
        (make("ReduceMean", "x"), [1, 4, 4, 4], []),
        (make("GlobalAveragePool", "x"), [1, 4, 7, 7], ["QLinearGlobalAveragePool"]),
    ],
)  # fmt: skip
def test_form_of_an_operator(node, shape, expected):
    assert form(node, shape) == expected


def pooled_by_onnx_runtime(count: int, y_scale: str) -> tuple[np.ndarray, np.ndarray]:
    """Integer means of areas with every possible sum, and what ONNX Runtime's operator gives."""
    node, inputs = make("GlobalAveragePool", "x"), ["q", "s", "z", y_scale, "z"]
    shape = [1, 255 * count + 1, count, 1]
    pool = helper.make_node(f"QLinear{node.op_type}", inputs, ["y"], domain=CONTRIB)
    graph = helper.make_graph(
        [pool], "g", [helper.make_tensor_value_info("q", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(VALUES[n]), n) for n in dict.fromkeys(inputs[1:])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    sums = np.arange(shape[1], dtype=np.int64)
    parts = np.clip(sums[:, None] - 255 * np.arange(count), 0, 255).astype(np.uint8)
    (actual,) = session.run(None, {"q": parts.reshape(shape)})
    real = sums.astype(np.float32) * VALUES["s"] / np.float32(count)
    return np.clip(np.rint(real / VALUES[y_scale]), 0, 255), actual.ravel()


@pytest.mark.parametrize("y_scale", ["ys", "t"])
def test_mean_has_a_form_exactly_where_onnx_runtime_rounds_every_sum_alike(y_scale):
    node, found = make("GlobalAveragePool", "x"), set()
    for count in (2, 3, 4, 6, 7, 9, 10, 12, 13, 14, 25, 49, 64, 98):
        expected, actual = pooled_by_onnx_runtime(count, y_scale)
        has_form = bool(form(node, [1, 4, count, 1], y_scale=y_scale))
        assert has_form == np.array_equal(expected, actual), count
        found.add(has_form)
    assert True in found


def test_an_operator_has_one_form():
    with pytest.raises(ValueError, match="'Conv' has an integer form already, _convolution"):
        integer_form("Softmax", "Conv")(lambda _: [])
    assert find_integer_form("Softmax") is None
