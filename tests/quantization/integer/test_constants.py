"""Parameters and buffers in sums, products and concats; masks; batch norms alone; PReLU."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization import PTCFxModule, QATFxModule
from edgeailite.quantization.arithmetic.sqnr import sqnr
from edgeailite.quantization.integer.affine import IntegerAffine, IntegerPReLU
from edgeailite.quantization.integer.grid import Grid, IntegerConstant
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.report import build_report
from edgeailite.quantization.verify import verify

PRESETS = ["WC8_AT8", "WT8SYMP2_AT8SYMP2"]


class Block(nn.Module):
    """Attention with a relative position bias and a mask, then an MLP; both with layer scale."""

    def __init__(self, width, mask):
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.expand, self.reduce = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scales = nn.ParameterList([torch.rand(width), torch.rand(width) * 0.2])
        self.table = nn.Parameter(torch.randn(2, 3, 7))
        self.positions = nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 17))
        self.register_buffer("index", torch.arange(17) % 3, persistent=False)
        self.register_buffer("mask", torch.ones(17, 17).triu(1) * mask)
        self.mask[self.mask.isnan()] = 0.0  # 0 * -inf

    def forward(self, x):
        parts = self.qkv(self.norm(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        bias = self.positions(self.table)[:, self.index]
        scores = parts[0] @ parts[1].transpose(-2, -1) * 0.25 + bias + self.mask
        mixed = (scores.softmax(-1) @ parts[2]).transpose(1, 2).flatten(2)
        x = x + self.scales[0] * mixed
        return x + self.reduce(F.gelu(self.expand(x))) * self.scales[1]


class Transformer(nn.Module):
    def __init__(self, mask=-100.0, width=16):
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, width, 4, 4), nn.Linear(width, 5)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width))
        self.block = Block(width, mask)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.block(x).mean(1))


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_transformer_has_nothing_in_float_and_is_equal_everywhere(preset, example, tmp_path):
    torch.manual_seed(0)
    model, batches = Transformer(), [torch.randn(4, 3, 16, 16) for _ in range(2)]
    given = batches[0] if example else None
    wrapper = QATFxModule(
        model, qconfig_type=preset, total_epochs=2, example_inputs=given, verbose=False
    )
    wrapper.train()
    wrapper(batches[0]).sum().backward()
    wrapper.calibrate(batches)
    path = wrapper.export(batches[0], tmp_path / "m.onnx", dynamic_batch=example)
    found = verify(wrapper, batches, path)
    assert not any(n for pair, n in found.mismatches.items() if "off" not in pair or "T8" in preset)
    assert build_report(wrapper, batches[:1]).floats == {}


@pytest.mark.parametrize("mask", [-100.0, -65504.0, -1e30, -torch.inf])
def test_a_mask_does_not_take_the_integers_of_the_values(mask):
    torch.manual_seed(0)
    model, x = Transformer(mask), torch.randn(8, 3, 16, 16)
    original = copy.deepcopy(model)
    wrapper = PTCFxModule(model, example_inputs=x, verbose=False).calibrate([x])
    with torch.no_grad():
        found, wanted = wrapper(x), original(x)
    assert float(sqnr(wanted, found)) > 25
    assert build_report(wrapper, [x]).floats == {}


class Scores(nn.Module):
    """Attention in which `combine` applies a mask to the scores, (8, 20, 20)."""

    def __init__(self, combine, mask):
        super().__init__()
        self.inner, self.head, self.combine = nn.Linear(12, 12), nn.Linear(12, 4), combine
        self.register_buffer("mask", mask)

    def forward(self, x):
        q = self.inner(x)
        return self.head(self.combine(q @ q.transpose(1, 2) / 4, self.mask) @ q)


HIDDEN = torch.ones(20, 20).triu(1)


@pytest.mark.parametrize(
    ("combine", "mask", "example", "floats"),
    [
        (lambda s, m: (s + m).softmax(-1), torch.randn(20, 20) - 100 * HIDDEN, False, []),
        (lambda s, m: (s + m).view(2, 4, 20, 20).softmax(3).view(8, 20, 20), -100 * HIDDEN, True,
         ["add", "softmax"]),
        (lambda s, m: (s + m).view(2, 4, 20, 20).softmax(-1).view(8, 20, 20), -100 * HIDDEN, True,
         []),
        (lambda s, m: (s + m).view(2, 4, 20, 20).softmax(-1).view(8, 20, 20), -100 * HIDDEN, False,
         ["add", "softmax"]),
        (lambda s, m: (s - m * 1e4).softmax(-1), HIDDEN, False, ["sub", "softmax"]),
        (lambda s, m: (t := s + m).softmax(-1) + 0.01 * t.relu(), -100 * HIDDEN, False,
         ["add", "softmax"]),
    ],
)  # fmt: skip
def test_a_mask_that_no_softmax_alone_reads_stays_in_float(combine, mask, example, floats):
    torch.manual_seed(0)
    model, x = Scores(combine, mask), torch.randn(8, 20, 12)
    original = copy.deepcopy(model)
    given = x if example else None
    wrapper = PTCFxModule(model, example_inputs=given, verbose=False).calibrate([x])
    with torch.no_grad():
        assert float(sqnr(original(x), wrapper(x))) > 25
    assert list(build_report(wrapper, [x]).floats) == floats


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize(
    "body",
    [
        lambda y, mask: y + mask,
        lambda y, mask: torch.cat([y, mask.expand(2, 5, 4)], 1),
        lambda y, mask: torch.stack([y, mask.expand(2, 5, 4)], 1),
    ],
)
def test_values_far_apart_take_no_grid_from_the_others(body, example):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("mask", torch.tensor([0.0, -1e9, 0.0, 0.0]))

        def forward(self, x):
            return body(self.layer(x), self.mask)

    torch.manual_seed(0)
    model, x = Masked(), torch.randn(2, 5, 4)
    original, given = copy.deepcopy(model), x if example else None
    wrapper = PTCFxModule(model, example_inputs=given, verbose=False).calibrate([x])
    near = original(x).detach().abs() < 100
    wanted, found = original(x).detach()[near], wrapper(x).detach()[near]
    assert float(sqnr(wanted, found)) > 30
    assert len(build_report(wrapper, [x]).floats) == 1


@pytest.mark.parametrize("preset", PRESETS)
def test_a_buffer_that_the_model_changes_is_no_constant(preset):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("calls", torch.zeros(2))

        def forward(self, x):
            self.calls[1:] += 1
            return self.layer(x) + self.calls[1]

    x = torch.randn(2, 4)
    wrapper = PTCFxModule(Counts(), qconfig_type=preset, example_inputs=x, verbose=False)
    wrapper.calibrate([x, x])
    first, second = wrapper.eval()(x), wrapper(x)
    assert torch.allclose(second, first + 1, atol=1e-5)


@pytest.mark.parametrize(
    "constant", [torch.arange(4), torch.arange(4) % 2 == 0, torch.randn(4).double()]
)
def test_constants_of_other_types_stay_in_float(constant):
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
            self.register_buffer("constant", constant)

        def forward(self, x):
            return self.last((self.layer(x) * self.constant).float())

    x = torch.randn(8, 4)
    wrapper = PTCFxModule(Adds(), verbose=False).calibrate([x])
    (product, *_) = build_report(wrapper, [x]).floats.values()
    assert product.operation == "mul"
    assert "is no float32" in product.reason


def test_values_that_a_softmax_cannot_see_do_not_widen_a_range():
    wrapper = PTCFxModule(Transformer(), example_inputs=torch.randn(2, 3, 16, 16), verbose=False)
    wrapper.calibrate([torch.randn(2, 3, 16, 16)])
    (masked,) = (q for q in quantizers(wrapper.module).values() if q.softmax_dim is not None)
    low, high = masked.clips_act.tolist()
    assert masked.softmax_dim == -1
    assert high - low < 30


def test_the_grid_of_a_constant_follows_it_in_training():
    model = Transformer()
    wrapper = QATFxModule(model, total_epochs=9, verbose=False)
    for largest in (3.0, 7.0, 2.0):
        with torch.no_grad():
            wrapper.module.positions.copy_(torch.linspace(-1, largest, 17 * 16).reshape(1, 17, 16))
        wrapper.train()(torch.randn(2, 3, 16, 16))
        quantizer = quantizers(wrapper.module)["positions_q"]
        assert quantizer.clips_act.tolist() == [-1.0, largest]


def test_constants_are_computed_once_before_the_input_comes():
    wrapper = PTCFxModule(Transformer(), verbose=False).calibrate([torch.randn(2, 3, 16, 16)])
    converted = wrapper.convert().module
    constants = [m for m in converted.modules() if isinstance(m, IntegerConstant)]
    assert len(constants) == 4, constants  # token, positions, bias, mask; the scales are gains
    assert len([m for m in converted.modules() if isinstance(m, IntegerAffine)]) == 2
    assert "block.positions.0" not in dict(converted.named_modules())
    assert not any("table" in name or "scales" in name for name in converted.state_dict())


def test_a_parameter_may_be_an_operand_a_weight_and_part_of_another_constant(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.shared = nn.Conv2d(3, 4, 1), nn.Parameter(torch.randn(4, 4, 1, 1))
            self.gain = nn.Parameter(torch.randn(4, 1, 1))

        def forward(self, x):
            y = F.conv2d(self.conv(x) * self.gain, self.shared)
            return y + self.shared[:1].exp() * 0.1 + self.shared.sum(1, keepdim=True)[:1]

    torch.manual_seed(0)
    model, x = Tied(), torch.randn(2, 3, 5, 5)
    wrapper = PTCFxModule(model, qconfig_type="WT8SYMP2_AT8SYMP2", verbose=False).calibrate([x])
    assert torch.equal(dict(wrapper.module.named_parameters())["shared"], model.shared)
    found = verify(wrapper, [x], wrapper.export(x, tmp_path / "m.onnx"))
    assert not any(found.mismatches.values())
    assert build_report(wrapper, [x]).floats == {}


# ---- gains of channels --------------------------------------------------------------------------


class Gains(nn.Module):
    """A batch norm behind a sum, PReLUs, a factor, and a batch norm behind a concat."""

    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.norm, self.last = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.slopes, self.slope = nn.PReLU(8), nn.PReLU()
        self.gain = nn.Parameter(torch.rand(8, 1, 1))
        nn.init.uniform_(self.slopes.weight, -0.5, 1.5)
        for norm in (self.norm, self.last):
            for values, low, high in ((norm.weight, 0.5, 2), (norm.running_var, 0.5, 2)):
                nn.init.uniform_(values, low, high)
            nn.init.normal_(norm.bias)

    def forward(self, x):
        x = self.slopes(self.conv(x))
        x = torch.relu(self.norm(x + self.other(x)))
        x = self.slope(self.other(x) * self.gain)
        return self.last(torch.cat([x[:, :4], x[:, 4:]], dim=1)).mean((2, 3))


@pytest.mark.parametrize("form", ["QDQ_MODEL", "INT_MODEL"])
@pytest.mark.parametrize("preset", PRESETS)
def test_gains_are_integers_in_evaluation_and_in_files(preset, form, tmp_path):
    torch.manual_seed(0)
    model, x = Gains(), torch.randn(4, 3, 9, 9)
    original = copy.deepcopy(model).eval()
    wrapper = PTCFxModule(model, qconfig_type=preset, verbose=False).calibrate([x])
    is_qdq = form == "QDQ_MODEL"  # an open batch size takes the exporter half as long again
    path = wrapper.export(x, tmp_path / "m.onnx", format=form, dynamic_batch=is_qdq)
    found = verify(wrapper, [x], path)
    assert found.mismatches.popitem()[1] == 0
    assert found.mismatches["evaluation vs integer graph"] == 0
    assert build_report(wrapper, [x]).floats == {}
    assert float(sqnr(original(x).detach(), wrapper(x).detach())) > 30


def random_grid(low, high, zero):
    scale = float(torch.rand(()) * 0.1 + 0.002)
    return Grid(float(torch.tensor(scale)), zero, low, high, 8, low < 0)


@pytest.mark.parametrize("seed", range(20))
def test_a_gain_is_exact_and_next_to_the_real_one(seed):
    torch.manual_seed(seed)
    source, output = random_grid(-128, 127, seed - 10), random_grid(0, 255, 100 + seed)
    gain, offset = torch.randn(64) * 10 ** torch.empty(64).uniform_(-3, 1), torch.randn(64) * 5
    gain[0] = offset[1] = 0.0
    affine = IntegerAffine(source, output, gain, offset)
    q = torch.arange(-128, 128.0).reshape(-1, 1).expand(-1, 64)
    found = affine(q).double()
    u = (q - source.zero_point).double()
    exact = u * affine.gain.double() + affine.offset.double()
    assert torch.equal(exact, exact.float().double())  # no sum was rounded
    assert torch.equal(found, (exact.round() + output.zero_point).clamp(0, 255))
    real = (u * source.scale * gain + offset) / output.scale + output.zero_point
    assert float((found - real.round().clamp(0, 255)).abs().max()) <= 1
    assert float((found != real.round().clamp(0, 255)).double().mean()) < 2e-3


@pytest.mark.parametrize("seed", range(5))
def test_a_prelu_is_next_to_the_real_one(seed):
    torch.manual_seed(seed)
    source, output = random_grid(-128, 127, seed * 9 - 20), random_grid(-128, 127, seed)
    slope, q = torch.randn(16), torch.arange(-128, 128.0).reshape(-1, 1).expand(-1, 16)
    real = F.prelu((q - source.zero_point) * source.scale, slope) / output.scale
    wanted = (real.round() + output.zero_point).clamp(-128, 127)
    found = IntegerPReLU(source, output, slope)(q)
    assert float((found - wanted).abs().max()) <= 1
    assert float((found != wanted).double().mean()) < 2e-3


def test_the_type_of_a_value_is_that_of_the_model_in_files_too(tmp_path):
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            a, b = self.first(x), self.second(x)
            return a.to(b.dtype) + b

    x = torch.randn(2, 3, 5, 5)
    wrapper = PTCFxModule(Casts(), qconfig_type="WT8SYMP2_AT8SYMP2", verbose=False).calibrate([x])
    found = verify(wrapper, [x], wrapper.export(x, tmp_path / "m.onnx"))
    assert not any(found.mismatches.values())
