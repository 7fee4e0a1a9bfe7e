import copy

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.graph.capture import capture
from edgeailite.quantization.graph.export_forms import ExportForms
from tests.quantization.helpers import quiet_onnx_export, run_onnx

IMAGES = torch.randn(2, 3, 7, 8)
POOLS = [
    nn.AvgPool2d(2, divisor_override=3),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    nn.AvgPool2d((3, 2), (2, 1), (1, 0), True, False, 5),
    nn.AvgPool2d(2),
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_an_average_is_that_of_torch(pool):
    with ExportForms():
        found = pool(IMAGES), pool(IMAGES[0])
    torch.testing.assert_close(found[0], pool(IMAGES))
    torch.testing.assert_close(found[1], pool(IMAGES[0]))


@pytest.mark.parametrize(
    ("compute", "shape"),
    [
        (lambda x: F.avg_pool1d(x, 3, 2, 1, True, False), (2, 3, 8)),
        (lambda x: F.avg_pool3d(x, 2, 2, 1, True, False, 3), (2, 3, 4, 5, 4)),
        (lambda x: F.adaptive_avg_pool3d(x, (1, None, 2)), (2, 3, 4, 5, 4)),
        (lambda x: F.adaptive_avg_pool3d(x, 3), (2, 3, 4, 5, 4)),
        (lambda x: F.interpolate(x, scale_factor=1.2), (2, 3, 28, 20)),
        (lambda x: F.interpolate(x, (82, 9, 5), mode="nearest-exact"), (2, 3, 2, 5, 9)),
        (lambda x: F.adaptive_max_pool1d(x, 3), (2, 3, 8)),
        (lambda x: F.adaptive_max_pool2d(x, (None, 4)), (2, 3, 5, 7)),
        (lambda x: F.adaptive_max_pool3d(x, (3, 1, 2)), (3, 4, 5, 4)),
        (lambda x: F.adaptive_max_pool2d(x, 3, return_indices=True), (2, 3, 5, 7)),
        (lambda x: F.max_pool1d(x, 2, 3, 1, ceil_mode=True), (2, 3, 8)),
        (lambda x: torch.max_pool2d(x, 3, 2, (0, 1), 1, True), (2, 3, 7, 10)),
        (lambda x: F.max_pool3d(x, 2, 2, (1, 0, 1), 1, True), (2, 3, 4, 5, 3)),
        (lambda x: F.max_pool2d(x, 2, 2, 1, 1, True, return_indices=True), (2, 3, 7, 7)),
        (lambda x: x[:, [0, -1, 0], 1:], (2, 3, 4)),
        (lambda x: x[..., [1, -3]], (2, 3, 4)),
        (lambda x: x[[1, 0]], (2, 3, 4)),
        (lambda x: x[:, [True, False, True]], (2, 3, 4)),
        (lambda x: x[:, [0, 1], [1, 2]], (2, 3, 4)),
        (lambda x: x.roll(1, 1), (2, 3, 4)),
        (lambda x: torch.roll(x, shifts=(1, -2), dims=(1, -1)), (2, 3, 4)),
        (lambda x: x.roll(5), (2, 3, 4)),
        (lambda x: x.squeeze(-1), (2, 1, 3)),
        (lambda x: torch.squeeze(x, (1, 2)), (2, 1, 3)),
        (lambda x: x.squeeze(), (2, 1, 3)),
        (lambda x: x.amax(), (2, 3)),
        (lambda x: torch.amin(x, keepdim=True), (2, 3)),
        (lambda x: x.amax(1), (2, 3)),
    ],
)
def test_a_form_has_the_values_of_its_function(compute, shape):
    x = torch.randn(shape)
    with ExportForms():
        found = compute(x)
    torch.testing.assert_close(found, compute(x))


@pytest.mark.slow
def test_a_file_takes_the_neighbours_that_torch_takes(tmp_path):
    given = [{"scale_factor": f} for f in (1.2, (0.6, 2.0), 2.0)]
    given += [{"size": s} for s in ((82, 94), (56, 40))]
    given += [g | {"mode": "nearest-exact"} for g in (given[0], given[3], {"scale_factor": 0.3})]

    class Neighbours(nn.Module):
        def forward(self, x):
            return [F.interpolate(x, **g) for g in given] + [F.interpolate(x, 41)]

    x = torch.randn(2, 3, 28, 20)
    path = tmp_path / "model.onnx"
    quiet_onnx_export(capture(Neighbours()), (x,), path)
    for found, expected in zip(run_onnx(path, (x,)), Neighbours()(x), strict=True):
        assert torch.equal(found, expected)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("Resize") == 4  # where both take the same
    assert kinds.count("Gather") == 10


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 3])
def test_max_pools_have_torchs_windows_whatever_the_size(kernel, stride, padding, dilation):
    for size in range(6, 12):
        x, options = torch.randn(1, 1, size, 9), (kernel, stride, (padding, 0), dilation, True)
        with ExportForms():
            found = F.max_pool2d(x, *options)
        assert torch.equal(found, F.max_pool2d(x, *options))


class Leaf(nn.Module):
    """Not looked into by capturing."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AvgPool2d(2, divisor_override=3)

    def forward(self, x):
        return self.pool(x)


def test_modules_that_stay_whole_are_written_in_forms_too(tmp_path):
    model = nn.Sequential(Leaf(), nn.Conv2d(3, 2, 1)).eval()
    expected = model(IMAGES)
    path = tmp_path / "model.onnx"
    quiet_onnx_export(capture(model, leaf_modules=[Leaf]), (IMAGES,), path)
    torch.testing.assert_close(run_onnx(path, (IMAGES,))[0], expected, rtol=1e-4, atol=1e-5)


def test_volumes_without_bias_are_written_with_the_shape_that_the_runtime_wants(tmp_path):
    model, x = nn.Sequential(nn.Conv3d(3, 4, 2, bias=False)).eval(), torch.randn(2, 3, 4, 4, 4)
    expected = copy.deepcopy(model)(x)
    wrapper = PTCFxModule(model, qconfig_type="WC8SYMP2_AT8SYMP2").calibrate([x])
    path = wrapper.export(x, tmp_path / "model.onnx", format="FLOAT_MODEL")
    torch.testing.assert_close(run_onnx(path, (x,))[0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pool", POOLS[:2], ids=str)
def test_a_file_that_the_user_exports_has_the_divisor(pool, tmp_path):
    wrapper = PTCFxModule(nn.Sequential(nn.Conv2d(3, 4, 1), pool), qconfig_type="WC8SYMP2_AT8SYMP2")
    wrapper.calibrate([IMAGES])
    path = tmp_path / "model.onnx"
    quiet_onnx_export(wrapper.eval(), (IMAGES,), path)
    with torch.no_grad():
        expected = wrapper(IMAGES)
    # CLIP_MODEL has no grids: the values are within the step of two quantizers.
    torch.testing.assert_close(run_onnx(path, (IMAGES,))[0], expected, rtol=0, atol=0.1)
