import re
import warnings

import pytest
import torch
from torch import nn

from edgeailite.quantization import TINPUTinyMLPTQFxModule
from edgeailite.quantization.targets.tinpu.hardware_rules import check_hardware_rules


def network(**changes):
    """One that obeys all rules, but for `changes`."""
    parts = {
        "norm": nn.BatchNorm2d(1),
        "first": nn.Conv2d(1, 8, (5, 3), (2, 1), (2, 1)),
        "relu": nn.ReLU(),
        "pool": nn.MaxPool2d((4, 1)),
        "second": nn.Conv2d(8, 16, (3, 1), 1, (1, 0)),
        "relu2": nn.ReLU(),
        "average": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "head": nn.Linear(16, 3),
    } | changes
    model = nn.Sequential()
    for name, part in parts.items():
        if part is not None:
            model.add_module(name, part)
    return model


def findings(model, shape=(1, 64, 4), strict=False, **options):
    x = torch.randn(8, *shape)
    wrapper = TINPUTinyMLPTQFxModule(model, verbose=False, **options).calibrate([x])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = check_hardware_rules(wrapper.convert(), x, strict)
    assert [str(w.message) for w in caught] == [str(f) for f in found]
    return found


def test_a_network_that_obeys_gets_no_warning():
    assert findings(network()) == []


class Product(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


BREAKS = {
    "input channels": (
        {"norm": nn.BatchNorm2d(2), "first": nn.Conv2d(2, 8, 3)}, "first", "is 2; .* computes 1"
    ),
    "kernel width": ({"first": nn.Conv2d(1, 8, (3, 9), padding=4)}, "first", "width is 9"),
    "output channels": (
        {"first": nn.Conv2d(1, 6, 3, 1, 1), "second": nn.Conv2d(6, 16, 3, 1, 1)},
        "first", "is 6; .* Use 8",
    ),
    "stride": ({"second": nn.Conv2d(8, 16, 3, (1, 2), 1)}, "second", r"stride is \(1, 2\)"),
    "max-pool": ({"pool": nn.MaxPool2d((5, 1))}, "pool", r"kernel is \(5, 1\)"),
    "linear": (
        {"second": nn.Conv2d(8, 8, 3, padding=1), "head": nn.Linear(8, 3)}, "head", "at least 16"
    ),
    "global average": (
        {"relu2": nn.Sequential(nn.ReLU(), nn.MaxPool2d((4, 4)), nn.MaxPool2d((2, 1)))},
        "average", "averaged area is 1 values",
    ),
    "float": ({"flatten": nn.Sequential(nn.Flatten(), Product())}, "sigmoid", "sigmoid in float"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_each_rule_names_the_layer(name):
    changes, layer, message = BREAKS[name]
    found = findings(network(**changes))
    assert layer in {f.layer for f in found}
    text = " ".join(str(f) for f in found if f.layer == layer)
    assert re.search(message, text)


def test_fewer_inputs_suffice_with_four_bits():
    parts = {"second": nn.Conv2d(8, 8, 3, padding=1), "head": nn.Linear(8, 3)}
    assert findings(network(**parts), qconfig_type={"weight": {"bitwidth": 4}}) == []


def test_an_offset_in_float_is_found():
    found = findings(network(), float_ops=["fb"])
    assert {f.layer for f in found} == {"first", "second", "head"}
    assert all("float_ops has 'fb'" in f.given for f in found)


def test_a_large_offset_is_found():
    model = network()
    nn.init.constant_(model.second.bias, 900.0)
    nn.init.constant_(model.second.weight, 1e-3)
    found = findings(model, qconfig_type={"weight": {"bitwidth": 4}})
    assert all(f.layer != "second" or f.allowed.startswith("16 bits") for f in found)


def test_strict_lists_all_at_once():
    model = network(first=nn.Conv2d(1, 6, (3, 9), padding=4), second=nn.Conv2d(6, 16, 3))
    with pytest.raises(ValueError, match=r"3 things that the NPU does not compute:\n  'first'"):
        findings(model, strict=True)


def test_a_wrong_example_is_named():
    wrapper = TINPUTinyMLPTQFxModule(network(), verbose=False)
    wrapper.calibrate([torch.randn(4, 1, 64, 4)])
    with pytest.raises(ValueError, match=r"shape \(1, 3, 64, 4\) does not pass"):
        check_hardware_rules(wrapper.convert(), torch.randn(2, 3, 64, 4))
