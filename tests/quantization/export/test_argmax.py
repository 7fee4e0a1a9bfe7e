import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeailite.quantization import QuantCalibrateModule
from edgeailite.quantization.export.argmax import append_argmax

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def wrapper():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 1))
    wrapper = QuantCalibrateModule(model, dummy_input=torch.zeros(1, 3, 8, 8))
    with torch.no_grad():
        wrapper.train()(torch.randn(4, 3, 8, 8))
    return wrapper.eval()


def _run(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (output,) = session.get_outputs()
    return output, session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


@pytest.mark.parametrize("model_format", ["QDQ_MODEL", "INT_MODEL", "FLOAT_MODEL"])
def test_classes_are_those_of_the_simulation(wrapper, tmp_path, model_format):
    path = tmp_path / "logits.onnx"
    wrapper.export(torch.zeros(1, 3, 8, 8), path, format=model_format, dynamic_batch=True)
    append_argmax(path, tmp_path / "classes.onnx")
    x = torch.randn(3, 3, 8, 8)
    output, classes = _run(tmp_path / "classes.onnx", x)
    assert (output.name, classes.dtype, classes.shape) == ("classes", np.int64, (3, 8, 8))
    _, logits = _run(path, x)
    assert np.array_equal(classes, logits.argmax(1))
    if model_format != "FLOAT_MODEL":
        with torch.no_grad():
            assert np.array_equal(classes, wrapper(x).argmax(1).numpy())


def test_integers_are_compared_without_dequantizing(wrapper, tmp_path):
    path = tmp_path / "logits.onnx"
    wrapper.export(torch.zeros(1, 3, 8, 8), path)
    append_argmax(path, path)
    graph = onnx.load(path).graph
    maker = {output: node for node in graph.node for output in node.output}
    assert graph.node[-1].op_type == "ArgMax"
    assert maker[graph.node[-1].input[0]].op_type == "QuantizeLinear"


def test_output_without_channels(tmp_path):
    with torch.no_grad():
        torch.onnx.export(
            nn.Flatten(0).eval(), (torch.zeros(2, 3),), tmp_path / "x.onnx", verbose=False
        )
    with pytest.raises(ValueError, match=r"one output of shape \(N, C"):
        append_argmax(tmp_path / "x.onnx", tmp_path / "y.onnx")
    assert not (tmp_path / "y.onnx").exists()
