"""Quotients of two tensors of integers: exact, defined at zero, equal everywhere."""

from __future__ import annotations

import copy

import onnx
import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule, QATFxModule
from edgeailite.quantization.arithmetic.sqnr import sqnr
from edgeailite.quantization.integer.grid import Grid
from edgeailite.quantization.integer.operators import IntegerDiv
from edgeailite.quantization.modules.quotient import Quotient
from edgeailite.quantization.report import build_report
from edgeailite.quantization.verify import verify
from tests.quantization.helpers import run_onnx

PRESETS = ["WC8_AT8", "WT8SYMP2_AT8SYMP2"]


class Quotients(nn.Module):
    """Divisors that broadcast, that are constants, and that are zero in many places."""

    def __init__(self):
        super().__init__()
        self.stem, self.other = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)
        self.widths = nn.Parameter(torch.rand(8, 1, 1) + 0.2)
        self.register_buffer("origin", torch.randn(1, 8, 1, 1))

    def forward(self, x):
        y, z = self.stem(x), self.other(x)
        positive = z.abs() + 0.5
        return [
            self.head(y / positive),
            torch.div(y, positive.mean((2, 3), keepdim=True)) + y,
            torch.divide(y, self.widths).relu(),
            self.origin / positive + 0.5,
            self.head(torch.relu(y) / (torch.relu(z) + 1e-3)),  # rounds to zero
            z.clone().div_(y).tanh(),
            (y / y).sigmoid(),
            self.head(y.true_divide(torch.sigmoid(z).square())),
        ]


def assert_equal(found, preset):
    """All pairs; with free scales ONNX Runtime sums floats where optimizations are off."""
    pairs = {p: n for p, n in found.mismatches.items() if "off" not in p or preset != "WC8_AT8"}
    assert len(pairs) == (2 if preset == "WC8_AT8" else 3)
    assert not any(pairs.values()), str(found)


@pytest.mark.parametrize("preset", PRESETS)
def test_quotients_are_integers_in_evaluation_and_in_files(preset, tmp_path):
    torch.manual_seed(0)
    model, x = Quotients(), torch.randn(4, 3, 5, 4)
    wrapper = QATFxModule(
        model, qconfig_type=preset, total_epochs=2, example_inputs=x, verbose=False
    ).train()
    sum(y.square().mean() for y in wrapper(x)).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(bool(g.isfinite().all()) and bool(g.any()) for g in gradients.values()), gradients
    wrapper.calibrate([x])
    assert not build_report(wrapper, [x]).floats
    divisions = [m for m in wrapper.convert().modules() if isinstance(m, IntegerDiv)]
    assert len(divisions) == 8
    for form in ("QDQ_MODEL", "INT_MODEL"):
        path = wrapper.export(x, tmp_path / f"{form}.onnx", format=form)
        found = verify(wrapper, [x, torch.randn_like(x)], path)
        assert_equal(found, preset)
        assert [node.op_type for node in onnx.load(path).graph.node].count("Div") == 8
    (kind,) = (kind for kind in found.operations if kind.operation == "Div")
    assert (kind.count, kind.proven) == (8, True)


def test_a_simulated_quotient_of_powers_of_two_is_the_integers():
    torch.manual_seed(0)
    model, x = Quotients(), torch.randn(4, 3, 5, 4)
    wrapper = PTCFxModule(model, qconfig_type=PRESETS[1], example_inputs=x, verbose=False)
    wrapper.calibrate([x])
    integer = wrapper.convert()(x)
    wrapper.integer_evaluation = False
    for i in (0, 1, 2, 4):  # without a function behind
        assert torch.equal(wrapper(x)[i], integer[i])


def random_grid(generator, bits=8):
    scale = float(torch.rand((), generator=generator) * 0.1 + 0.002) * 2 ** (8 - bits)
    low = -(1 << (bits - 1))
    zero = int(torch.randint(low, -low, (), generator=generator))
    return Grid(float(torch.tensor(scale)), zero, low, -low - 1, bits)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_quotient_is_at_most_a_step_from_the_exact_one_and_rarely_that(bits):
    generator = torch.Generator().manual_seed(bits)
    different = total = 0
    for _ in range(20):
        left, right, output = (random_grid(generator, b) for b in (8, bits, 8))
        a, b = (
            torch.randint(g.quant_min, g.quant_max + 1, (4000,), generator=generator).float()
            for g in (left, right)
        )
        divisor = (b.double() - right.zero_point) * right.scale
        divisor = torch.where(divisor == 0, right.scale / 2, divisor)
        exact = (a.double() - left.zero_point) * left.scale / divisor
        wanted = (exact / output.scale).round() + output.zero_point
        wanted = wanted.clamp(output.quant_min, output.quant_max).float()
        found = IntegerDiv(left, right, output)(a, b)
        assert float((found - wanted).abs().max()) <= 1
        different, total = different + int((found != wanted).sum()), total + a.numel()
    assert different < 0.001 * total


def test_a_divisor_zero_is_half_a_step():
    grid = Grid(0.5, 3, -128, 127)
    divide = IntegerDiv(grid, grid, Grid(1.0, 0, -128, 127))
    a, zero, half = torch.tensor([3.0, 4.0, 1.0, 127.0]), torch.full((4,), 3.0), 0.25
    assert divide(a, zero).tolist() == [0.0, 0.5 / half, -1.0 / half, 127.0]
    assert divide(a, torch.full((4,), 4.0)).tolist() == [0.0, 1.0, -2.0, 124.0]


def test_a_prepared_quotient_is_near_the_models_and_exported(tmp_path):
    model, x = Quotients(), torch.randn(2, 3, 5, 4)
    original = copy.deepcopy(model)
    wrapper = PTCFxModule(model, bias_calibration_factor=0.0, verbose=False).calibrate([x])
    assert sum(isinstance(m, Quotient) for m in wrapper.modules()) == 8
    simulated = run_onnx(wrapper.export(x, tmp_path / "m.onnx", format="FAKEQ_MODEL"), (x,), "off")
    with torch.no_grad():
        for i in (0, 2, 3):
            assert float(sqnr(original(x)[i], wrapper(x)[i])) > 25
            assert float(sqnr(wrapper(x)[i], simulated[i])) > 50
