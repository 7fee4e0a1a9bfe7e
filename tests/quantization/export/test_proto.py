"""Graph bookkeeping: constants, names, pruning."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeailite.quantization.export.proto import ProtoGraph, attributes, drop_attributes


@pytest.fixture
def graph():
    value = helper.make_tensor("five", TensorProto.FLOAT, [], [5.0])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=value),
        helper.make_node("Add", ["x", "w"], ["a"]),
        helper.make_node("Clip", ["a", "c"], ["y"]),
        helper.make_node("Relu", ["x"], ["unused"]),
    ]
    shape = ["n", 3]
    return ProtoGraph(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            [helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])],
            value_info=[helper.make_tensor_value_info("a", TensorProto.FLOAT, shape)],
        )
    )


def test_constants_come_from_initializers_and_constant_nodes(graph):
    np.testing.assert_array_equal(graph.constant("w"), [1, 2, 3])
    assert graph.constant("c") == 5
    assert graph.constant("a") is None


def test_shapes_have_none_for_an_open_dimension(graph):
    assert graph.shape("a") == [None, 3]
    assert graph.shape("w") == [3]
    assert graph.shape("c") is None
    assert graph.element_type("a") == TensorProto.FLOAT


def test_fresh_names_are_free_and_stay_taken(graph):
    assert [graph.fresh(n) for n in ("w", "w", "b", "b")] == ["w_1", "w_2", "b", "b_1"]


def test_renaming_reaches_every_place_and_the_written_graph_is_valid(graph):
    graph.rename({"a": "sum", "w": "weight"})
    graph.prune()
    graph.write()
    assert [n.op_type for n in graph.graph.node] == ["Constant", "Add", "Clip"]
    assert list(graph.graph.node[1].input) == ["x", "weight"]
    assert [v.name for v in graph.graph.value_info] == ["sum"]
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph.graph, opset_imports=opset, ir_version=8)
    onnx.checker.check_model(model, full_check=True)


def test_dropped_attributes_are_gone_and_others_stay():
    node = helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0, noop_with_empty_axes=0)
    drop_attributes(node, ["noop_with_empty_axes"])
    assert attributes(node) == {"keepdims": 0}
