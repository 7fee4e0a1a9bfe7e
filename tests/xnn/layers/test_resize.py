import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import fx

from edgeailite.xnn.layers.resize import ResizeWith, resize_with

TARGETS = [
    {"scale_factor": 2},
    {"scale_factor": 2, "mode": "bilinear"},
    {"scale_factor": (2, 0.5), "mode": "bilinear"},
    {"size": (16, 24)},
    {"size": [5, 7], "mode": "bilinear"},
    {"size": 9},
]


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_module_and_function_equal_torch(target):
    x = torch.randn(2, 3, 8, 12)
    target_of_torch = {k: tuple(v) if isinstance(v, list) else v for k, v in target.items()}
    expected = F.interpolate(x, **target_of_torch)
    assert torch.equal(resize_with(x, **target), expected)
    assert torch.equal(ResizeWith(**target)(x), expected)
    assert torch.equal(fx.symbolic_trace(ResizeWith(**target))(x), expected)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_export_is_one_resize_with_the_same_output(target):
    x = torch.randn(2, 3, 8, 12)
    model = ResizeWith(**target).eval()
    proto = torch.onnx.export(model, (x,), dynamo=True, opset_version=18, verbose=False).model_proto
    assert [node.op_type for node in proto.graph.node] == ["Resize"]
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), model(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_export_by_scale_is_one_resize_with_a_symbolic_batch_axis(mode):
    model = ResizeWith(scale_factor=2, mode=mode).eval()
    program = torch.onnx.export(
        model,
        (torch.randn(2, 3, 8, 12),),
        dynamo=True,
        opset_version=18,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
    )
    assert [node.op_type for node in program.model_proto.graph.node] == ["Resize"]


@pytest.mark.parametrize("arguments", [{}, {"size": 4, "scale_factor": 2}], ids=str)
@pytest.mark.parametrize(
    "make", [ResizeWith, lambda **kw: resize_with(torch.ones(1, 1, 2, 2), **kw)]
)
def test_not_exactly_one_target_raises(make, arguments):
    with pytest.raises(ValueError, match="exactly one of size and scale_factor"):
        make(**arguments)


def test_unknown_mode_raises():
    with pytest.raises(
        ValueError, match="mode is 'cubic'; it must be one of 'nearest', 'bilinear'"
    ):
        ResizeWith(scale_factor=2, mode="cubic")


def test_repr_shows_the_target():
    assert repr(ResizeWith(scale_factor=2)) == "ResizeWith(scale_factor=2, mode='nearest')"
    assert (
        repr(ResizeWith(size=(4, 6), mode="bilinear")) == "ResizeWith(size=(4, 6), mode='bilinear')"
    )
