"""What verify calls proven, and what it does not."""

from dataclasses import astuple, replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.integer.grid import Grid, IntegerOperator
from edgeailite.quantization.integer.operators import IntegerAdd, IntegerMatMul, IntegerMul
from edgeailite.quantization.verify import verify
from edgeailite.quantization.verify.proofs import POWERS_OF_TWO, SINGLE_ROUNDINGS, proof

POWER_OF_TWO, FREE = "WT8SYMP2_AT8SYMP2", "WC8_AT8"
GRID = Grid(scale=2.0**-4, zero_point=0, quant_min=-128, quant_max=127)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.norm(x + nn.functional.gelu(self.embed(x)))
        x = torch.softmax(x @ x.transpose(1, 2), -1) @ x
        return self.head(torch.cumsum(x, 1))


@pytest.fixture(scope="module")
def inputs():
    return torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def wrappers(inputs):
    return {
        preset: PTCFxModule(Network(), qconfig_type=preset, verbose=False).calibrate([inputs])
        for preset in (POWER_OF_TWO, FREE)
    }


def kinds(result):
    return {
        kind.operation: kind for kind in result.operations if not kind.by.startswith("in float")
    }


def test_each_kind_of_a_power_of_two_network_is_proven(wrappers, inputs, tmp_path):
    wrapper = wrappers[POWER_OF_TWO]
    result = verify(wrapper, [inputs], wrapper.export(inputs, tmp_path / "m.onnx"))
    found = kinds(result)
    for name, count in {"Linear": 2, "MatMul": 2, "Add": 1}.items():
        assert astuple(found[name]) == (name, count, True, POWERS_OF_TWO)
    assert found["Softmax"].by == found["Normalization"].by == SINGLE_ROUNDINGS
    assert found["function"].by == "all inputs tried in ONNX Runtime"
    (in_float,) = [kind for kind in result.operations if kind.by.startswith("in float")]
    assert astuple(in_float) == ("cumsum", 1, False, "in float: no integer form is known for it")
    assert "  2 Linear: proven: powers of two" in str(result)


def test_free_scales_are_compared_not_proven(wrappers, inputs, tmp_path):
    wrapper = wrappers[FREE]
    result = verify(wrapper, [inputs], wrapper.export(inputs, tmp_path / "m.onnx"))
    found = kinds(result)
    for name in ("Linear", "MatMul", "Add"):
        assert not found[name].proven
        assert found[name].by == f"compared on {result.num_values} output values"
    assert found["function"].proven


def test_a_table_in_the_file_is_compared_with_the_models(wrappers, inputs, tmp_path):
    wrapper = wrappers[POWER_OF_TWO]
    path = wrapper.export(inputs, tmp_path / "m.onnx", format="INT_MODEL")
    assert kinds(verify(wrapper, [inputs], path))["function"].by == "its table is in the file"
    proto = onnx.load(path)
    (table,) = [t for t in proto.graph.initializer if t.name.endswith(".table")]
    values = onnx.numpy_helper.to_array(table).copy()
    values[-1] ^= 1
    table.CopyFrom(onnx.numpy_helper.from_array(values, table.name))
    onnx.save(proto, path)
    assert not kinds(verify(wrapper, [inputs], path))["function"].proven


def test_a_function_that_the_file_computes_otherwise_is_not_proven(wrappers, inputs, tmp_path):
    wrapper = wrappers[POWER_OF_TWO]
    path = wrapper.export(inputs, tmp_path / "m.onnx")
    proto = onnx.load(path)
    (name,) = [m.quantizer_path for m in wrapper.convert().modules() if hasattr(m, "function")]
    (last,) = [node for node in proto.graph.node if name in node.output]
    (scale,) = [t for t in proto.graph.initializer if t.name == last.input[1]]
    halved = onnx.numpy_helper.from_array(np.float32(onnx.numpy_helper.to_array(scale) / 2), "half")
    proto.graph.initializer.append(halved)
    last.input[1] = "half"
    onnx.save(proto, path)
    assert not kinds(verify(wrapper, [inputs], path))["function"].proven


@pytest.mark.parametrize("opset", [18, 21, 23])
def test_functions_are_proven_with_signed_and_with_unsigned_integers(
    wrappers, inputs, opset, tmp_path
):
    wrapper = wrappers[POWER_OF_TWO]
    path = wrapper.export(inputs, tmp_path / "m.onnx", opset_version=opset)
    assert kinds(verify(wrapper, [inputs], path))["function"].proven


def test_a_function_whose_zero_point_is_no_constant_is_not_proven(wrappers, inputs, tmp_path):
    wrapper = wrappers[POWER_OF_TWO]
    path = wrapper.export(inputs, tmp_path / "m.onnx")
    proto = onnx.load(path)
    (name,) = [m.quantizer_path for m in wrapper.convert().modules() if hasattr(m, "function")]
    (last,) = [node for node in proto.graph.node if name in node.output]
    zero_point = onnx.helper.make_node("Identity", [last.input[2]], ["computed"])
    last.input[2] = "computed"
    proto.graph.node.insert(0, zero_point)
    onnx.save(proto, path)
    assert not kinds(verify(wrapper, [inputs], path))["function"].proven


@pytest.mark.parametrize(
    ("operator", "length", "proven"),
    [
        (IntegerMatMul(GRID, GRID, GRID), 1023, True),
        (IntegerMatMul(GRID, GRID, GRID), 1024, False),  # 1024 * 128 * 128 = 2^24
        (IntegerMatMul(GRID, GRID, GRID), None, False),
        (IntegerMatMul(GRID, replace(GRID, scale=0.1), GRID), 8, False),
        (IntegerAdd(GRID, GRID, GRID), None, True),
        (IntegerAdd(GRID, replace(GRID, scale=2.0**-24), GRID), None, False),
        (IntegerAdd(GRID, GRID, replace(GRID, zero_point=1)), None, False),
        (IntegerMul(GRID, GRID, GRID), None, True),
        (IntegerMul(GRID, GRID, replace(GRID, scale=0.3)), None, False),
        (IntegerOperator(), None, False),
    ],
)
def test_proof_of_sums_and_products_ends_at_24_bits_and_with_free_scales(operator, length, proven):
    assert bool(proof(operator, length)) == proven
