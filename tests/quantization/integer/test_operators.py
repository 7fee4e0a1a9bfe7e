import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeailite.quantization.arithmetic.spec import BiasSpec, QuantSpec
from edgeailite.quantization.integer.grid import (
    ApplyScale,
    Dequantize,
    Grid,
    Quantize,
    Requantize,
    has_kernel,
)
from edgeailite.quantization.integer.layer import EXACT_IN_FLOAT32, IntegerLayer
from edgeailite.quantization.integer.operators import IntegerAdd, IntegerMul
from edgeailite.quantization.modules.layer import QuantLayer
from tests.quantization.arithmetic.test_fold import LAYERS

S8 = Grid(2.0**-5, 0, -128, 127)
U8 = Grid(2.0**-6, 0, 0, 255, signed=False)


def integer_layer(name, weight_bits, grid, output=None, bias_limit=1000, per_channel=True):
    layer = LAYERS[name]()
    layer = QuantLayer.from_float(layer, QuantSpec(bit_width=weight_bits, signed=True), BiasSpec())
    limit = 1 << (weight_bits - 1)
    weight = torch.randint(-limit, limit, layer.weight.shape)
    channels = layer.rows(weight).shape[0]
    bias = torch.randint(-bias_limit, bias_limit, (channels,))
    scale = torch.full((channels,), 2.0**-7)
    if per_channel:
        scale = scale * 2.0 ** torch.randint(-2, 3, (channels,))
    return IntegerLayer(layer, weight, bias, scale, grid, output), weight, bias


def float_layer(name, x, weight, bias):
    """What torch's own layer computes in float64, which holds all these integers."""
    module = LAYERS[name]().double()
    given = {"weight": weight.double()}
    if module.bias is not None:
        given["bias"] = torch.zeros_like(module.bias)
    y = torch.func.functional_call(module, given, (x,))
    axes = max(weight.dim() - 2, 0)
    return y + bias.double().reshape(-1, *[1] * axes)


def image(name, grid):
    layer = LAYERS[name]()
    shape = (2, 4, *[6] * (layer.weight.dim() - 2))
    return torch.randint(grid.quant_min, grid.quant_max + 1, shape).float()


@given(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=30))
def test_quantize_then_dequantize_is_within_half_a_step(values):
    x = torch.tensor(values)
    for grid in (S8, U8, Grid(0.1, 3, -128, 127), Grid(0.03, 200, 0, 255, signed=False)):
        q = Quantize(grid)(x)
        assert bool((q == q.round()).all())
        assert grid.quant_min <= float(q.min()) <= float(q.max()) <= grid.quant_max
        low, high = ((v - grid.zero_point) * grid.scale for v in (grid.quant_min, grid.quant_max))
        error = (Dequantize(grid)(q) - x.clamp(low, high)).abs()
        assert float(error.max()) <= grid.scale * 0.5001


def test_steps_and_requantize_between_grids():
    q = torch.arange(-128.0, 128.0)
    wide = Grid(2.0**-3, 10, -128, 127)
    centered = Dequantize(S8, scaled=False)(q)
    assert torch.equal(centered, q)
    assert torch.equal(ApplyScale(S8)(centered), q * 2.0**-5)
    assert torch.equal(Dequantize(S8)(q), q * 2.0**-5)
    expected = (torch.round(q * 0.25) + 10).clamp(-128, 127)
    assert torch.equal(Requantize(wide)(q * 0.25), expected)
    assert torch.equal(Quantize(wide)(Dequantize(S8)(q)), expected)
    assert torch.equal(Requantize(S8, moved=True)(q), q)


A8 = Grid(0.037, 7, 0, 255, signed=False)
B8 = Grid(0.021, 131, 0, 255, signed=False)


def test_integer_add_is_exact_for_powers_of_two():
    a, b = torch.cartesian_prod(torch.arange(-128.0, 128.0), torch.arange(-128.0, 128.0)).T
    fine, output = Grid(2.0**-7, 0, -128, 127), Grid(2.0**-4, 0, -128, 127)
    # (a / 32 + b / 128) * 16, exact in float32
    expected = torch.round((4 * a + b) / 8).clamp(-128, 127)
    assert torch.equal(IntegerAdd(S8, fine, output)(a, b), expected)


def test_integer_add_rounds_to_the_nearest_step_for_free_scales():
    a, b = torch.cartesian_prod(torch.arange(256.0), torch.arange(256.0)).T
    output = Grid(0.05, 60, 0, 255, signed=False)
    real = (a.double() - 7) * 0.037 + (b.double() - 131) * 0.021
    error = (IntegerAdd(A8, B8, output)(a, b).double() - (real / 0.05 + 60).clamp(0, 255)).abs()
    assert float(error.max()) < 0.5 + 1e-4


def test_integer_mul_rounds_to_the_nearest_step():
    a, b = torch.cartesian_prod(torch.arange(256.0), torch.arange(256.0)).T
    output = Grid(0.25, 60, 0, 255, signed=False)
    real = (a.double() - 7) * 0.037 * ((b.double() - 131) * 0.021)
    error = (IntegerMul(A8, B8, output)(a, b).double() - (real / 0.25 + 60).clamp(0, 255)).abs()
    assert float(error.max()) < 0.5 + 1e-4


@pytest.mark.parametrize(
    ("grids", "applies"),
    [
        ((A8, B8, U8), True),
        ((S8, S8, S8), True),
        ((A8, S8, U8), False),
        ((A8, B8, Grid(0.1, 0, 0, 127, signed=False)), False),
        ((A8, B8, Grid(0.1, 0, 0, 255, signed=False, rounding="half_up")), False),
    ],
)
def test_kernels_exist_for_one_type_and_whole_grids(grids, applies):
    assert has_kernel(*grids[:2], output=grids[2]) is applies


@pytest.mark.parametrize("rounding", ["half_even", "half_up", "half_away"])
def test_rounding_of_ties(rounding):
    grid = Grid(1.0, 0, -128, 127, rounding=rounding)
    expected = {"half_even": [-2, 0, 2], "half_up": [-1, 1, 3], "half_away": [-2, 1, 3]}
    assert Quantize(grid)(torch.tensor([-1.5, 0.5, 2.5])).tolist() == expected[rounding]
    assert Requantize(grid)(torch.tensor([-1.5, 0.5, 2.5])).tolist() == expected[rounding]


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("weight_bits", "grid"), [
    (8, S8), (4, U8), (16, S8), (8, Grid(0.1, -7, -128, 127)),
    (16, Grid(2.0**-12, 0, -(2**15), 2**15 - 1, 16)),
])  # fmt: skip
@pytest.mark.parametrize("name", list(LAYERS))
def test_accumulators_are_exact(name, weight_bits, grid, per_channel):
    """The same as in Python's sense: whole numbers in int64, by float64 which holds them all."""
    layer, weight, bias = integer_layer(name, weight_bits, grid, per_channel=per_channel)
    x = image(name, grid)
    exact = float_layer(name, x.double() - grid.zero_point, weight, bias)
    assert torch.equal(layer.accumulate(layer.input(x)), exact.float())
    scales = layer.weight_scale.double() * torch.tensor(grid.scale).double()
    if scales.dim():
        scales = scales.reshape(-1, *[1] * (weight.dim() - 2)) if weight.dim() > 2 else scales
    torch.testing.assert_close(layer(x).double(), exact * scales, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", list(LAYERS))
def test_output_is_a_shift_of_the_accumulator(name):
    layer, weight, bias = integer_layer(name, 8, S8, U8, per_channel=False)
    x = image(name, S8)
    multiplier = 2.0**-5 * 2.0**-7 / 2.0**-6
    expected = torch.round(float_layer(name, x.double(), weight, bias) * multiplier).clamp(0, 255)
    assert torch.equal(layer(x).double(), expected)


@pytest.mark.parametrize("name", ["conv2d", "linear", "transposed_grouped2d"])
@pytest.mark.parametrize("bits", [9, 12, 16])
def test_weight_digits_add_up_and_each_is_exact_in_float32(bits, name):
    layer, weight, _ = integer_layer(name, bits, Grid(2.0**-12, 0, -(2**15), 2**15 - 1, 16))
    digits = layer._weight_digits().double()
    base = 2 ** (16 // digits.shape[0])
    assert torch.equal(sum(d * base**i for i, d in enumerate(digits)), weight.double())
    for digit in digits:
        assert float(layer.operation.rows(digit).abs().sum(1).max()) * 256 < EXACT_IN_FLOAT32


def test_layers_with_many_inputs_take_smaller_digits():
    layer = torch.nn.Linear(5000, 1)
    layer = QuantLayer.from_float(layer, QuantSpec(bit_width=16, signed=True), BiasSpec())
    weight = torch.full((1, 5000), 2**14 - 1)
    converted = IntegerLayer(layer, weight, None, torch.ones(1), S8, None)
    assert converted.weight_digits.shape[0] == 4
    assert converted._weight_digits().abs().sum() > 0


@pytest.mark.parametrize("name", list(LAYERS))
def test_digits_compute_the_same_accumulator(name):
    grid = Grid(2.0**-12, 0, -(2**15), 2**15 - 1, 16)
    layer, weight, bias = integer_layer(name, 16, grid)
    x = image(name, grid)
    assert layer.bound >= EXACT_IN_FLOAT32
    expected = float_layer(name, x.double(), weight, bias).float()
    assert torch.equal(layer._accumulate_digits(layer.input(x), None), expected)


def test_state_dict_restores_grids_and_exactness():
    torch.manual_seed(1)
    source, _, _ = integer_layer("conv2d", 16, Grid(0.25, 0, -(2**15), 2**15 - 1, 16), U8)
    target, _, _ = integer_layer("conv2d", 16, Grid(0.5, 0, -8, 7, 16), S8)
    target.load_state_dict(source.state_dict())
    assert target.input.grid == source.input.grid
    assert target.output.grid == U8
    assert target.bound == source.bound
    x = image("conv2d", source.input.grid)
    assert torch.equal(target(x), source(x))
    twin = copy.deepcopy(source)
    assert torch.equal(twin(x), source(x))


def test_grid_properties():
    assert S8.dtype is torch.int8
    assert U8.dtype is torch.uint8
    assert Grid(1.0, 0, -8, 7, 4).is_narrow
    assert not S8.is_narrow
    assert Grid(1.0, 100, 0, 255, signed=False).max_magnitude == 155
    assert not Grid(1.0, 0, -128, 127, rounding="half_up").has_onnx_form
    assert not Grid(1.0, 0, -(2**15), 2**15 - 1, 16).has_onnx_form
