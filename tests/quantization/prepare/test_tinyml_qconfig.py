import copy

import pytest
import torch
from torch import nn

from edgeailite.quantization.prepare.tinyml_qconfig import (
    TinyMLQConfigType,
    get_default_qconfig,
    make_tinyml_policy,
)
from edgeailite.quantization.targets.registry import get_target

NETWORK = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


def policy(given, target="tinpu"):
    return make_tinyml_policy(NETWORK, get_target(target), given)


def test_the_default_is_eight_bits_and_shifts():
    qconfig = policy(None).qconfig
    assert (qconfig.weight.quant_min, qconfig.weight.quant_max) == (-127, 127)
    assert qconfig.weight.power_of_two
    assert qconfig.weight.granularity == "per_channel"
    assert qconfig.activation.rounding == "half_up"
    assert qconfig.bias.bit_width == 24


@pytest.mark.parametrize(("bits", "largest", "soft"), [(4, 7, False), (2, 1, True)])
def test_fewer_bits_have_free_scales_of_eight_bits(bits, largest, soft):
    qconfig = policy({"weight": {"bitwidth": bits}}).qconfig
    assert (qconfig.weight.quant_min, qconfig.weight.quant_max) == (-largest, largest)
    assert (qconfig.weight.power_of_two, qconfig.weight.scale_bits) == (False, 8)
    assert qconfig.bias.bit_width == 16
    assert qconfig.soft_weight is soft


def test_the_generic_target_rounds_to_even():
    assert policy(None, "onnx_runtime").qconfig.activation.rounding == "half_even"
    assert policy("WC8_AT8", "onnx_runtime").qconfig.activation.symmetric is False


def test_a_dict_and_the_class_say_the_same_and_nothing_is_changed():
    given = {"weight": {"bitwidth": 4, "observer": "min_max"}, "activation": {"bitwidth": 8}}
    before = copy.deepcopy(given)
    found = policy(given).qconfig
    assert given == before
    assert found.weight.range_rule == "min_max"
    by_class = TinyMLQConfigType(weight_bitwidth=4)
    assert policy(by_class).qconfig == policy({"weight": {"bitwidth": 4}}).qconfig


@pytest.mark.parametrize("soft", ["default", False, None])
def test_soft_weights_can_be_switched_off(soft):
    assert policy({"weight": {"bitwidth": 2, "soft_quant": soft}}).qconfig.soft_weight is False


@pytest.mark.parametrize("soft", ["soft_sigmoid", "dbq", True])
def test_soft_weights_can_be_switched_on(soft):
    assert policy({"weight": {"bitwidth": 8, "soft_quant": soft}}).qconfig.soft_weight is True


def test_keys_of_the_other_wrappers_count():
    found = policy({"weight": {"range_max": 2.0}, "activation": {"range_shrink_percentile": 0.5}})
    assert found.qconfig.weight.range_max == 2.0
    assert found.qconfig.activation.range_shrink_percentile == 0.5


def test_mixed_precision_by_module():
    found = policy({"weight": {"mixed_precision": {4: ["0"], 32: ["3"]}}}).by_path
    assert found["0"].weight.bit_width == 4
    assert found["3"].weight is None
    assert found["3"].activation.bit_width == 8
    assert policy({"mixed_precision": {2: ["3"]}}).by_path["3"].weight.bit_width == 2
    activations = {"activation": {"mixed_precision": {4: ["0"]}}}
    assert policy(activations).by_path["0"].activation.bit_width == 4
    assert policy(activations).by_path["0"].weight.bit_width == 8


BAD = {
    "eight bits without shifts": (
        {"weight": {"bitwidth": 8, "power2_scale": False}},
        "8-bit weights have power2_scale=False",
    ),
    "bits": ({"weight": {"bitwidth": 3}}, "bitwidth of 'weight' is 3; allowed: 8, 4, 2"),
    "zero point": (
        {"activation": {"qscheme": torch.per_tensor_affine}},
        "Activations of this target have up to 8 bits, no zero point",
    ),
    "free activations": ({"activation": {"power2_scale": False}}, "a power of two as scale"),
    "key": ({"weights": {}}, r"keys \['weights'\]; allowed: 'weight', 'activation'"),
    "inner key": ({"weight": {"bits": 4}}, r"'weight' of qconfig_type has the keys \['bits'\]"),
    "soft": ({"weight": {"soft_quant": "tanh"}}, "soft_quant of 'weight' is 'tanh'; allowed"),
    "observer": ({"weight": {"observer": "kl"}}, "observer of 'weight' is 'kl'; allowed"),
    "layer": ({"mixed_precision": {4: ["conv"]}}, "names 'conv', which is no layer .* nearest"),
    "activation function": ({"mixed_precision": {4: ["1"]}}, "names '1', which is no layer"),
    "mixed bits": ({"mixed_precision": {16: ["0"]}}, "has 16 bits; allowed: 32"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_the_target_cannot_do_is_refused(name):
    given, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        policy(given)


def test_the_generic_target_may_have_free_scales_at_eight_bits():
    found = policy({"weight": {"power2_scale": False}}, "onnx_runtime").qconfig.weight
    assert (found.power_of_two, found.scale_bits) == (False, 8)


def test_the_class_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="weight_bitwidth is 16; allowed: 8, 4, 2"):
        TinyMLQConfigType(weight_bitwidth=16)
    with pytest.raises(ValueError, match=r"got \['dataloader'\]; allowed: "):
        TinyMLQConfigType(dataloader=None)


def test_the_default_configuration_has_its_own_function():
    assert get_default_qconfig() == policy(None, "onnx_runtime").qconfig
    assert get_default_qconfig({"weight": {"bitwidth": 2}}).weight.bit_width == 2
