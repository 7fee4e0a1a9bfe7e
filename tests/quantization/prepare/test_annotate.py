import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization.arithmetic.presets import get_preset
from edgeailite.quantization.arithmetic.spec import BiasSpec, QConfig, QuantSpec
from edgeailite.quantization.graph.calls import operation_of, traits_of
from edgeailite.quantization.graph.capture import capture
from edgeailite.quantization.graph.operations import (
    ADD,
    BATCH_NORM,
    CAT,
    INPUT,
    MUL,
    RELU,
    SUB,
)
from edgeailite.quantization.modules.pact2 import NoQAct, QAct
from edgeailite.quantization.prepare.annotate import annotate
from edgeailite.quantization.prepare.policy import Policy
from edgeailite.quantization.targets.registry import get_target
from edgeailite.quantization.targets.tinpu.target import Tinpu
from tests.quantization.zoo import ZOO, Dense, Residual, SharedUnit, WeightStandardization

PACT2 = get_preset("PACT2")
ALL = QConfig(weight=QuantSpec(signed=True, granularity="per_channel"))
DEPTHWISE = QConfig(weight=ALL.weight, per_channel_depthwise_only=True)


def annotated(model, qconfig=PACT2, **options):
    graph = capture(model)
    annotate(graph, Policy(qconfig, **options), get_target("tidl"))
    return graph


def paths(graph):
    return {n.name: n.meta["quant"].path for n in graph.graph.nodes if "quant" in n.meta}


def granularities(graph):
    return [
        n.meta["layer"].qconfig.weight.granularity for n in graph.graph.nodes if "layer" in n.meta
    ]


def test_documented_paths():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    )
    found = list(paths(annotated(model)).values())
    assert found == ["0.activation_in", "2", "4.activation_q"]


def test_an_input_read_by_an_absorbed_relu_has_its_quantizer_at_the_root():
    found = list(paths(annotated(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 1)))).values())
    assert found == ["activation_in", "0", "1.activation_q"]


def test_convolution_batch_norm_relu_is_one_unit():
    graph = annotated(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))
    layer = next(n for n in graph.graph.nodes if traits_of(n).has_weight)
    assert operation_of(layer.meta["layer"].batch_norm) is BATCH_NORM
    assert [operation_of(n) for n in graph.graph.nodes if "quant" in n.meta] == [
        INPUT,
        RELU,
    ]


def test_a_shared_relu_replaces_the_module_at_its_first_call_only():
    graph = annotated(Residual())
    relus = [n.meta["quant"] for n in graph.graph.nodes if operation_of(n) is RELU]
    assert [a.path for a in relus] == ["relu"] * 3
    assert [a.replaces_module for a in relus] == [True, False, False]


def test_a_shared_batch_norm_is_not_folded():
    graph = annotated(SharedUnit())
    annotations = [n.meta["layer"] for n in graph.graph.nodes if "layer" in n.meta]
    assert [a.batch_norm is None for a in annotations] == [True, True, True]


def test_batch_norm_in_front_of_a_convolution_is_an_operation_of_its_own():
    graph = annotated(Dense())
    norms = [n for n in graph.graph.nodes if operation_of(n) is BATCH_NORM]
    assert len(norms) == 3
    assert not any("quant" in n.meta for n in norms)  # the ReLU behind each is its quantizer


def test_moves_share_their_inputs_grid():
    graph = annotated(ZOO["shuffle_unit"].make())
    moves = [n for n in graph.graph.nodes if traits_of(n).moves_values]
    assert moves
    assert not any("quant" in n.meta for n in moves)


INF = math.inf
CLAMPS = {
    "relu6": (nn.ReLU6(), (0.0, 6.0), False),
    "hardtanh": (nn.Hardtanh(-2, 2), (-2.0, 2.0), None),
    "wide hardtanh": (nn.Hardtanh(0, 1000), (0.0, 1000.0), False),
    "half precision": (lambda x: torch.clamp(x, -65504.0, 65504.0), (-65504.0, 65504.0), None),
    "from zero": (lambda x: x.clamp(0, INF), (0.0, INF), False),
    "no maximum": (lambda x: x.clamp(min=0.5), (0.5, INF), False),
    "no minimum": (lambda x: torch.clip(x, max=6), (-INF, 6.0), None),
}


class Behind(nn.Module):
    """A convolution and an activation function."""

    def __init__(self, activation):
        super().__init__()
        self.conv, self.activation = nn.Conv2d(3, 4, 1), activation

    def forward(self, x):
        return self.activation(self.conv(x))


@pytest.mark.parametrize(("activation", "bounds", "signed"), CLAMPS.values(), ids=CLAMPS)
def test_a_clamp_bounds_a_range_that_statistics_find(activation, bounds, signed):
    graph = annotated(Behind(activation))
    _, found = (n.meta["quant"] for n in graph.graph.nodes if "quant" in n.meta)
    assert (found.bounds, found.spec.fixed_range, found.spec.signed) == (bounds, None, signed)
    assert found.replaces_node


def test_a_sum_of_unsigned_values_is_unsigned():
    class Sums(nn.Module):
        def forward(self, x, y):
            a, b = F.relu(x), F.relu(y)
            return a + b, a - b, torch.cat([a, b]), torch.cat([a, y]), a * b

    graph = annotated(Sums())
    signed = {
        operation_of(n): n.meta["quant"].spec.signed
        for n in graph.graph.nodes
        if operation_of(n) in (ADD, SUB, MUL)
    }
    assert signed == {ADD: False, SUB: None, MUL: False}
    cats = [n.meta["quant"].spec.signed for n in graph.graph.nodes if operation_of(n) is CAT]
    assert cats == [False, None]


def test_quantize_in_and_out():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten())
    assert len(paths(annotated(model))) == 3
    assert "0.activation_in" not in paths(annotated(model, quantize_in=False)).values()
    assert "2.activation_q" not in paths(annotated(model, quantize_out=False)).values()


def test_forced_and_forbidden_places():
    forced = annotated(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh(), QAct()))
    assert "2.activation_q" in paths(forced).values()
    forbidden = annotated(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), NoQAct()))
    assert list(paths(forbidden).values()) == ["0.activation_in"]


def test_policy_by_path():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Conv2d(4, 2, 1))
    four = QConfig(weight=QuantSpec(bit_width=4, signed=True))
    graph = annotated(model, by_path={"0": None, "0.0": four})
    layers = {
        str(n.target): n.meta["layer"].qconfig for n in graph.graph.nodes if "layer" in n.meta
    }
    assert layers["0.0"].weight.bit_width == 4
    assert layers["1"].weight.bit_width == 8
    policy = Policy(PACT2, by_path={"a": None, "a.b": four})
    assert policy.of("a.c") is None
    assert policy.of("a.b.d") is four
    assert policy.of("ab") is PACT2


def test_per_channel_for_depthwise_only():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 8, 3, groups=2),
        nn.Conv2d(8, 1, 1),
    )
    assert granularities(annotated(model, DEPTHWISE)) == [
        "per_tensor", "per_channel", "per_tensor", "per_tensor"
    ]  # fmt: skip
    assert granularities(annotated(model, ALL)) == ["per_channel"] * 4


def test_per_channel_of_transposed_convolutions_only_where_onnx_can_write_it():
    model = nn.Sequential(
        nn.ConvTranspose2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3, groups=4),
        nn.ConvTranspose2d(4, 8, 3, groups=4), nn.ConvTranspose2d(8, 4, 3, groups=2),
    )  # fmt: skip
    expected = ["per_channel", "per_channel", "per_tensor", "per_tensor"]
    assert granularities(annotated(model, ALL)) == expected


def test_per_channel_of_functional_layers_reads_the_weights_shape():
    assert granularities(annotated(ZOO["functional_layers"].make(), DEPTHWISE)) == [
        "per_tensor", "per_channel", "per_tensor", "per_tensor"
    ]  # fmt: skip
    assert granularities(annotated(ZOO["functional_layers"].make(), ALL)) == [
        "per_channel", "per_channel", "per_tensor", "per_channel"
    ]  # fmt: skip


class WeightOfInput(nn.Module):
    def forward(self, x):
        return F.conv2d(x, x[:3, :, :1, :1])


def test_a_weight_that_is_computed_is_quantized_unless_it_depends_on_the_input():
    graph = annotated(nn.Sequential(nn.Conv2d(3, 3, 1), WeightStandardization(3, 3, 3)))
    assert len(granularities(graph)) == 2
    graph = annotated(nn.Sequential(nn.Conv2d(3, 3, 1), WeightOfInput()))
    assert len(granularities(graph)) == 1


def test_annotating_twice_changes_nothing():
    graph = annotated(Residual())
    before = {n: (n.meta.get("quant"), n.meta.get("layer")) for n in graph.graph.nodes}
    annotate(graph, Policy(PACT2), get_target("tidl"))
    assert before == {n: (n.meta.get("quant"), n.meta.get("layer")) for n in graph.graph.nodes}


def fixed_point_specs(model):
    graph = capture(model.eval())
    annotate(graph, Policy(QConfig()), Tinpu())
    return {n.name: n.meta["quant"].spec for n in graph.graph.nodes if "quant" in n.meta}, graph


class _Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.conv, self.bn = nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.bn(self.conv(self.norm(x)))
        z = F.relu(y) + y
        return torch.sigmoid(z * y).mean((2, 3))


def test_fixed_point_values_are_signed_unless_the_graph_says_otherwise():
    specs, _ = fixed_point_specs(_Mixed())
    signs = {name: spec.signed for name, spec in specs.items()}
    assert signs == {
        "norm": True,
        "bn": True,
        "relu": False,
        "mul": True,
        "add": True,
        "sigmoid": True,
        "mean": True,
    }


def test_raw_input_goes_to_the_batch_norm():
    specs, graph = fixed_point_specs(_Mixed())
    assert "x" not in specs
    modules = {n.name: n.meta["module"] for n in graph.graph.nodes if "module" in n.meta}
    assert list(modules) == ["norm", "mean"]
    assert modules["norm"].make.multiplier_bits == 12
    assert [specs[name].rounding for name in ("norm", "mean", "bn")] == [
        "floor",
        "floor",
        "half_even",
    ]


def test_operands_and_result_of_an_add_share_a_scale():
    _, graph = fixed_point_specs(_Mixed())
    shares = {n.name: n.meta["quant"].shares_scale for n in graph.graph.nodes if "quant" in n.meta}
    assert [name for name, yes in shares.items() if yes] == ["add"]


def test_weight_scales_have_as_few_bits_as_exact_sums_need():
    spec = QuantSpec(4, True, "per_channel", power_of_two=False, scale_bits=8, quant_range=(-7, 7))
    found = []
    for inputs in (16, 64, 512, 4096):
        graph = capture(nn.Sequential(nn.Linear(inputs, 3)))
        annotate(graph, Policy(QConfig(spec, bias=BiasSpec(16))), Tinpu())
        (node,) = [n for n in graph.graph.nodes if "layer" in n.meta]
        found.append(node.meta["layer"].qconfig.weight.scale_bits)
        assert 7 * 256 * inputs * 2 ** found[-1] < 2**24
    assert found == [8, 6, 4, 1]
