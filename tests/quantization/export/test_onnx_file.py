"""Files that wrappers write: what is in them, names, opset, and whole or not there."""

import onnx
import pytest
import torch
from torch import nn

from edgeailite.quantization.export.clip import clip_model
from edgeailite.quantization.wrappers import QuantCalibrateModule
from tests.quantization.helpers import quiet_onnx_export, run_onnx

SHAPE = (4, 3, 8, 8)


@pytest.fixture
def wrapper():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
        nn.Flatten(),
        nn.Linear(144, 5),
    )
    calibrate = QuantCalibrateModule(model, torch.rand(SHAPE)).train()
    calibrate(torch.randn(SHAPE))
    return calibrate.eval()


def operators(path) -> set[str]:
    return {n.op_type for n in onnx.load(str(path)).graph.node}


def test_clip_file_is_plain_and_equals_the_clip_model(wrapper, tmp_path):
    path = wrapper.export(torch.rand(SHAPE), tmp_path / "m.onnx", format="clip")
    assert operators(path) <= {"Conv", "Clip", "Gemm", "Reshape", "Flatten"}
    x = torch.randn(SHAPE)
    torch.testing.assert_close(run_onnx(path, (x,))[0], clip_model(wrapper.module)(x))


def test_torch_onnx_export_works_twice_without_weight_arithmetic(wrapper, tmp_path):
    for name in ("a.onnx", "b.onnx"):
        quiet_onnx_export(wrapper.module, (torch.rand(SHAPE),), tmp_path / name)
        assert operators(tmp_path / name) <= {"Conv", "Clip", "Gemm", "Reshape", "Flatten"}


def test_qdq_file_holds_integers_and_equals_the_wrapper_at_any_batch_size(wrapper, tmp_path):
    path = wrapper.export(
        torch.rand(SHAPE), tmp_path / "m.onnx", input_names=["image"], output_names=["logits"]
    )
    graph = onnx.load(str(path)).graph
    assert ([i.name for i in graph.input], [o.name for o in graph.output]) == (
        ["image"],
        ["logits"],
    )
    types = {t.data_type for t in graph.initializer}
    assert {onnx.TensorProto.INT8, onnx.TensorProto.INT32} <= types
    for size in (1, 7):
        x = torch.randn(size, *SHAPE[1:])
        for optimization in ("off", "on"):
            assert torch.equal(run_onnx(path, (x,), optimization)[0], wrapper(x).detach())


def test_file_has_metadata_and_no_traces_of_the_machine(wrapper, tmp_path):
    proto = onnx.load(str(wrapper.export(torch.rand(SHAPE), tmp_path / "m.onnx", opset_version=20)))
    assert {p.key: p.value for p in proto.metadata_props}["model_source"] == "edgeailite"
    assert not any(n.metadata_props for n in proto.graph.node)
    assert next(o.version for o in proto.opset_import if o.domain == "") == 20


def test_unknown_format_and_opset_leave_no_file(wrapper, tmp_path):
    with pytest.raises(ValueError, match="allowed: 'qdq', 'clip'"):
        wrapper.export(torch.rand(SHAPE), tmp_path / "m.onnx", format="tflite")
    with pytest.raises(ValueError, match="opset_version is 9"):
        wrapper.export(torch.rand(SHAPE), tmp_path / "m.onnx", opset_version=9)
    assert not list(tmp_path.iterdir())
