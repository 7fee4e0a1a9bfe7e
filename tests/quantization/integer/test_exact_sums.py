"""Averages and resizing by exact sums: near the exact value, equal everywhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.graph.window_sums import Mean
from edgeailite.quantization.integer.exact_sums import (
    IntegerAverage,
    IntegerResize,
    always_has_dyadic_weights,
)
from edgeailite.quantization.integer.grid import Grid
from edgeailite.quantization.report import build_report
from edgeailite.quantization.verify import verify

SIGNED, UNSIGNED = Grid(0.5, 3, -128, 127), Grid(2.0**-4, 0, 0, 255, signed=False)
WIDE = Grid(2.0**-8, 0, -(2**15), 2**15 - 1, 16)
# Holds sixteenths of a step of the others, and the overshoot of cubic functions.
PARTS_OF_A_STEP = 16
NAMES = {
    "linear": ("linear", "bilinear", "trilinear"),
    "cubic": (None, "bicubic", None),
    "area": ("area", "area", "area"),
}


def options(**given):
    return {
        "mode": "bilinear",
        "align_corners": None,
        "recompute_scale_factor": None,
        "antialias": False,
    } | given


def fine(grid):
    return Grid(grid.scale / PARTS_OF_A_STEP, 0, -(2**23), 2**23, 25)


@st.composite
def resizings(draw):
    dimensions = draw(st.integers(1, 3))
    modes = [m for m, names in NAMES.items() if names[dimensions - 1]]
    mode = draw(st.sampled_from(modes))
    shape = draw(st.lists(st.integers(1, 9), min_size=dimensions, max_size=dimensions))
    size, factor = None, None
    if draw(st.booleans()):
        size = draw(st.lists(st.integers(1, 14), min_size=dimensions, max_size=dimensions))
    else:
        factor = draw(st.floats(1.0, 3.0))
    given = options(mode=NAMES[mode][dimensions - 1])
    if mode != "area":
        given["align_corners"] = draw(st.booleans())
    given["antialias"] = dimensions == 2 and mode != "area" and draw(st.booleans())
    if given["antialias"]:  # torch's own is wrong for images of one column
        shape = [max(length, 2) for length in shape]
    if size is None:
        given["recompute_scale_factor"] = draw(st.booleans())
    return given, shape, size, factor, draw(st.sampled_from((SIGNED, UNSIGNED, WIDE)))


@given(resizings(), st.integers(0, 2**16))
def test_a_resize_is_within_half_a_step_of_torchs_before_it_is_rounded(case, seed):
    given, shape, size, factor, grid = case
    generator = torch.Generator().manual_seed(seed)
    ends = torch.tensor([grid.quant_min, grid.quant_max])  # the hardest case: black and white
    q = ends[torch.randint(2, (1, 3, *shape), generator=generator)].float()
    found = IntegerResize(grid, fine(grid), given)(q, size, factor)
    exact = F.interpolate((q - grid.zero_point).double(), size, factor, **given)
    assert found.shape == exact.shape
    assert float((found / PARTS_OF_A_STEP - exact).abs().max()) < 0.5
    same = IntegerResize(grid, grid, given)(q, size, factor)
    rounded = (torch.round(exact) + grid.zero_point).clamp(grid.quant_min, grid.quant_max)
    assert float((same - rounded).abs().max()) <= 1


@given(resizings(), st.integers(0, 2**16))
def test_the_order_of_the_sums_does_not_matter(case, seed):
    given, shape, size, factor, grid = case
    module = IntegerResize(grid, grid, given)
    q = torch.randint(grid.quant_min, grid.quant_max + 1, (1, 2, *shape)).float()
    module(q, size, factor)
    for steps, _ in module._tables.values():
        bound = float(grid.max_magnitude)
        for step in steps:
            assert torch.equal(step.matrix, step.matrix.round())
            limit = 2.0**24 if step.matrix.dtype == torch.float32 else 2.0**53
            sums = bound * float(step.matrix.double().abs().sum(1).max())
            assert sums <= limit
            assert len(set(step.matrix.double().sum(1).tolist())) == 1
            bound = sums / 2.0**step.shift + 0.5


def test_constants_stay_what_they_are():
    q = torch.full((1, 1, 7, 5), 77.0)
    for mode in ("bilinear", "bicubic", "area"):
        corners = None if mode == "area" else True
        module = IntegerResize(SIGNED, SIGNED, options(mode=mode, align_corners=corners))
        assert bool((module(q, (12, 11)) == 77).all())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"scale_factor": 2}, True),
        ({"scale_factor": (4.0, 0.5)}, True),
        ({"scale_factor": 2, "recompute_scale_factor": True}, True),
        ({"scale_factor": 0.5, "recompute_scale_factor": True}, False),
        ({"scale_factor": 3.0}, False),
        ({"scale_factor": 128}, True),
        ({"scale_factor": 256}, False),  # 8 bits and twice 9 for the weights
        ({"size": (8, 8)}, False),
        ({"scale_factor": 2, "align_corners": True}, False),
        ({"scale_factor": 2, "mode": "bicubic"}, False),
        ({"scale_factor": 2, "antialias": True}, False),
    ],
)
def test_dyadic_weights_with_every_image_size(given, expected):
    call = {"size": None, "scale_factor": None, **options(**given)}
    assert always_has_dyadic_weights(call, 8) is expected


AVERAGES = {
    "ceil": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (2, 3, 8, 9)),
    "ceil_not_counted": (nn.AvgPool2d(3, 2, 1, True, False), (2, 3, 8, 8)),
    "divisor": (nn.AvgPool2d(2, divisor_override=3), (2, 3, 8, 8)),
    "1d": (nn.AvgPool1d(3, 1, 1), (2, 3, 10)),
    "3d": (nn.AvgPool3d(3, 2, 1, count_include_pad=False), (2, 3, 4, 6, 5)),
    "adaptive": (nn.AdaptiveAvgPool2d((5, 3)), (2, 3, 8, 7)),
    "adaptive_up": (nn.AdaptiveAvgPool3d((2, None, 9)), (2, 3, 5, 6, 4)),
    "without_batch": (nn.AvgPool2d(3, 2, 1, True), (3, 8, 9)),
    "mean": (Mean((-3, 2), False), (2, 3, 5, 6)),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_is_the_exact_one_rounded(name):
    average, shape = AVERAGES[name]
    q = torch.randint(-128, 128, shape).float()
    for output in (Grid(0.3, -7, -128, 127), Grid(0.25, 0, 0, 255, signed=False)):
        exact = average((q - 3).double()) * SIGNED.scale / output.scale
        found = IntegerAverage(average, SIGNED, output)(q)
        clear = (exact - exact.floor() - 0.5).abs() > 1e-5
        expected = (torch.round(exact) + output.zero_point).clamp(output.quant_min, 255)
        expected = expected.clamp(max=output.quant_max)
        assert torch.equal(found[clear].double(), expected[clear])


OPERATIONS = {
    "ceil": nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "divisor": nn.AvgPool2d(3, 2, divisor_override=5),
    "not_counted": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "adaptive": nn.AdaptiveAvgPool2d((5, 4)),
    "mean": lambda x: x.mean(3, keepdim=True),
    "twice": nn.Upsample(scale_factor=2, mode="bilinear"),
    "linear": nn.Upsample(scale_factor=1.7, mode="bilinear"),
    "corners": nn.Upsample(size=(14, 11), mode="bilinear", align_corners=True),
    "smaller": nn.Upsample(size=(5, 4), mode="bilinear"),
    "cubic": nn.Upsample(scale_factor=0.6, mode="bicubic"),
    "antialias": lambda x: F.interpolate(x, (5, 4), mode="bilinear", antialias=True),
    "as_another": lambda x: F.interpolate(F.max_pool2d(x, 2), x.shape[2:], mode="bilinear"),
    "transposed": nn.ConvTranspose2d(8, 6, 3, 2, 1, 1, dilation=2, groups=2),
}


class Operations(nn.Module):
    """All operations behind one convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.operations = nn.ModuleList(m for m in OPERATIONS.values() if isinstance(m, nn.Module))

    def forward(self, x):
        x = self.stem(x)
        functions = [f for f in OPERATIONS.values() if not isinstance(f, nn.Module)]
        return [operation(x) for operation in (*self.operations, *functions)]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["WT8SYMP2_AT8SYMP2", "WC8_AT8"])
def test_files_compute_the_same_whatever_the_kernels_of_the_runtime(preset, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(16, 3, 11, 9)
    wrapper = PTCFxModule(Operations(), qconfig_type=preset, example_inputs=x, verbose=False)
    wrapper.calibrate([x])
    assert not build_report(wrapper, [x]).floats
    for form in ("QDQ_MODEL", "INT_MODEL"):
        path = wrapper.export(x, tmp_path / f"{form}.onnx", format=form)
        found = verify(wrapper, [x, torch.randn_like(x)], path)
        # With free scales the convolution sums floats where optimizations are off.
        is_float = form == "QDQ_MODEL" and preset == "WC8_AT8"
        assert not any(n for p, n in found.mismatches.items() if not (is_float and "off" in p))
