"""FLOAT_MODEL: the float model, as if it had never been wrapped."""

import copy

import onnx
import pytest
import torch

from edgeailite.quantization.wrappers import QuantTestModule
from tests.quantization.helpers import batch, outputs, randomize_batch_norms, run_onnx
from tests.quantization.zoo import ZOO


@pytest.mark.parametrize("name", ["residual", "conv2d", "functional_layers"])
def test_file_computes_the_float_model(name, tmp_path):
    case = ZOO[name]
    model = randomize_batch_norms(case.make()).eval()
    reference, inputs = copy.deepcopy(model), batch(case.shapes, 4)
    wrapper = QuantTestModule(model, inputs)
    path = wrapper.export(inputs, tmp_path / "m.onnx", format="FLOAT_MODEL")
    with torch.no_grad():
        expected = outputs(reference(*inputs))
    for actual, value in zip(run_onnx(path, inputs), expected, strict=True):
        torch.testing.assert_close(actual, value, rtol=1e-4, atol=1e-5)
    operators = [n.op_type for n in onnx.load(str(path)).graph.node]
    norms = sum(isinstance(m, torch.nn.BatchNorm2d) for m in reference.modules())
    assert operators.count("BatchNormalization") == norms
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(operators)
    assert all(q.fake_quant_enabled for q in wrapper.module.modules() if hasattr(q, "clips_act"))
