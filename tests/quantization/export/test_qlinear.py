"""INT_MODEL: integer operators, the integer graph's numbers."""

import logging

import onnx
import pytest

from edgeailite.quantization.arithmetic.spec import QConfig, QuantSpec
from edgeailite.quantization.prepare.policy import Policy
from edgeailite.quantization.prepare.prepare import prepare
from edgeailite.quantization.targets.registry import get_target
from edgeailite.quantization.wrappers import QuantModule
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


def differing(file, inputs, expected) -> list[int]:
    """Values that differ, for each optimization level."""
    return [
        sum(
            int((a != e).sum())
            for a, e in zip(run_onnx(file, inputs, level), expected, strict=True)
        )
        for level in OPTIMIZATIONS
    ]


def make(name: str, **options: object):
    seed_everything(0)
    case = ZOO[name]
    wrapper, inputs = trained(case.make(), case.shapes, **options), batch(case.shapes, 16)
    return wrapper, inputs, outputs(wrapper.convert()(*inputs))


@pytest.mark.parametrize("name", list(OPERATORS))
def test_onnx_runtime_equals_the_integer_graph(name, tmp_path):
    wrapper, inputs, expected = make(name)
    file, graph = export(wrapper, inputs, tmp_path)
    assert {n.op_type for n in graph.node[len(inputs) : -len(expected)]} <= OPERATORS[name]
    assert differing(file, inputs, expected) == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ZOO if n not in OPERATORS])
def test_every_other_net_too(name, tmp_path):
    wrapper, inputs, expected = make(name)
    file, _ = export(wrapper, inputs, tmp_path)
    off, on = differing(file, inputs, expected)
    assert off == 0
    # With optimizations ONNX Runtime puts a float weight between grids on one of its own.
    assert on == 0 or name == "computed_weight"


@pytest.mark.parametrize("name", ["conv2d", "residual", "shuffle_unit", "squeeze_and_excite"])
@pytest.mark.parametrize(
    "options",
    [
        {"bitwidth_activations": 4},
        {"bitwidth_activations": 7, "bitwidth_weights": 4},
        {"per_channel_q": "all"},
        {"rounding": "half_up"},
    ],
)
def test_narrow_grids_and_other_options(name, options, tmp_path):
    wrapper, inputs, expected = make(name, **options)
    file, graph = export(wrapper, inputs, tmp_path)
    assert differing(file, inputs, expected) == [0, 0]
    if "bitwidth_activations" in options:
        clips = [n for n in graph.node if n.op_type == "Clip" and n.output[0] + ".min" in n.input]
        assert len(clips) > 2
        types = {t.name: t.data_type for t in graph.initializer}
        assert {types[n.input[1]] for n in clips} == {onnx.TensorProto.UINT8}


@pytest.mark.parametrize("name", ["conv2d", "residual", "shuffle_unit", "linear_on_sequences"])
def test_free_scales_differ_on_rare_ties_at_most(name, tmp_path):
    wrapper, inputs, expected = make(name, **FREE)
    file, _ = export(wrapper, inputs, tmp_path)
    values = sum(e.numel() for e in expected)
    assert max(differing(file, inputs, expected)) <= 0.002 * values


@pytest.mark.parametrize("name", ["residual", "zero_pad", "squeeze_and_excite", "cat"])
def test_affine_power_of_two_grids(name, tmp_path):
    seed_everything(0)
    case = ZOO[name]
    config = QConfig(QuantSpec(signed=True), QuantSpec(symmetric=False))
    model = prepare(
        randomize_batch_norms(case.make()),
        Policy(config),
        get_target("onnx_runtime"),
        batch(case.shapes, 1),
    )
    wrapper, inputs = train_a_little(QuantModule(model), case.shapes), batch(case.shapes, 16)
    file, _ = export(wrapper, inputs, tmp_path)
    assert differing(file, inputs, outputs(wrapper.convert()(*inputs))) == [0, 0]


def test_batch_size_stays_open(tmp_path):
    wrapper, inputs, _ = make("linear_on_sequences")
    file, _ = export(wrapper, inputs, tmp_path)
    (x,) = batch(ZOO["linear_on_sequences"].shapes, 5)
    assert differing(file, (x,), (wrapper.convert()(x),)) == [0, 0]


def test_what_stays_between_quantize_nodes_is_said(tmp_path, caplog):
    wrapper, inputs, _ = make("conv_transpose2d")
    with caplog.at_level(logging.WARNING):
        export(wrapper, inputs, tmp_path)
    assert "No integer operator for 4 ConvTranspose: quantize nodes stay" in caplog.text
    wrapper, inputs, _ = make("linear", rounding="half_up")
    with caplog.at_level(logging.WARNING):
        export(wrapper, inputs, tmp_path)
    assert "2 layers have a grid that no ONNX operator computes (0...)" in caplog.text


def test_file_holds_no_float_weights(tmp_path):
    wrapper, inputs, _ = make("residual", bitwidth_weights=4)
    _, graph = export(wrapper, inputs, tmp_path)
    tensors = {t.name: t for t in graph.initializer}
    assert all(t.data_type != onnx.TensorProto.FLOAT or not t.dims for t in tensors.values())
    for layer in ("conv1", "conv2", "conv3", "fc"):
        weight = onnx.numpy_helper.to_array(tensors[f"{layer}.weight"])
        assert weight.dtype == "int8"
        assert -8 <= weight.min() <= weight.max() <= 7
        assert tensors[f"{layer}.bias"].data_type == onnx.TensorProto.INT32
