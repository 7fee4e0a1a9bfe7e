"""Euclidean lengths of integers, and networks that divide by them."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from edgeailite.quantization import QATFxModule
from edgeailite.quantization.arithmetic.sqnr import sqnr
from edgeailite.quantization.integer.grid import Grid
from edgeailite.quantization.integer.normalizations import IntegerNormalization, length
from edgeailite.quantization.report import build_report
from edgeailite.quantization.verify import verify

PRESETS = ["WC8_AT8", "WT8SYMP2_AT8SYMP2"]


class ResponseNorm(nn.Module):
    """Of ConvNeXt V2, https://arxiv.org/abs/2301.00808, algorithm 1; channels last."""

    def __init__(self, width, is_timms):
        super().__init__()
        self.is_timms = is_timms
        self.gamma = nn.Parameter(torch.randn(1, 1, 1, width))
        self.beta = nn.Parameter(torch.randn(1, 1, 1, width) * 0.2)

    def forward(self, x):
        gx = x.norm(p=2, dim=(1, 2), keepdim=True)
        nx = gx / (gx.mean(-1, keepdim=True) + 1e-6)
        if self.is_timms:
            return x + torch.addcmul(self.beta, self.gamma, x * nx)
        return self.gamma * (x * nx) + self.beta + x


class Lengths(nn.Module):
    def __init__(self, has_condition=False):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.expand, self.response = nn.Linear(8, 16), ResponseNorm(16, has_condition)
        self.reduce, self.has_condition = nn.Linear(16, 8), has_condition

    def forward(self, x):
        y = self.stem(x)
        if self.has_condition and x.shape[2] < 2:  # torch.fx cannot follow it
            return [y]
        expanded = nn.functional.gelu(self.expand(y.permute(0, 2, 3, 1)))
        lengths = torch.linalg.vector_norm(y, dim=1, keepdim=True)
        return [
            self.head(y + self.reduce(self.response(expanded)).permute(0, 3, 1, 2)),
            y / lengths + 0.5,
            (torch.norm(y, dim=(2, 3)) / 4).tanh(),
            self.head(lengths * y),
        ]


def assert_equal(found, preset):
    """All pairs; with free scales ONNX Runtime sums floats where optimizations are off."""
    pairs = {p: n for p, n in found.mismatches.items() if "off" not in p or preset != "WC8_AT8"}
    assert len(pairs) == (2 if preset == "WC8_AT8" else 3)
    assert not any(pairs.values()), str(found)


@pytest.mark.parametrize(("preset", "has_condition"), [(PRESETS[0], True), (PRESETS[1], False)])
def test_lengths_are_integers_in_evaluation_and_in_files(preset, has_condition, tmp_path):
    torch.manual_seed(0)
    model, x = Lengths(has_condition), torch.randn(4, 3, 5, 4)
    original = copy.deepcopy(model)
    wrapper = QATFxModule(
        model, qconfig_type=preset, total_epochs=2, example_inputs=x, verbose=False
    ).train()
    sum(y.square().mean() for y in wrapper(x)).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    wrapper.calibrate([x])
    assert not build_report(wrapper, [x]).floats
    for form in ("QDQ_MODEL", "INT_MODEL"):
        path = wrapper.export(x, tmp_path / f"{form}.onnx", format=form)
        found = verify(wrapper, [x, torch.randn_like(x)], path)
        assert_equal(found, preset)
    assert all(kind.proven for kind in found.operations if kind.operation == "Normalization")
    with torch.no_grad():
        for wanted, integer in zip(original(x), wrapper(x), strict=True):
            assert float(sqnr(wanted, integer)) > 20


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("keepdim", [True, False])
def test_a_length_is_at_most_a_step_from_the_exact_one_and_rarely_that(bits, keepdim):
    generator = torch.Generator().manual_seed(bits)
    largest, different, total = 1 << (bits - 1), 0, 0
    for _ in range(20):
        source_scale, output_scale = (torch.rand(2, generator=generator) * 0.1 + 0.01).tolist()
        source = Grid(source_scale * 2.0 ** (8 - bits), 5, -largest, largest - 1, bits)
        output = Grid(output_scale * 10, -128, -128, 127)
        q = torch.randint(-largest, largest, (40, 12, 5), generator=generator)
        exact = torch.linalg.vector_norm((q.double() - 5) * source.scale, dim=1, keepdim=keepdim)
        wanted = ((exact / output.scale).round() - 128).clamp(-128, 127).float()
        function, gain = partial(length, keepdim=keepdim), torch.tensor(source.scale)
        found = IntegerNormalization(source, output, function, (1,), weight=gain)(q.float())
        assert found.shape == wanted.shape
        assert float((found - wanted).abs().max()) <= 1
        different, total = different + int((found != wanted).sum()), total + found.numel()
    assert different < 0.001 * total
