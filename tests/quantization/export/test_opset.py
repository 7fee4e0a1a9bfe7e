"""Opsets: exactly the one that was asked for, the same numbers, or a clear error."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgeailite.quantization.export import onnx_file
from edgeailite.quantization.export.opset import lower_opset
from tests.quantization.bundle import Networks, differing
from tests.quantization.helpers import batch, seed_everything, trained
from tests.quantization.zoo import ZOO

NETS = ("residual", "shuffle_unit", "zero_pad", "nearest_x2", "bilinear_x2", "avg_pool", "split")


@pytest.fixture(scope="module")
def networks() -> Networks:
    made = {}
    for name in NETS:
        seed_everything(0)
        wrapper = trained(ZOO[name].make(), ZOO[name].shapes)
        made[name] = wrapper.convert(), batch(ZOO[name].shapes, 4)
    return made


@pytest.fixture
def traced_once(monkeypatch):
    """Let the opsets that are written from one of torch's share its trace."""
    trace, made = onnx_file._trace, {}

    def trace_once(model, inputs, opset, options):
        if opset not in made:
            made[opset] = trace(model, inputs, opset, options)
        return made[opset]

    monkeypatch.setattr(onnx_file, "_trace", trace_once)
    return made


@pytest.mark.parametrize("form", ["QDQ_MODEL", "INT_MODEL"])
def test_every_opset_gives_the_same_numbers(networks, form, traced_once, tmp_path):
    for opset in (13, 17, 18, 21):
        assert differing(networks, tmp_path, format=form, opset_version=opset) == {}, opset
        proto = onnx.load(tmp_path / "networks.onnx")
        onnx.checker.check_model(proto, full_check=True)
        assert [o.version for o in proto.opset_import if not o.domain] == [opset]
    assert set(traced_once) == {18, 21}


def proto_of(nodes, inputs, constants=(), outputs=("y",), opset=18) -> onnx.ModelProto:
    """A model of float inputs; the shapes of its values are noted in it."""
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_empty_tensor_value_info(n) for n in outputs],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in dict(constants).items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def run(proto: onnx.ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {i.name: x for i, x in zip(session.get_inputs(), inputs, strict=True)})


int64 = np.int64
# Nodes, constants, outputs; the input x is (2, 3, 4, 5).
REWRITES = {
    "axes": ([helper.make_node("ReduceMax", ["x", "a"], ["y"], keepdims=0)], {"a": int64([2, -1])}),
    "all_axes": ([helper.make_node("ReduceMean", ["x"], ["y"])], {}),
    "equal_split": (
        [helper.make_node("Split", ["x"], ["y", "z"], axis=2, num_outputs=2)], {}, ("y", "z")
    ),
    "unequal_split": (
        [helper.make_node("Split", ["x"], ["y", "z"], axis=3, num_outputs=2)], {}, ("y", "z")
    ),
    "pad_of_axes": (
        [helper.make_node("Pad", ["x", "p", "", "a"], ["y"])],
        {"p": int64([1, 0, 2, 3]), "a": int64([3, 1])},
    ),
    "pad": (
        [helper.make_node("Pad", ["x", "p", "v", ""], ["y"], mode="constant")],
        {"p": int64([0, 0, 1, 1, 0, 0, 1, 1]), "v": np.float32(2)},
    ),
    "reshape": (
        [helper.make_node("Reshape", ["x", "s"], ["y"], allowzero=1)], {"s": int64([6, -1])}
    ),
    "part_of_shape": ([helper.make_node("Shape", ["x"], ["y"], start=1, end=-1)], {}),
    "resize": (
        [helper.make_node(
            "Resize", ["x", "", "s"], ["y"], antialias=0, keep_aspect_ratio_policy="stretch"
        )],
        {"s": np.float32([1, 1, 2, 2])},
    ),
    "layer_norm": (
        [helper.make_node("LayerNormalization", ["x", "w", "b"], ["y"], axis=-1)],
        {"w": np.float32([1, 2, 3, 4, 5]), "b": np.float32([0, 0, 1, 0, 0])},
    ),
    "hard_swish": ([helper.make_node("HardSwish", ["x"], ["y"])], {}),
    "mish": ([helper.make_node("Mish", ["x"], ["y"])], {}),
    "types_only": (
        [helper.make_node("Add", ["x", "x"], ["a"]), helper.make_node("Relu", ["a"], ["y"])], {}
    ),
}  # fmt: skip


@pytest.mark.parametrize("target", [13, 14, 16, 17])
@pytest.mark.parametrize("case", list(REWRITES))
def test_rewritten_operators_compute_the_same(case, target):
    nodes, constants, *names = REWRITES[case]
    proto = proto_of(nodes, {"x": [2, 3, 4, 5]}, constants, *names)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    expected = run(proto, x)
    lowered = lower_opset(proto, target)
    onnx.checker.check_model(lowered, full_check=True)
    assert [o.version for o in lowered.opset_import if not o.domain] == [target]
    for actual, value in zip(run(lowered, x), expected, strict=True):
        np.testing.assert_allclose(actual, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("node", "inputs", "constants", "message"),
    [
        (
            helper.make_node("GridSample", ["x", "g"], ["y"]),
            {"x": [1, 1, 4, 4], "g": [1, 2, 2, 2]}, {},
            "opset_version is 13, in which operator GridSample .* newer. The oldest .* is 16",
        ),
        (
            helper.make_node("Resize", ["x", "", "s"], ["y"], antialias=1, mode="linear"),
            {"x": [1, 1, 4, 4]}, {"s": np.float32([1, 1, 0.5, 0.5])},
            "Resize .* attribute antialias is newer. The oldest opset that can is 18",
        ),
        (
            helper.make_node("Reshape", ["x", "s"], ["y"], allowzero=1), {"x": [0, 3]},
            {"s": int64([3, 0])}, "Reshape .* attribute allowzero is newer. The oldest .* is 14",
        ),
        (
            helper.make_node("Split", ["x"], ["y"], axis=0, num_outputs=1), {"x": ["n", 3]},
            {}, "Split .* attribute num_outputs is newer",
        ),
        (
            helper.make_node("Relu", ["i"], ["y"]), {"x": [1]}, {"i": np.int32([1])},
            "Relu .* input 0 holds int32. The oldest opset that can is 14",
        ),
        (
            helper.make_node("ReduceMean", ["x", "a"], ["y"]), {"x": [2, 3], "a": [1]}, {},
            "ReduceMean .* it has 2 inputs, at most 1 are allowed there",
        ),
    ],
)  # fmt: skip
def test_what_has_no_older_form_is_named(node, inputs, constants, message):
    with pytest.raises(ValueError, match=message):
        lower_opset(proto_of([node], inputs, constants), 13)
