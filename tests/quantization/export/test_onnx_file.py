"""Files that wrappers write: what is in them, names, opset, and whole or not there."""

import onnx
import pytest
import torch
from torch import nn

from edgeailite.quantization.export import onnx_file
from edgeailite.quantization.export.formats import writers
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


def test_file_has_the_opset_and_no_traces_of_the_machine(wrapper, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.fx.config.do_not_emit_stack_traces", False)
    proto = onnx.load(str(wrapper.export(torch.rand(SHAPE), tmp_path / "m.onnx", opset_version=20)))
    assert not any(n.metadata_props for n in proto.graph.node)
    assert next(o.version for o in proto.opset_import if o.domain == "") == 20


def test_unknown_format_and_opset_leave_no_file(wrapper, tmp_path):
    with pytest.raises(ValueError, match="format is 'tflite'; allowed: 'FLOAT_MODEL'"):
        wrapper.export(torch.rand(SHAPE), tmp_path / "m.onnx", format="tflite")
    with pytest.raises(ValueError, match="opset_version is 9; this installation writes 13 to"):
        wrapper.export(torch.rand(SHAPE), tmp_path / "m.onnx", opset_version=9)
    assert not list(tmp_path.iterdir())


def test_a_converted_model_writes_integer_formats_only(wrapper, tmp_path):
    converted = wrapper.convert()
    with pytest.raises(ValueError, match="'FLOAT_MODEL', which needs the wrapper"):
        converted.export(torch.rand(SHAPE), tmp_path / "m.onnx", format="FLOAT_MODEL")
    path = converted.export(torch.rand(SHAPE), tmp_path / "m.onnx", format="INT_MODEL")
    assert "QLinearConv" in operators(path)


@pytest.mark.parametrize("form", [w.format for w in writers("scale")])
def test_file_says_what_it_is(wrapper, form, tmp_path):
    path = wrapper.export(torch.rand(SHAPE), tmp_path / "m.onnx", format=form)
    properties = {p.key: p.value for p in onnx.load(str(path)).metadata_props}
    assert properties == {"model_source": "edgeailite", "model_format": form}


def test_an_opset_that_torch_does_not_write_is_an_error(wrapper, tmp_path, monkeypatch):
    trace = onnx_file._trace
    monkeypatch.setattr(onnx_file, "_trace", lambda *a: trace(*a[:2], 18, *a[3:]))
    with pytest.raises(ValueError, match=r"opset_version is 20, but torch\.onnx wrote 18"):
        wrapper.export(torch.rand(SHAPE), tmp_path / "m.onnx", opset_version=20)
    assert not list(tmp_path.iterdir())
