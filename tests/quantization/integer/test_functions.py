"""Functions, softmax and layer norm of integers: near the exact value, equal everywhere."""

from __future__ import annotations

import copy
import pickle

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization import GenericTinyMLPTQFxModule, PTCFxModule
from edgeailite.quantization.arithmetic.sqnr import sqnr
from edgeailite.quantization.export import functions as written
from edgeailite.quantization.graph.pointwise import POINTWISE
from edgeailite.quantization.graph.registry import calls_of
from edgeailite.quantization.integer.grid import Dequantize, Grid, Quantize
from edgeailite.quantization.integer.normalizations import IntegerLayerNorm, IntegerSoftmax
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


def random_grid(generator, signed=None):
    scale = float(torch.rand((), generator=generator) * 0.1 + 0.002)
    signed = bool(torch.randint(2, (), generator=generator)) if signed is None else signed
    low, high = (-128, 127) if signed else (0, 255)
    zero = int(torch.randint(low, high + 1, (), generator=generator))
    return Grid(float(torch.tensor(scale)), zero, low, high, 8, signed)


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
        path = wrapper.export(x, tmp_path / f"{form}.onnx", format=form)
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


def test_a_function_of_16_bit_values_stays_in_float_with_its_reason():
    x = torch.randn(4, 3, 9, 7)
    wrapper = PTCFxModule(
        Functions(["silu"]),
        qconfig_type={"weight": {"bitwidth": 8}, "activation": {"bitwidth": 16}},
        example_inputs=x,
        verbose=False,
    ).calibrate([x])
    (entry,) = build_report(wrapper, [x]).floats.values()
    assert entry.reason == "a function of a value with more than 8 bits has no table"


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


@pytest.mark.parametrize("count", [2, 49, 197, 1024])
def test_softmax_is_at_most_a_step_from_the_exact_one_and_rarely_that(count):
    generator = torch.Generator().manual_seed(count)
    different = total = 0
    for _ in range(20):
        source = random_grid(generator)
        output = Grid(2.0**-8, 0, 0, 255, 8, False)
        q = integers(source, 400, count, generator=generator)
        exact = torch.softmax(Dequantize(source)(q).double(), -1)
        wanted = (exact * 256).round().clamp(0, 255).float()
        found = IntegerSoftmax(source, output, -1)(q)
        assert float((found - wanted).abs().max()) <= 1
        different, total = different + int((found != wanted).sum()), total + q.numel()
    assert different < 0.001 * total


@pytest.mark.parametrize("shape", [(8,), (16, 6), (768,), (1536,)])
def test_layer_norm_is_at_most_a_step_from_the_exact_one_and_rarely_that(shape):
    generator = torch.Generator().manual_seed(shape[0])
    different = total = 0
    for _ in range(20):
        source, output = random_grid(generator), random_grid(generator)
        weight, bias = (torch.randn(shape, generator=generator) for _ in range(2))
        q = integers(source, 40, *shape, generator=generator)
        real = Dequantize(source)(q).double()
        exact = F.layer_norm(real, shape, weight.double(), bias.double(), 1e-5)
        wanted = (exact / output.scale).round() + output.zero_point
        wanted = wanted.clamp(output.quant_min, output.quant_max).float()
        found = IntegerLayerNorm(source, output, shape, weight, bias, 1e-5)(q)
        assert float((found - wanted).abs().max()) <= 1
        different, total = different + int((found != wanted).sum()), total + q.numel()
    assert different < 0.001 * total


class Normalizations(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.norm, self.plain = nn.LayerNorm(16), nn.LayerNorm((16, 20), elementwise_affine=False)
        self.softmax, self.head = nn.Softmax(dim=1), nn.Conv2d(16, 4, 1)
        self.gamma = nn.Parameter(torch.rand(20))

    def forward(self, x):
        x = self.stem(x)
        tokens = x.flatten(2)
        return [
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
    x = torch.randn(4, 3, 5, 4)
    wrapper = PTCFxModule(Normalizations(), qconfig_type=preset, example_inputs=x, verbose=False)
    wrapper.calibrate([x])
    assert not build_report(wrapper, [x]).floats
    for form in ("QDQ_MODEL", "INT_MODEL"):
        path = wrapper.export(x, tmp_path / f"{form}.onnx", format=form)
        assert_equal(verify(wrapper, [x, torch.randn_like(x)], path), preset)


# ---- what stays in float ------------------------------------------------------------------------


class Attention(nn.Module):
    """Each token looks at itself and those before it."""

    def __init__(self, mask):
        super().__init__()
        self.inner, self.head = nn.Linear(12, 12), nn.Linear(12, 4)
        self.register_buffer("mask", torch.ones(20, 20).triu(1) * mask)

    def forward(self, x):
        q = self.inner(x)
        scores = q @ q.transpose(1, 2) / 4
        if self.mask[0, 1].isinf():
            scores = scores.masked_fill(self.mask.isinf(), float("-inf"))
        else:
            scores = scores + self.mask
        return self.head(scores.softmax(-1) @ q)


@pytest.mark.parametrize("mask", [-100.0, -65504.0, -1e30])
def test_a_mask_does_not_take_the_integers_of_the_values(mask):
    torch.manual_seed(0)
    model, x = Attention(mask), torch.randn(8, 20, 12)
    original = copy.deepcopy(model)
    wrapper = PTCFxModule(model, example_inputs=x, verbose=False).calibrate([x])
    with torch.no_grad():
        found, wanted = wrapper(x), original(x)
    assert float(sqnr(wanted, found)) > 30
    (softmax,) = (e for e in build_report(wrapper, [x]).floats.values() if e.operation == "softmax")
    assert softmax.reason == "an operand lies on no grid, so the arithmetic is float"


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


def test_a_sum_with_parameters_in_front_of_a_softmax_lies_on_a_grid():
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.bias = nn.Linear(12, 12), nn.Parameter(torch.randn(12))

        def forward(self, x):
            return (self.inner(x) + self.bias).softmax(-1)

    x = torch.randn(8, 12)
    wrapper = PTCFxModule(Biased(), example_inputs=x, verbose=False).calibrate([x])
    assert [e.operation for e in build_report(wrapper, [x]).floats.values()] == ["add"]


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
