"""QDQ_MODEL: what is stored, and that it is the integer graph."""

import onnx
import pytest

from tests.quantization.helpers import OPTIMIZATIONS, batch, outputs, run_onnx, trained
from tests.quantization.zoo import ZOO

T = onnx.TensorProto


@pytest.mark.parametrize("bits", [2, 4, 7, 8])
@pytest.mark.parametrize("per_channel", [False, "all"])
def test_weights_are_int8_in_range_and_biases_int32(bits, per_channel, tmp_path):
    case = ZOO["residual"]
    wrapper = trained(case.make(), case.shapes, bitwidth_weights=bits, per_channel_q=per_channel)
    path = wrapper.export(batch(case.shapes, 2), tmp_path / "m.onnx", dynamic_batch=False)
    graph = onnx.load(str(path)).graph
    tensors = {t.name: t for t in graph.initializer}
    readers = {name: node for node in graph.node for name in node.input}
    for layer in ("conv1", "conv2", "conv3", "fc"):
        weight = onnx.numpy_helper.to_array(tensors[f"{layer}.weight"])
        assert weight.dtype == "int8"
        assert -(1 << bits - 1) <= weight.min() <= weight.max() < 1 << bits - 1
        assert len(set(weight.ravel().tolist())) > bits
        assert tensors[f"{layer}.bias"].data_type == T.INT32
        assert readers[f"{layer}.weight"].op_type == "DequantizeLinear"
    # What is left in float: steps and bounds.
    largest = max(d for t in tensors.values() if t.data_type == T.FLOAT for d in (*t.dims, 1))
    assert largest <= (8 if per_channel else 1)


@pytest.mark.parametrize("bits", [4, 7])
def test_narrow_activations_are_clipped_before_they_are_stored(bits, tmp_path):
    case = ZOO["residual"]
    wrapper = trained(case.make(), case.shapes, bitwidth_activations=bits)
    inputs = batch(case.shapes, 8)
    path = wrapper.export(inputs, tmp_path / "m.onnx", dynamic_batch=False)
    expected = outputs(wrapper.convert()(*inputs))
    for level in OPTIMIZATIONS:
        assert run_onnx(path, inputs, level)[0].equal(expected[0])
    proto = onnx.load(str(path))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("relu_2", T.UINT8, None))
    onnx.save(proto, str(path))
    integers = run_onnx(path, inputs, "off")[1]
    assert 0 <= int(integers.min()) < int(integers.max()) < 1 << bits
