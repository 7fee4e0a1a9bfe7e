"""Functions, softmax and layer norm of integers: near the exact value, equal everywhere."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization import GenericTinyMLPTQFxModule, PTCFxModule
from edgeailite.quantization.arithmetic.spec import QConfig, QuantSpec
from edgeailite.quantization.arithmetic.sqnr import sqnr
from edgeailite.quantization.export import functions as written
from edgeailite.quantization.graph.pointwise import POINTWISE
from edgeailite.quantization.graph.registry import calls_of
from edgeailite.quantization.integer.grid import Dequantize, Grid, Quantize
from edgeailite.quantization.integer.interpolation import IntegerInterpolation
from edgeailite.quantization.integer.normalizations import (
    IntegerNormalization,
    IntegerSoftmax,
    over_length,
    over_root_mean_square,
    standardized,
)
from edgeailite.quantization.integer.table import IntegerTable
from edgeailite.quantization.report import build_report
from edgeailite.quantization.verify import verify

PRESETS = ["WC8_AT8", "WC8P2_AT8P2", "WT8SYMP2_AT8SYMP2"]
FUNCTIONS = {
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU("tanh"),
    "hardswish": nn.Hardswish(inplace=True),
    "hardsigmoid": nn.Hardsigmoid(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "elu": nn.ELU(0.7),
    "celu": nn.CELU(0.7),
    "selu": nn.SELU(),
    "leaky_relu": nn.LeakyReLU(0.1),
    "softplus": nn.Softplus(2.0, 5.0),
    "mish": nn.Mish(),
    "logsigmoid": nn.LogSigmoid(),
    "softsign": nn.Softsign(),
    "tanhshrink": nn.Tanhshrink(),
    "exp": torch.exp,
    "sqrt_of_abs": lambda x: x.abs().sqrt(),
    "reciprocal": lambda x: 1 / (x.abs() + 0.3),
    "square": lambda x: x**2,
    "with_numbers": lambda x: (3 - 0.5 * x + 1) / 3,
    "with_a_size": lambda x: x.shape[1] ** -0.5 * x,
    "hand_written_hardswish": lambda x: x * F.relu6(x + 3) / 6,
    "sine": lambda x: torch.sin(x).neg(),
}


def random_grid(generator, signed=None, bits=8):
    scale = float(torch.rand((), generator=generator) * 0.1 + 0.002) * 2 ** (8 - bits)
    signed = bool(torch.randint(2, (), generator=generator)) if signed is None else signed
    low = -(1 << (bits - 1)) if signed else 0
    high = low + (1 << bits) - 1
    zero = int(torch.randint(low, high + 1, (), generator=generator))
    return Grid(float(torch.tensor(scale)), zero, low, high, bits, signed)


def integers(grid, *shape, generator):
    return torch.randint(grid.quant_min, grid.quant_max + 1, shape, generator=generator).float()


def assert_equal(found, preset):
    """All pairs; with free scales ONNX Runtime sums floats where optimizations are off."""
    pairs = {p: n for p, n in found.mismatches.items() if "off" not in p or preset != "WC8_AT8"}
    assert len(pairs) == (2 if preset == "WC8_AT8" else 3)
    assert not any(pairs.values()), str(found)


class Function(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.module = None
        if isinstance(FUNCTIONS[name], nn.Module):
            self.module = copy.deepcopy(FUNCTIONS[name])
        self.name, self.head = name, nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.head((self.module or FUNCTIONS[self.name])(x))


class Functions(nn.Module):
    """Functions behind a convolution; ``torch.fx`` cannot follow its condition."""

    def __init__(self, names, has_condition=False):
        super().__init__()
        self.stem, self.has_condition = nn.Conv2d(3, 8, 1), has_condition
        self.functions = nn.ModuleList(map(Function, names))

    def forward(self, x):
        x = self.stem(x)
        if self.has_condition and x.shape[2] < 2:
            return [x]
        return [function(x.clone()) for function in self.functions]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_table_is_the_function_between_its_grids(name):
    generator = torch.Generator().manual_seed(len(name))
    for _ in range(20):
        source, output = random_grid(generator), random_grid(generator)
        q = torch.arange(source.quant_min, source.quant_max + 1.0).reshape(1, 8, -1, 4)
        real = FUNCTIONS[name](Dequantize(source)(q)).nan_to_num(nan=0.0)
        numbers = (q.shape[1],) if name == "with_a_size" else ()
        function = (lambda x, n: n**-0.5 * x) if numbers else FUNCTIONS[name]
        found = IntegerTable(function, source, output)(q, *numbers)
        assert torch.equal(found, Quantize(output)(real))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "has_condition"), [("WT8SYMP2_AT8SYMP2", False), ("WC8_AT8", True)]
)
def test_functions_are_integers_in_evaluation_and_in_files(preset, has_condition, tmp_path):
    torch.manual_seed(0)
    model, x = Functions(list(FUNCTIONS), has_condition), torch.randn(4, 3, 9, 7)
    wrapper = PTCFxModule(model, qconfig_type=preset, example_inputs=x, verbose=False)
    wrapper.calibrate([x])
    assert not build_report(wrapper, [x]).floats
    tables = [m for m in wrapper.convert().modules() if isinstance(m, IntegerTable)]
    assert len(tables) == len(FUNCTIONS) + 1
    for form in ("QDQ_MODEL", "INT_MODEL"):
        is_qdq = form == "QDQ_MODEL"  # an open batch size takes the exporter half as long again
        path = wrapper.export(x, tmp_path / f"{form}.onnx", format=form, dynamic_batch=is_qdq)
        assert_equal(verify(wrapper, [x, torch.randn_like(x)], path), preset)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("Gather") == len(tables)
    assert not {"Sigmoid", "Erf", "Tanh", "Exp", "Sqrt", "Pow", "Div"} & set(kinds)


def test_a_function_that_onnx_runtime_rounds_apart_is_written_as_a_table(tmp_path, monkeypatch):
    x = torch.randn(4, 3, 9, 7)
    wrapper = PTCFxModule(Functions(["silu", "tanh"]), example_inputs=x, verbose=False)
    wrapper.calibrate([x])
    path = wrapper.export(x, tmp_path / "m.onnx")
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert "Gather" not in kinds
    assert {"Sigmoid", "Tanh"} <= set(kinds)
    own = IntegerTable.table

    def one_off(self, *numbers):
        table = own(self, *numbers).clone()
        table[100] += 1.0 if table[100] < 100 else -1.0
        return table

    monkeypatch.setattr(IntegerTable, "table", one_off)
    path = wrapper.export(x, tmp_path / "m.onnx")
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("Gather") == 2
    assert not {"Sigmoid", "Tanh"} & set(kinds)
    assert (
        verify(wrapper, [x], path).mismatches["integer graph vs ONNX Runtime, optimizations on"]
        == 0
    )


@pytest.mark.parametrize("form", ["QDQ_MODEL", "INT_MODEL"])
def test_a_microcontroller_reads_tables_from_every_file(form, tmp_path):
    torch.manual_seed(0)
    model, x = Functions(["silu", "with_a_size"]), torch.randn(4, 3, 9, 7)
    wrapper = GenericTinyMLPTQFxModule(model, example_inputs=x, verbose=False).calibrate([x])
    path = wrapper.export(x, tmp_path / "m.onnx", format=form)
    assert_equal(verify(wrapper, [x, 2 * x], path), "WC8P2_AT8P2")
    graph = onnx.load(path).graph
    assert not {"Sigmoid", "Mul", "Pow"} & {node.op_type for node in graph.node}
    tables = {t.name: t for t in graph.initializer if t.name.endswith(".table")}
    assert list(tables) == ["functions.0.module.activation_q.table", "functions.1.mul_q.table"]
    for table in tables.values():
        assert onnx.numpy_helper.to_array(table).itemsize == 1


def test_the_proof_tries_every_integer_alone_too():
    functions = [
        written._Function(p, torch.arange(n).numpy(), None, "", []) for p, n in (("a", 3), ("b", 5))
    ]
    runs = [[place.tolist() for place in places] for places in written._places(functions)]
    assert runs[0] == [[0, 1, 2], [0, 1, 2, 3, 4]]
    assert runs[1:] == [[[i % 3], [i]] for i in range(5)]


def test_functions_of_functions_are_one_table():
    x = torch.randn(4, 3, 9, 7)
    wrapper = PTCFxModule(Functions(["reciprocal"]), example_inputs=x, verbose=False).calibrate([x])
    tables = [m for m in wrapper.convert().modules() if isinstance(m, IntegerTable)]
    assert len(tables) == 1


class Padded(nn.Module):
    """Functions of zeros that padding writes beside values of 0.4 and more."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = F.pad(torch.clamp(self.stem(x), 0.4, 6.0), (1, 1, 1, 1))
        return self.head(torch.sigmoid(x)), self.head(x.softmax(-1))


@pytest.mark.parametrize("preset", ["WC8_AT8", "WT8SYMP2_AT8SYMP2"])
def test_zeros_that_a_grid_does_not_hold_have_a_result(preset, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 9, 7)
    model = Padded().eval()
    wanted = [y.detach() for y in model(x)]
    wrapper = PTCFxModule(model, qconfig_type=preset, example_inputs=x, verbose=False)
    path = wrapper.calibrate([x]).export(x, tmp_path / "m.onnx")
    for found, exact in zip(wrapper(x), wanted, strict=True):
        assert float((found.detach() - exact).abs().max()) < 0.05
    assert_equal(verify(wrapper, [x], path), preset)


SIXTEEN_BITS = QConfig(QuantSpec(signed=True), QuantSpec(bit_width=16))  # power-of-two scales


def wide_grids(name, generator, bits):
    """A random grid of inputs, and one that the results fill."""
    source = random_grid(generator, bits=bits)
    real = (torch.arange(source.quant_min, source.quant_max + 1.0) - source.zero_point) * (
        source.scale
    )
    largest = FUNCTIONS[name](real[None, :, None]).nan_to_num(nan=0.0).abs().max().clamp(0.01, 1e4)
    scale = float(largest / 2 ** (bits - 1))
    return source, Grid(scale, 0, -(1 << (bits - 1)), (1 << (bits - 1)) - 1, bits)


@pytest.mark.parametrize("bits", [9, 16])
@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - {"with_a_size"}))
def test_an_interpolated_function_is_at_most_a_step_off(name, bits):
    generator = torch.Generator().manual_seed(bits)
    for _ in range(3):
        source, output = wide_grids(name, generator, bits)
        q = torch.arange(source.quant_min, source.quant_max + 1.0)
        wanted = IntegerTable(FUNCTIONS[name], source, output)(q)
        operator = IntegerInterpolation(FUNCTIONS[name], source, output)
        found = operator(q)
        assert float((found - wanted).abs().max()) <= 1
        lines = operator.lines()
        assert max(lines.base.abs().max(), lines.slope.abs().max()) <= 2**31
        assert torch.equal(lines.base, lines.base.round())


def test_tables_have_as_few_segments_as_the_function_allows():
    source, output = Grid(2.0**-12, 0, -32768, 32767, 16), Grid(2.0**-15, 0, -32768, 32767, 16)
    found = {
        name: IntegerInterpolation(function, source, output).lines().width
        for name, function in {
            "line": lambda x: x / 8,
            "kink": lambda x: x.abs() / 8,
            "curve": torch.sigmoid,
            "jump": torch.sign,
            "pole": lambda x: 1 / x,
        }.items()
    }
    assert found == {"line": 8, "kink": 8, "curve": 7, "jump": 0, "pole": 0}
    q = torch.arange(-32768, 32768.0)
    jump = IntegerInterpolation(torch.sign, source, output)
    assert torch.equal(jump(q), IntegerTable(torch.sign, source, output)(q))
    assert jump.constants(None).weights == 2 * 65536


def test_zeros_beside_a_clamped_wide_grid_have_a_result():
    source, output = Grid(2.0**-12, 0, 1638, 24576, 16), Grid(2.0**-14, 0, -32768, 32767, 16)
    found = IntegerInterpolation(torch.cos, source, output)(torch.tensor([0.0, 1638.0]))
    assert (found - torch.tensor([16384.0, math.cos(1638 / 4096) * 16384])).abs().max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("has_condition", [False, True])
def test_functions_of_16_bits_are_integers_in_evaluation_and_in_files(has_condition, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 9, 7)
    model = Functions(["silu", "gelu", "reciprocal", "with_a_size"], has_condition)
    wrapper = PTCFxModule(model, qconfig_type=SIXTEEN_BITS, example_inputs=x, verbose=False)
    wrapper.calibrate([x])
    assert not build_report(wrapper, [x]).floats
    made = [m for m in wrapper.convert().modules() if isinstance(m, IntegerInterpolation)]
    assert len(made) == 4
    path = wrapper.export(x, tmp_path / "m.onnx")
    assert_equal(verify(wrapper, [x, torch.randn_like(x)], path), "power of two")


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 1), nn.LayerNorm(16)
        self.groups, self.head = nn.GroupNorm(4, 16), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.groups(self.stem(x))
        x = F.normalize(self.norm(x.permute(0, 2, 3, 1)), dim=-1).permute(0, 3, 1, 2)
        return self.head(x.softmax(1)), torch.sigmoid(x)


def test_norms_of_16_bits_are_integers_and_results_may_have_8(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 4)
    qconfig = replace(SIXTEEN_BITS, end_bits=8)
    wrapper = PTCFxModule(Tokens(), qconfig_type=qconfig, verbose=False).calibrate([x])
    assert not build_report(wrapper, [x]).floats
    path = wrapper.export(x, tmp_path / "m.onnx")
    assert_equal(verify(wrapper, [x, torch.randn_like(x)], path), "power of two")


def test_a_converted_model_is_copied_and_pickled_with_its_functions():
    x = torch.randn(2, 3, 5, 5)
    converted = PTCFxModule(Functions(["silu", "with_a_size"]), example_inputs=x, verbose=False)
    converted = converted.calibrate([x]).convert()
    for other in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert all(map(torch.equal, other(x), converted(x)))
    assert not any("clips_act" in key for key in converted.state_dict())


def test_every_registered_function_is_pointwise():
    """Its value does not depend on the others': a permuted tensor gives the permuted result."""
    x = torch.rand(64) * 0.8 + 0.1
    order = torch.randperm(64)
    calls = [f for f in calls_of(POINTWISE)["functions"] if f is not F.threshold]
    calls = [f for f in calls if f not in (F.threshold_, torch.threshold_)]
    for function in calls:
        assert torch.equal(function(x.clone())[order], function(x[order].clone())), function


# ---- normalizations -----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("count", [2, 49, 197, 1024])
def test_softmax_is_at_most_a_step_from_the_exact_one_and_rarely_that(count, bits):
    generator = torch.Generator().manual_seed(count)
    different = total = 0
    for _ in range(20):
        source = random_grid(generator, bits=bits)
        output = Grid(2.0**-8, 0, 0, 255, 8, False)
        q = integers(source, 400, count, generator=generator)
        exact = torch.softmax((q.double() - source.zero_point) * source.scale, -1)
        wanted = (exact * 256).round().clamp(0, 255).float()
        found = IntegerSoftmax(source, output, -1)(q)
        assert float((found - wanted).abs().max()) <= 1
        different, total = different + int((found != wanted).sum()), total + q.numel()
    assert different < 0.001 * total


def layer_norm(x, weight, bias):
    return F.layer_norm(x, weight.shape, weight, bias, 1e-5)


def rms_norm(x, weight, bias):
    return F.rms_norm(x, weight.shape, weight, 1e-6)


def group_norm(x, weight, bias):
    return F.group_norm(x, 4, weight, bias, 1e-5)


def instance_norm(x, weight, bias):
    return F.instance_norm(x, None, None, weight, bias)


def normalize_channels(x, weight, bias):
    return F.normalize(x, dim=1)


# Function, the operator's, shape of an element of the batch, shape of the parameters.
NORMS = [
    *((layer_norm, standardized, shape, shape) for shape in [(8,), (16, 6), (768,), (1536,)]),
    (rms_norm, over_root_mean_square, (768,), (768,)),
    (rms_norm, over_root_mean_square, (16, 6), (16, 6)),
    (group_norm, standardized, (8, 14, 14), (8,)),
    (group_norm, standardized, (32,), (32,)),
    (instance_norm, standardized, (6, 28, 28), (6,)),
    (normalize_channels, over_length, (32, 5), ()),
]


def integer_norm(function, normalize, source, output, weight, bias):
    if function in (group_norm, instance_norm):
        groups = 4 if function is group_norm else None
        return IntegerNormalization(source, output, normalize, None, groups, weight, bias, 1e-5)
    if function is normalize_channels:
        return IntegerNormalization(source, output, normalize, (1,), eps=1e-24)
    dims, eps = tuple(range(-weight.dim(), 0)), 1e-5 if normalize is standardized else 1e-6
    bias = bias if normalize is standardized else None
    return IntegerNormalization(source, output, normalize, dims, None, weight, bias, eps)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("function", "normalize", "shape", "parameters"), NORMS)
def test_a_norm_is_at_most_a_step_from_the_exact_one_and_rarely_that(
    function, normalize, shape, parameters, bits
):
    generator = torch.Generator().manual_seed(sum(shape))
    different = total = 0
    for _ in range(20):
        source, output = random_grid(generator, bits=bits), random_grid(generator)
        weight, bias = (torch.randn(parameters, generator=generator) for _ in range(2))
        q = integers(source, 40, *shape, generator=generator)
        real = (q.double() - source.zero_point) * source.scale
        exact = function(real, weight.double(), bias.double())
        wanted = (exact / output.scale).round() + output.zero_point
        wanted = wanted.clamp(output.quant_min, output.quant_max).float()
        found = integer_norm(function, normalize, source, output, weight, bias)(q)
        assert float((found - wanted).abs().max()) <= 1
        different, total = different + int((found != wanted).sum()), total + q.numel()
    assert different < 0.001 * total


@pytest.mark.parametrize("normalize", [standardized, over_root_mean_square, over_length])
def test_norms_of_zeros_are_zero(normalize):
    grid = Grid(0.1, 3, -128, 127)
    norm = IntegerNormalization(grid, grid, normalize, (-1,))
    assert norm(torch.full((2, 5), 3.0)).unique().tolist() == [3.0]


def test_norms_of_images_without_a_batch_are_of_images():
    x = torch.randn(4, 9, 7)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.InstanceNorm2d(4, affine=True))
    original = copy.deepcopy(model)
    wrapper = PTCFxModule(model, bias_calibration_factor=0.0, verbose=False).calibrate([x])
    with torch.no_grad():
        assert float(sqnr(original(x), wrapper(x))) > 30


class Normalizations(nn.Module):
    def __init__(self, has_condition=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.norm, self.plain = nn.LayerNorm(16), nn.LayerNorm((16, 20), elementwise_affine=False)
        self.softmax, self.head = nn.Softmax(dim=1), nn.Conv2d(16, 4, 1)
        self.gamma = nn.Parameter(torch.rand(20))
        self.groups, self.images = nn.GroupNorm(4, 16), nn.InstanceNorm2d(16, affine=True)
        self.rms, self.has_condition = nn.RMSNorm(16), has_condition

    def forward(self, x):
        x = self.stem(x)
        if self.has_condition and x.shape[2] < 2:  # torch.fx cannot follow it
            return [x]
        tokens = x.flatten(2)
        return [
            self.groups(x) + 0.5,
            F.group_norm(tokens, 2, self.groups.weight).tanh(),
            self.head(self.images(x)),
            F.instance_norm(tokens).sigmoid(),
            self.head(self.rms(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
            F.rms_norm(tokens, (16, 20)).tanh(),
            self.head(F.normalize(x)),
            F.normalize(tokens, dim=-1, eps=1e-3) @ tokens.transpose(1, 2),
            self.norm(tokens.transpose(1, 2)) + 0.5,
            self.plain(tokens.squeeze(-1)).sigmoid(),
            F.layer_norm(tokens, (20,), self.gamma, eps=1e-3).tanh(),
            self.head(self.softmax(x)),
            self.head(torch.softmax(x, -1)),
            self.head(x.softmax(dim=2)),
        ]


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_normalizations_are_integers_in_evaluation_and_in_files(preset, tmp_path):
    torch.manual_seed(0)
    model, x = Normalizations(preset == "WC8P2_AT8P2"), torch.randn(4, 3, 5, 4)
    wrapper = PTCFxModule(model, qconfig_type=preset, example_inputs=x, verbose=False)
    wrapper.calibrate([x])
    assert not build_report(wrapper, [x]).floats
    for form in ("QDQ_MODEL", "INT_MODEL"):
        is_qdq = form == "QDQ_MODEL"  # an open batch size takes the exporter half as long again
        path = wrapper.export(x, tmp_path / f"{form}.onnx", format=form, dynamic_batch=is_qdq)
        assert_equal(verify(wrapper, [x, torch.randn_like(x)], path), preset)


# ---- what stays in float ------------------------------------------------------------------------


def test_infinite_masks_pass_through():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(12, 12), nn.Linear(12, 4)

        def forward(self, x):
            q = self.inner(x)
            hidden = torch.ones(20, 20, dtype=torch.bool).triu(1)
            scores = (q @ q.transpose(1, 2) / 4).masked_fill(hidden, float("-inf"))
            return self.head(scores.softmax(-1) @ q)

    x = torch.randn(8, 20, 12)
    wrapper = PTCFxModule(Masked(), example_inputs=x, verbose=False).calibrate([x])
    assert bool(wrapper(x).isfinite().all())


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize(
    "integers", [lambda x: x.argmax(1) + 1, lambda x: x.flatten(1).topk(3)[1] // 2]
)
def test_numbers_on_integers_stay_integers(integers, example):
    class Places(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)

        def forward(self, x):
            x = self.stem(x)
            return x, integers(x)

    x = torch.randn(4, 3, 5, 5)
    wrapper = PTCFxModule(Places(), example_inputs=x if example else None, verbose=False)
    _, places = wrapper.calibrate([x])(x)
    assert places.dtype == torch.int64


@pytest.mark.parametrize(
    "scale", [lambda x: x * x.shape[0], lambda x: x.size(0) * x, lambda x: x / x.size()[0]]
)
def test_the_batch_size_is_no_number_of_a_table(scale, tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.head(scale(self.stem(x)))

    x = torch.randn(4, 3, 5, 5)
    wrapper = PTCFxModule(Scaled(), example_inputs=x, verbose=False).calibrate([x])
    assert not [m for m in wrapper.convert().modules() if isinstance(m, IntegerTable)]
    path = wrapper.export(x, tmp_path / "m.onnx")
    found = verify(wrapper, [torch.randn(6, 3, 5, 5)], path).mismatches
    assert found["integer graph vs ONNX Runtime, optimizations on"] == 0
