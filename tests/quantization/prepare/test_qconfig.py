import functools

import pytest
import torch
from torch import nn

from edgeailite.quantization import (
    PTCFxModule,
    QATFxModule,
    QConfig,
    QConfigType,
    QuantSpec,
)
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.prepare.qconfig import BACKENDS, make_policy, read_qconfig

ao = pytest.importorskip("torch.ao.quantization")
# torch.ao, about its own argument
pytestmark = pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning")

# name: weight bits, per channel, power of two | symmetric, power of two, percentile
TABLE = {
    "WC8_AT8": ((8, True, False), (False, False, True)),
    "MSA_WC8_AT8": ((8, True, False), (False, False, False)),
    "WT8SYMP2_AT8SYMP2": ((8, False, True), (True, True, True)),
    "WC8SYMP2_AT8SYMP2": ((8, True, True), (True, True, True)),
    "WC8SYMP2_AT8SYMP2R4": ((8, True, True), (True, True, True)),
    "WC8P2_AT8P2": ((8, True, True), (False, True, True)),
    "MSA_WC8P2_AT8P2": ((8, True, True), (False, True, False)),
    "WC4_AT8": ((4, True, False), (False, False, True)),
    "WC4M4_AT8": ((4, True, False), (False, False, True)),
    "WC4_AT4": ((4, True, False), (True, True, False)),
}


@pytest.mark.parametrize("name", list(TABLE))
def test_preset_is_the_documented_one(name):
    (bits, per_channel, weight_p2), (symmetric, activation_p2, percentile) = TABLE[name]
    qconfig = make_policy(name).qconfig
    weight, activation = qconfig.weight, qconfig.activation
    assert (weight.bit_width, weight.granularity == "per_channel") == (bits, per_channel)
    assert (weight.signed, weight.symmetric, weight.power_of_two) == (True, True, weight_p2)
    assert (weight.quant_min, weight.quant_max) == (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    assert (activation.symmetric, activation.power_of_two) == (symmetric, activation_p2)
    assert (activation.range_rule == "percentile") == percentile
    assert activation.range_shrink_percentile == 0.01
    if not symmetric:
        assert (activation.quant_min, activation.quant_max) == (0, 255)
    assert weight.range_max == (4.0 if name == "WC4M4_AT8" else None)
    fixed = (-4.0, 4.0) if name.endswith("R4") else None
    assert activation.fixed_range == fixed


def test_names_and_default():
    assert set(QConfigType.choices()) == {*TABLE, "DEFAULT", "DISABLED"}
    for default in (None, "DEFAULT", QConfigType.DEFAULT, QConfigType.WC8_AT8):
        assert make_policy(default) == make_policy("WC8_AT8")
    assert make_policy("DISABLED").qconfig is None


@pytest.mark.parametrize(("backend", "bits"), list(BACKENDS.items()))
def test_backend_limits_the_activations_of_a_preset(backend, bits):
    assert make_policy("WC8_AT8", backend).qconfig.activation.bit_width == bits
    own = QConfig()
    assert make_policy(own, backend).qconfig is own
    assert make_policy("DISABLED", backend).qconfig is None
    narrow = make_policy("WC4_AT4", backend).qconfig
    assert (narrow.activation.bit_width, narrow.end_bits) == (4, bits)


def test_unknown_names_list_what_is_accepted():
    with pytest.raises(ValueError, match=r"qconfig_type is 'WC9_AT9'; accepted: .*WC8_AT8"):
        make_policy("WC9_AT9")
    with pytest.raises(ValueError, match=r"backend is 'tpu'; allowed: qnnpack, onednn, x86"):
        make_policy("WC8_AT8", "tpu")
    with pytest.raises(TypeError, match=r"qconfig_type is a int; accepted: .*QConfigMapping"):
        make_policy(8)


# ---- dicts ---------------------------------------------------------------------------------------


def spec(role, **given):
    return getattr(make_policy({role: given}).qconfig, role)


def test_a_dict_changes_the_default_preset():
    policy = make_policy({"weight": {"bitwidth": 4}})
    default = make_policy("WC8_AT8").qconfig
    assert policy.qconfig.activation == default.activation
    assert policy.qconfig.weight == make_policy("WC4_AT8").qconfig.weight
    assert make_policy({}).qconfig == default


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"qscheme": torch.per_tensor_symmetric}, {"symmetric": True, "signed": None}),
        ({"qscheme": torch.per_tensor_affine}, {"symmetric": False}),
        ({"dtype": torch.qint8}, {"signed": True, "quant_min": -128}),
        ({"dtype": torch.quint8}, {"signed": None, "quant_min": 0}),
        ({"quant_min": 0, "quant_max": 127}, {"bit_width": 7, "quant_max": 127}),
        ({"quant_min": 0, "quant_max": 200}, {"quant_range": (0, 200), "quant_max": 200}),
        ({"power2_scale": True}, {"power_of_two": True}),
        ({"range_max": 6}, {"range_max": 6.0, "fixed_range": None}),
        ({"range_max": 4, "fixed_range": True}, {"fixed_range": (-4.0, 4.0)}),
        ({"fixed_range": (0, 6)}, {"fixed_range": (0.0, 6.0)}),
        (
            {"range_shrink_percentile": 0.1},
            {"range_rule": "percentile", "range_shrink_percentile": 0.1},
        ),
        ({"bitwidth": 6}, {"bit_width": 6, "quant_max": 63}),
    ],
)
def test_each_key_of_an_activation(given, expected):
    found = spec("activation", **given)
    assert {name: getattr(found, name) for name in expected} == expected


def test_keys_of_a_weight():
    narrow = spec("weight", quant_min=-127, quant_max=127)
    assert (narrow.bit_width, narrow.quant_min, narrow.quant_max) == (8, -127, 127)
    assert spec("weight", quant_min=-8, quant_max=7).bit_width == 4
    assert spec("weight", qscheme=torch.per_tensor_symmetric).granularity == "per_tensor"
    assert make_policy({"weight": None}).qconfig.weight is None
    own = QuantSpec(bit_width=5, signed=True)
    assert make_policy({"weight": own}).qconfig.weight is own


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": {}}, r"keys \['weights'\]; allowed: 'weight', 'activation'"),
        (
            {"weight": {"bits": 4}},
            r"'weight' of qconfig_type has the keys .*; allowed: bitw",
        ),
        ({"weight": {"qscheme": torch.per_tensor_affine}}, "weights without zero point"),
        ({"weight": {"qscheme": "symmetric"}}, "qscheme of 'weight' is symmetric; allowed"),
        ({"weight": {"dtype": torch.quint8}}, "dtype of 'weight' is torch.quint8; allowed"),
        ({"activation": {"qscheme": torch.per_channel_symmetric}}, "activations have one scale"),
        ({"activation": {"dtype": torch.float16}}, "dtype of 'activation' is torch.float16"),
        ({"activation": {"fixed_range": True}}, "it needs a range_max"),
        ({"activation": {"bitwidth": 1}}, "bit_width is 1; allowed"),
        ({"activation": {"quant_min": 5, "quant_max": 9}}, "quant_min <= 0 < quant_max"),
    ],
)
def test_wrong_dicts_say_what_is_allowed(given, message):
    with pytest.raises(ValueError, match=message):
        make_policy(given)


def test_a_part_that_is_no_dict_is_a_type_error():
    with pytest.raises(TypeError, match="'weight' of qconfig_type is a int; allowed: a dict"):
        make_policy({"weight": 8})


# ---- configurations of torch.ao, read by their attributes ----------------------------------------


def test_per_channel_qconfig_of_torch():
    found = read_qconfig(ao.default_per_channel_qconfig)
    assert (found.weight.granularity, found.weight.signed) == ("per_channel", True)
    assert (found.activation.bit_width, found.activation.symmetric) == (7, False)
    assert found.activation.range_rule == "min_max"


@pytest.mark.parametrize("backend", ["x86", "fbgemm", "qnnpack", "onednn"])
def test_qat_qconfigs_of_torch(backend):
    found = read_qconfig(ao.get_default_qat_qconfig(backend))
    assert found.weight.signed
    assert found.activation.quant_min == 0
    assert found.activation.symmetric is False


def test_weight_only_histogram_and_fixed_range():
    weight_only = ao.QConfig(
        activation=ao.PlaceholderObserver.with_args(dtype=torch.float32),
        weight=ao.default_weight_observer,
    )
    found = read_qconfig(weight_only)
    assert found.activation is None
    assert found.weight.granularity == "per_tensor"
    histogram = ao.QConfig(ao.HistogramObserver, ao.default_weight_observer)
    assert read_qconfig(histogram).activation.range_rule == "mse"
    fixed = ao.QConfig(ao.default_fixed_qparams_range_0to1_observer, ao.default_weight_observer)
    low, high = read_qconfig(fixed).activation.fixed_range
    assert low == 0.0
    assert high == pytest.approx(255 / 256)


def test_dynamic_quantization_is_refused():
    with pytest.raises(ValueError, match="quantized dynamically"):
        read_qconfig(ao.default_dynamic_qconfig)


def test_mapping_by_type_pattern_and_name():
    qat = ao.get_default_qat_qconfig("qnnpack")
    mapping = (
        ao.QConfigMapping()
        .set_global(qat)
        .set_object_type(nn.Linear, None)
        .set_object_type(torch.nn.functional.conv2d, ao.default_per_channel_qconfig)
        .set_module_name_regex(r"blocks\.\d+\.skip", None)
        .set_module_name("stem", None)
    )
    policy = make_policy(mapping)
    assert policy.of("body", nn.Conv2d) == read_qconfig(qat)
    assert policy.of("head", nn.Linear) is None
    assert policy.of("", torch.nn.functional.conv2d).activation.bit_width == 7
    assert policy.of("blocks.3.skip.conv", nn.Conv2d) is None
    assert policy.of("stem.conv", nn.Conv2d) is None


def test_mapping_by_type_and_order_is_refused():
    mapping = ao.QConfigMapping().set_module_name_object_type_order(
        "block", nn.Linear, 0, ao.default_per_channel_qconfig
    )
    with pytest.raises(ValueError, match="by object type and order; accepted: set_global"):
        make_policy(mapping)


def test_types_left_in_float_stay_float_layers():
    mapping = ao.QConfigMapping().set_global(ao.default_per_channel_qconfig)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(64, 2))
    mapping.set_object_type(nn.Linear, None)
    wrapper = QATFxModule(model, qconfig_type=mapping, total_epochs=2)
    assert type(wrapper.module.get_submodule("2")) is nn.Linear
    assert type(wrapper.module.get_submodule("0")) is not nn.Conv2d


def test_signed_integers_that_are_asked_for_stay_signed_behind_a_relu():
    given = {"activation": {"dtype": torch.qint8, "qscheme": torch.per_tensor_symmetric}}
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    wrapper = QATFxModule(model, qconfig_type=given, total_epochs=2).train()
    x = torch.randn(4, 3, 8, 8)
    wrapper(x)
    wrapper.eval()
    grid = wrapper.module.get_submodule("1").qparams()
    assert (int(grid.zero_point), grid.quant_min, grid.quant_max) == (0, -128, 127)
    values = wrapper.module.get_submodule("1")(torch.tensor([-3.0, 0.0, 0.1]))
    assert float(values.min()) == 0.0
    assert wrapper.convert()(x).sub(wrapper(x)).abs().max() < 0.1


def test_what_torch_makes_with_partial_is_read():
    make = functools.partial(ao.MinMaxObserver, dtype=torch.quint8)
    found = read_qconfig(ao.QConfig(make, ao.default_weight_observer))
    assert found.activation.quant_max == 255


def test_the_ends_of_the_network_keep_their_bits():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2)
    ).eval()
    wrapper = PTCFxModule(model, qconfig_type="WC4_AT4", verbose=False)
    bits = {name: q.spec.bit_width for name, q in quantizers(wrapper.module).items()}
    assert bits == {"0.activation_in": 8, "1": 4, "2.activation_q": 4, "4.activation_q": 8}
