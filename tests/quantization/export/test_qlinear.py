"""INT_MODEL: integer operators, the integer graph's numbers."""

import logging

import onnx
import pytest
import torch

from edgeailite.quantization.arithmetic.spec import QConfig, QuantSpec
from edgeailite.quantization.prepare.policy import Policy
from edgeailite.quantization.prepare.prepare import prepare
from edgeailite.quantization.targets.registry import get_target
from edgeailite.quantization.wrappers import QuantModule
from tests.quantization.bundle import Networks, differing, nodes_by_network
from tests.quantization.helpers import (
    OPTIMIZATIONS,
    batch,
    outputs,
    randomize_batch_norms,
    run_onnx,
    seed_everything,
    train_a_little,
    trained,
)  # fmt: skip
from tests.quantization.zoo import ZOO

FREE = {
    "power2_weight_range": False, "power2_activation_range": False, "per_channel_q": "all"
}  # fmt: skip
POOLS = {"QLinearGlobalAveragePool", "Squeeze", "Reshape"}
# The operators between the first QuantizeLinear and the last DequantizeLinear.
OPERATORS = {
    "conv1d": {"QLinearConv"},
    "conv2d": {"QLinearConv"},
    "conv3d": {"QLinearConv"},
    "linear": {"QGemm"},
    "linear_on_sequences": {"Reshape", "QGemm"},
    "residual": {"QLinearConv", "QLinearAdd", "QGemm"} | POOLS,
    "cat": {"QLinearConv", "QLinearConcat"},
    "mul": {"QLinearConv", "QLinearMul"},
    "avg_pool": {"QLinearConv", "QLinearAveragePool"},
    "max_pool": {"QLinearConv", "MaxPool"},
    "mean_of_7": {"QLinearConv", "QGemm"} | POOLS,
    "global_pool_of_49": {"QLinearConv", "QGemm"} | POOLS,
    "nearest_x2": {"QLinearConv", "Resize"},
    "zero_pad": {"QLinearConv", "Pad"},
    "shuffle_unit": {"QLinearConv", "Split", "QLinearConcat", "Transpose", "QGemm"} | POOLS,
    "slice": {"QLinearConv", "Slice"},
    "pixel_shuffle": {"QLinearConv", "DepthToSpace", "Reshape", "Transpose"},
    "two_inputs": {"QLinearConv", "QLinearAdd", "DequantizeLinear", "QuantizeLinear"},
}


def export(wrapper, inputs, path):
    file = wrapper.export(inputs, path / "model.onnx", format="INT_MODEL")
    return file, onnx.load(str(file)).graph


def make(name: str, **options: object):
    seed_everything(0)
    case = ZOO[name]
    return trained(case.make(), case.shapes, **options), batch(case.shapes, 16)


def make_all(names, **options: object) -> Networks:
    made = {name: make(name, **options) for name in names}
    return {name: (wrapper.convert(), inputs) for name, (wrapper, inputs) in made.items()}


def differences(networks, path, **options: object):
    """Values that differ, by network and optimization level, and the file's graph."""
    found = differing(networks, path, format="INT_MODEL", **options)
    return found, onnx.load(path / "networks.onnx").graph


def is_end(node, graph) -> bool:
    """Find whether a node quantizes an input or gives an output its real values."""
    inputs, results = {v.name for v in graph.input}, {v.name for v in graph.output}
    first = node.op_type == "QuantizeLinear" and node.input[0] in inputs
    return first or (node.op_type == "DequantizeLinear" and node.output[0] in results)


@pytest.mark.parametrize("group", range(2))
def test_onnx_runtime_equals_the_integer_graph(group, tmp_path):
    networks = make_all(list(OPERATORS)[group::2])
    found, graph = differences(networks, tmp_path)
    assert found == {}
    for name, nodes in nodes_by_network(networks, graph).items():
        assert {n.op_type for n in nodes if not is_end(n, graph)} <= OPERATORS[name], name


GROUPS = 6


@pytest.mark.slow
@pytest.mark.parametrize("group", range(GROUPS))
def test_every_other_net_too(group, tmp_path):
    names = [name for name in ZOO if name not in OPERATORS]
    # A trace of an open batch size takes twice the time; QDQ_MODEL is written with it for all.
    networks = make_all(names[group::GROUPS])
    found, _ = differences(networks, tmp_path, dynamic_batch=group % 3 == 0)
    # With optimizations ONNX Runtime puts a float weight between grids on one of its own.
    assert set(found) <= {("computed_weight", "on")}, found


@pytest.mark.parametrize(
    "options",
    [
        {"bitwidth_activations": 4},
        {"bitwidth_activations": 7, "bitwidth_weights": 4},
        {"per_channel_q": "all"},
        {"rounding": "half_up"},
    ],
)
def test_narrow_grids_and_other_options(options, tmp_path):
    names = ("conv2d", "residual", "shuffle_unit", "squeeze_and_excite")
    networks = make_all(names, **options)
    found, graph = differences(networks, tmp_path, dynamic_batch=False)
    assert found == {}
    if "bitwidth_activations" in options:
        types = {t.name: t.data_type for t in graph.initializer}
        for nodes in nodes_by_network(networks, graph).values():
            clips = [n for n in nodes if n.op_type == "Clip" and n.output[0] + ".min" in n.input]
            assert len(clips) > 2
            assert {types[n.input[1]] for n in clips} == {onnx.TensorProto.UINT8}


def test_free_scales_differ_on_rare_ties_at_most(tmp_path):
    names = ("conv2d", "residual", "shuffle_unit", "linear_on_sequences")
    networks = make_all(names, **FREE)
    for (name, _), count in differences(networks, tmp_path)[0].items():
        converted, inputs = networks[name]
        assert count <= 0.002 * sum(e.numel() for e in outputs(converted(*inputs))), name


def make_affine(name: str) -> QuantModule:
    seed_everything(0)
    case = ZOO[name]
    config = QConfig(QuantSpec(signed=True), QuantSpec(symmetric=False))
    model = prepare(
        randomize_batch_norms(case.make()),
        Policy(config),
        get_target("onnx_runtime"),
        batch(case.shapes, 1),
    )
    return train_a_little(QuantModule(model), case.shapes)


def test_affine_power_of_two_grids(tmp_path):
    names = ("residual", "zero_pad", "squeeze_and_excite", "cat")
    networks = {n: (make_affine(n).convert(), batch(ZOO[n].shapes, 16)) for n in names}
    assert differences(networks, tmp_path, dynamic_batch=False)[0] == {}


def test_batch_size_stays_open(tmp_path):
    wrapper, inputs = make("linear_on_sequences")
    file, _ = export(wrapper, inputs, tmp_path)
    (x,) = batch(ZOO["linear_on_sequences"].shapes, 5)
    for level in OPTIMIZATIONS:
        assert torch.equal(run_onnx(file, (x,), level)[0], wrapper.convert()(x))


def test_what_stays_between_quantize_nodes_is_said(tmp_path, caplog):
    wrapper, inputs = make("conv_transpose2d")
    with caplog.at_level(logging.WARNING):
        export(wrapper, inputs, tmp_path)
    assert "No integer operator for 4 ConvTranspose: quantize nodes stay" in caplog.text
    wrapper, inputs = make("linear", rounding="half_up")
    with caplog.at_level(logging.WARNING):
        export(wrapper, inputs, tmp_path)
    assert "2 layers have a grid that no ONNX operator computes (0...)" in caplog.text


def test_file_holds_no_float_weights(tmp_path):
    wrapper, inputs = make("residual", bitwidth_weights=4)
    _, graph = export(wrapper, inputs, tmp_path)
    tensors = {t.name: t for t in graph.initializer}
    assert all(t.data_type != onnx.TensorProto.FLOAT or not t.dims for t in tensors.values())
    for layer in ("conv1", "conv2", "conv3", "fc"):
        weight = onnx.numpy_helper.to_array(tensors[f"{layer}.weight"])
        assert weight.dtype == "int8"
        assert -8 <= weight.min() <= weight.max() <= 7
        assert tensors[f"{layer}.bias"].data_type == onnx.TensorProto.INT32
