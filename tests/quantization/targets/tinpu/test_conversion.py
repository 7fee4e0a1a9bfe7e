import copy
import math
import pickle

import onnx
import pytest
import torch
from torch import nn

from edgeailite.quantization import (
    GenericTinyMLPTQFxModule,
    GenericTinyMLQATFxModule,
    TINPUTinyMLPTQFxModule,
    TINPUTinyMLQATFxModule,
)
from edgeailite.quantization.modules.pact2 import NoQAct
from edgeailite.quantization.targets.tinpu.operators import OffsetScaleShiftLayer, Saturate
from tests.quantization.bundle import bundle, by_network, inputs_of
from tests.quantization.helpers import run_onnx
from tests.quantization.tinyml_networks import NETWORKS, trained

pytestmark = pytest.mark.filterwarnings("ignore:.*the NPU computes.*:UserWarning")


ONES = [slice(i, i + 1) for i in range(3)]


def integer_equals_simulation(wrapper, x, real, name=None):
    with torch.no_grad():
        simulated = wrapper(x)
    converted = wrapper.convert(**real)
    integer = converted(x)
    assert integer.unique().numel() > 5  # a comparison of constants would say nothing
    assert torch.equal(simulated, integer), name
    return converted, integer


def assert_equal_everywhere(wrappers, folder, real):
    """Simulation, integer graph and ONNX Runtime, of networks by name in one file."""
    networks, expected = {}, {}
    for name, (wrapper, x) in wrappers.items():
        converted, expected[name] = integer_equals_simulation(wrapper, x, real, name)
        networks[name] = converted, (x,)
    file = bundle(networks).export(inputs_of(networks, slice(1)), folder / "m.onnx")
    for level, part in [("off", slice(None)), ("on", slice(None)), *(("on", one) for one in ONES)]:
        found = by_network(networks, run_onnx(file, inputs_of(networks, part), level))
        equal = {name: torch.equal(y, expected[name][part]) for name, (y,) in found.items()}
        assert all(equal.values()), (level, part, equal)


GROUPS = 4
in_groups = pytest.mark.parametrize("names", [list(NETWORKS)[i::GROUPS] for i in range(GROUPS)])


@in_groups
def test_simulation_integer_graph_and_onnx_runtime_agree(names, tmp_path):
    wrappers = {name: trained(name, TINPUTinyMLQATFxModule) for name in names}
    assert_equal_everywhere(wrappers, tmp_path, {"output_int": False})


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_simulation_and_integer_graph_agree_for_other_weights(name, seed):
    wrapper, x = trained(name, TINPUTinyMLQATFxModule, seed)
    integer_equals_simulation(wrapper, x, {"output_int": False})


TERNARY = [
    "global_12",
    "flatten",
    "residual_relu_conv",
    "concat",
    "depthwise",
    "conv1d",
    "sequence",
]


@pytest.mark.parametrize(
    ("names", "bits"),
    [*((list(NETWORKS)[i::GROUPS], 4) for i in range(GROUPS)), (TERNARY, 2)],
)
def test_they_agree_with_fewer_bits(names, bits, tmp_path):
    wrappers = {name: trained(name, TINPUTinyMLQATFxModule, 0, bits) for name in names}
    assert_equal_everywhere(wrappers, tmp_path, {"output_int": False})


@in_groups
def test_they_agree_for_the_generic_target(names, tmp_path):
    wrappers = {name: trained(name, GenericTinyMLQATFxModule) for name in names}
    assert_equal_everywhere(wrappers, tmp_path, {})


@pytest.mark.parametrize("bits", [8, 4])
def test_they_agree_with_operations_in_float(bits, tmp_path):
    wrappers = {
        str(kept): trained("input_norm", TINPUTinyMLQATFxModule, 0, bits, float_ops=kept)
        for kept in (True, ["fb"], ["qdq"])
    }
    assert_equal_everywhere(wrappers, tmp_path, {"output_int": False})


@pytest.mark.parametrize(
    ("wrapper_type", "real"),
    [(TINPUTinyMLPTQFxModule, {"output_int": False}), (GenericTinyMLPTQFxModule, {})],
)
def test_they_agree_after_calibration_alone(wrapper_type, real, tmp_path):
    names = ("residual_relu_pool", "input_norm", "conv1d")
    assert_equal_everywhere({n: trained(n, wrapper_type) for n in names}, tmp_path, real)


class Kept(nn.Module):
    """Float values in front of a layer, an average and a batch norm."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.keep, self.keep2, self.keep3 = NoQAct(), NoQAct(), NoQAct()
        self.pool, self.norm = nn.AvgPool1d(2), nn.BatchNorm1d(4)

    def forward(self, x):
        y = self.keep2(self.second(self.keep(self.first(x))))
        return self.norm(self.pool(self.keep3(self.third(y)).unsqueeze(1)).squeeze(1))


@pytest.mark.parametrize("bits", [8, 4])
def test_values_kept_in_float_are_rounded_once(bits):
    wrapper = TINPUTinyMLPTQFxModule(Kept(), {"weight": {"bitwidth": bits}}, verbose=False)
    x = torch.randn(64, 6)
    wrapper.calibrate([x])
    with torch.no_grad():
        difference = (wrapper.convert(output_int=False)(x) - wrapper(x)).abs().max()
    step = wrapper.module.get_submodule("norm.activation_q").qparams().scale
    assert difference <= step  # float sums: a tie may fall either way, but no half step is lost


def test_integers_come_out_unless_real_values_are_asked_for():
    wrapper, x = trained("flatten", TINPUTinyMLQATFxModule)
    integers = wrapper.convert()(x)
    assert torch.equal(integers, integers.round())
    assert -128 <= integers.min() < 0 < integers.max() <= 127
    scale = wrapper.module.get_submodule("3.activation_q").qparams().scale
    torch.testing.assert_close(wrapper.convert(output_int=False)(x), integers * scale)


def test_an_add_without_relu_is_clipped_as_signed_integers():
    wrapper, _ = trained("residual_flatten", TINPUTinyMLQATFxModule)
    sums = [m for p, m in wrapper.module.named_modules() if p.startswith("add_q")]
    assert [q.spec.signed for q in sums] == [True, True]
    clips = [m for m in wrapper.convert().module.modules() if isinstance(m, Saturate)]
    assert {(m.grid.quant_min, m.grid.quant_max) for m in clips} == {(-128, 127)}


def test_a_sum_of_positive_values_is_unsigned():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return torch.relu(self.a(x)) + torch.relu(self.b(x))

    wrapper = TINPUTinyMLQATFxModule(Twice(), total_epochs=1, verbose=False)
    assert wrapper.module.get_submodule("add_q").spec.signed is False


def test_a_converted_model_copies_pickles_and_loads():
    wrapper, x = trained("residual_relu_pool", TINPUTinyMLQATFxModule)
    converted = wrapper.convert()
    expected = converted(x)
    assert torch.equal(copy.deepcopy(converted)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(converted))(x), expected)
    other, _ = trained("residual_relu_pool", TINPUTinyMLQATFxModule, seed=1)
    loaded = other.convert()
    assert not torch.equal(loaded(x), expected)
    loaded.load_state_dict(converted.state_dict())
    assert torch.equal(loaded(x), expected)


def test_no_sum_needs_more_than_24_bits():
    network = nn.Sequential(nn.Linear(4096, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.uniform_(network[0].weight, 0.5, 1.0)
    wrapper = TINPUTinyMLPTQFxModule(network, verbose=False).calibrate([torch.rand(8, 4096)])
    x = torch.rand(16, 4096)
    with torch.no_grad():
        assert torch.equal(wrapper.convert(output_int=False)(x), wrapper(x))
    layer = next(m for m in wrapper.convert().modules() if isinstance(m, OffsetScaleShiftLayer))
    sums = layer.weight.abs().sum(1) * layer.source.max_magnitude + layer.output.offset.abs()
    assert sums.max() < 2**24


def test_tiny_inputs_are_quantized_exactly(tmp_path):
    network = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
    wrapper = TINPUTinyMLPTQFxModule(network, verbose=False)
    x = torch.randn(64, 6) * 1e-3
    wrappers = {"tiny": (wrapper.calibrate([x]), x)}
    assert_equal_everywhere(wrappers, tmp_path, {"output_int": False})


def test_a_factor_out_of_reach_has_a_clear_error():
    network = nn.Sequential(nn.Linear(4, 4), nn.Hardtanh(-1e-5, 1e-5), nn.Linear(4, 2))
    nn.init.constant_(network[0].weight, 1e3)
    wrapper = TINPUTinyMLPTQFxModule(network, verbose=False).calibrate([torch.randn(8, 4)])
    with pytest.raises(ValueError, match=r"Layer '0': The factor .* no multiplier of 8 bits"):
        wrapper.convert()


def test_a_batch_norm_out_of_reach_has_a_clear_error():
    network = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4), nn.Hardtanh(-1e-5, 1e-5))
    wrapper = TINPUTinyMLPTQFxModule(network, verbose=False).calibrate([torch.randn(8, 4)])
    with pytest.raises(ValueError, match="Batch norm '1' multiplies with up to"):
        wrapper.convert()


def test_a_wrapper_is_not_changed_by_its_conversion():
    wrapper, _ = trained("conv1d", TINPUTinyMLQATFxModule)
    before = {k: v.clone() for k, v in wrapper.module.state_dict().items()}
    wrapper.target.convert(wrapper.module)
    assert all(torch.equal(before[k], v) for k, v in wrapper.module.state_dict().items())


def test_every_layer_is_written_as_the_compiler_matches_it(tmp_path):
    wrapper, x = trained("input_norm", TINPUTinyMLQATFxModule)
    wrapper.export(x[:1], tmp_path / "m.onnx", input_names=["input"])
    graph = onnx.load(tmp_path / "m.onnx").graph
    sequence = ["Add", "Mul", "Floor", "Clip"]
    wanted = [*sequence, "Conv", *sequence, "ReduceSum", *sequence, "Reshape", "Gemm", *sequence]
    assert [node.op_type for node in graph.node] == wanted
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    assert all(len(n.input) == 2 for n in graph.node if n.op_type in ("Conv", "Gemm"))
    for name in ("1.0.weight", "1.0.offset", "4.weight", "4.offset"):
        assert (tensors[name] == tensors[name].round()).all()
        assert tensors[name].dtype == "float32"
    assert {math.frexp(f)[0] for f in tensors["1.0.factor"].flatten()} == {0.5}  # 8 bits: a shift
