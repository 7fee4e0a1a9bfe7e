"""Free scales: the integer graph is ONNX Runtime's integer kernels, in every value."""

from collections import Counter

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization.wrappers import PTCFxModule
from tests.quantization.helpers import run_onnx

BODIES = {
    "add": lambda a, b: a + b,
    "add_relu": lambda a, b: F.relu(a + b),
    "add_twice": lambda a, b: a + a,
    "mul": lambda a, b: a * b,
    "mul_gate": lambda a, b: a * b.mean((2, 3), keepdim=True),
    "cat": lambda a, b: torch.cat([a, b], 1),
    "global_average": lambda a, b: F.adaptive_avg_pool2d(a + b, 1),
    "mean": lambda a, b: (a + b).mean([-2, -1]),
    "pool_3": lambda a, b: F.avg_pool2d(a, 3, stride=1, padding=1),
    "pool_2": lambda a, b: F.avg_pool2d(F.relu(a), kernel_size=2),
    "pool_without_pad": lambda a, b: F.avg_pool2d(a, 3, 2, 1, False, False),
}


class Branches(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.a, self.b, self.body = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 16, 3), body

    def forward(self, x):
        return self.body(self.a(x), torch.sigmoid(self.b(x)) * 3 - 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("preset", ["WC8_AT8", "WC8P2_AT8P2"])
@pytest.mark.parametrize("name", list(BODIES))
def test_integer_graph_is_the_integer_kernels(name, preset, seed, tmp_path):
    torch.manual_seed(seed)
    wrapper = PTCFxModule(Branches(BODIES[name]), qconfig_type=preset)
    wrapper.calibrate(torch.randn(2, 8, 3, 15, 15))
    x = torch.randn(8, 3, 15, 15)
    path = wrapper.export(x, tmp_path / "model.onnx", dynamic_batch=False)
    found, expected = run_onnx(path, (x,))[0], wrapper.convert()(x)
    assert expected.unique().numel() > 20
    assert int((found != expected).sum()) == 0


@pytest.mark.parametrize("form", ["QDQ_MODEL", "INT_MODEL"])
def test_linear_layers_of_tokens_add_their_bias_as_an_integer(form, tmp_path):
    """A product and a sum in float would round apart about once in two million values."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 8))
    x = torch.randn(6, 7, 24)
    wrapper = PTCFxModule(model, qconfig_type="WC8_AT8", verbose=False).calibrate([x])
    path = wrapper.export(x, tmp_path / "model.onnx", format=form)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    kinds = Counter(n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node)
    assert kinds["QGemm"] == 2
    assert not {"Add", "MatMulIntegerToFloat", "MatMul"} & kinds.keys()
    assert torch.equal(run_onnx(path, (x,))[0], wrapper.convert()(x))
    pairs = torch.cat([x, x])
    assert torch.equal(run_onnx(path, (pairs,))[0], wrapper.convert()(pairs))
