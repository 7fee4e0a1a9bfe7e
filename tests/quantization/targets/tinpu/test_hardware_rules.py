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


def hidden(inputs):
    """A linear layer with so many inputs in front of the head."""
    return {"head": nn.Sequential(nn.Linear(16, inputs), nn.ReLU(), nn.Linear(inputs, 3))}


def convert(model, shape=(1, 64, 4), **options):
    x = torch.randn(8, *shape)
    wrapper = TINPUTinyMLPTQFxModule(model, verbose=False, **options).calibrate([x])
    return wrapper.convert(), x


def check(converted, x, strict=False):
    """Findings, each of which was a warning too."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = check_hardware_rules(converted, x, strict)
    assert [str(w.message) for w in caught] == [str(f) for f in found]
    return found


def findings(model, *args, **options):
    return [(f.layer, f.rule, f.given, f.allowed) for f in check(*convert(model, *args, **options))]


def weights(bit_width):
    return {"qconfig_type": {"weight": {"bitwidth": bit_width}}}


def test_a_network_that_obeys_gets_no_warning():
    assert findings(network()) == []


def test_real_outputs_are_no_float_operation():
    x = torch.randn(8, 1, 64, 4)
    wrapper = TINPUTinyMLPTQFxModule(network(), verbose=False).calibrate([x])
    assert check(wrapper.convert(output_int=False), x) == []


class Product(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def first(kernel=3, channels=8, stride=1, inputs=1):
    width = kernel if isinstance(kernel, int) else kernel[1]
    return nn.Conv2d(inputs, channels, kernel, stride, (1, width // 2))


INPUTS = "the number of the first convolution's input channels"
WIDTH = "the first convolution's kernel width"
IN, OUT = "the number of input channels", "the number of output channels"
LINEAR = "the number of a linear layer's inputs"
AREA, GLOBAL = "the averaged area", "global averages of more than 2"
KERNEL, SIDES = "a max-pool's kernel", "sides of 1 to 4"
MULTIPLES, STRIDES = "multiples of 4", "(1, 1), (2, 1), (2, 2)"
LARGEST = "the largest offset (bias and half an output scale)"
ALL = "convolutions, linear layers, batch norm, pooling, ReLU, add, concat and reshaping"

# What a rule finds just beyond its limit: changes of the network, what is found.
BREAKS = {
    "two_input_channels": (
        {"norm": nn.BatchNorm2d(2), "first": first(inputs=2)}, [("first", INPUTS, "2", "1")]
    ),
    "first_kernel_9_wide": ({"first": first((3, 9))}, [("first", WIDTH, "9", "1 to 8")]),
    "6_channels_between": (
        {"first": first(channels=6), "second": nn.Conv2d(6, 16, 3, 1, 1)},
        [("first", OUT, "6", MULTIPLES), ("second", IN, "6", MULTIPLES)],
    ),
    "18_output_channels": (
        {"second": nn.Conv2d(8, 18, 3, 1, 1), "head": nn.Linear(18, 3)},
        [("second", OUT, "18", MULTIPLES)],
    ),
    "transposed": (
        {"second": nn.ConvTranspose2d(8, 18, 3, 1, 1), "head": nn.Linear(18, 3)},
        [("second", OUT, "18", MULTIPLES)],
    ),
    "first_stride": ({"first": first(stride=(1, 2))}, [("first", "the stride", "(1, 2)", STRIDES)]),
    "max_pool_5_high": ({"pool": nn.MaxPool2d((5, 1))}, [("pool", KERNEL, "(5, 1)", SIDES)]),
    "max_pool_5_wide": (
        {"pool": nn.MaxPool2d((1, 5), padding=(0, 1))}, [("pool", KERNEL, "(1, 5)", SIDES)]
    ),
    "average_of_2": (
        {"relu2": nn.Sequential(nn.ReLU(), nn.MaxPool2d((4, 4)))},
        [("average", AREA, "2 values", GLOBAL)],
    ),
    "mean_of_2": (
        {"relu2": nn.Sequential(nn.ReLU(), nn.MaxPool2d((4, 4))), "average": Mean()},
        [("average", AREA, "2 values", GLOBAL)],
    ),
    "beside_the_npu": (
        {"flatten": nn.Sequential(nn.Flatten(), Product())},
        [("flatten.1", "the operation", "a function, as a table of 256 integers", ALL),
         ("flatten.1", "the operation", "a product of two values", ALL)],
    ),
    "float": (
        {"flatten": nn.Sequential(nn.Flatten(), nn.Softsign(), nn.GroupNorm(2, 16))},
        [("flatten.1", "the operation", "a function, as a table of 256 integers", ALL),
         ("flatten.2", "the operation", "GroupNorm in float", ALL)],
    ),
}  # fmt: skip
# The last that each rule allows.
ALLOWED = {
    "first_kernel_8_wide": {"first": first((3, 8))},
    "first_kernel_1_wide": {"first": first((3, 1))},
    "second_kernel_9_wide": {"second": nn.Conv2d(8, 16, (1, 9), padding=(0, 4))},
    "4_channels": {"first": first(channels=4), "second": nn.Conv2d(4, 16, 3, 1, 1)},
    "20_channels": {"second": nn.Conv2d(8, 20, 3, 1, 1), "head": nn.Linear(20, 3)},
    "grouped": {"second": nn.Conv2d(8, 16, 3, 1, 1, groups=4)},
    "transposed": {"second": nn.ConvTranspose2d(8, 16, 3, 1, 1)},
    "transposed_grouped": {"second": nn.ConvTranspose2d(8, 16, 3, 1, 1, groups=8)},
    "max_pool_4_by_4": {"pool": nn.MaxPool2d(4)},
    "max_pool_1_by_1": {"pool": nn.MaxPool2d(1)},
    "average_of_4": {"relu2": nn.Sequential(nn.ReLU(), nn.MaxPool2d((4, 2)))},
    "windows_of_2": {"relu2": nn.Sequential(nn.ReLU(), nn.AvgPool2d((2, 1)))},
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_a_rule_names_layer_value_and_limit(name):
    changes, expected = BREAKS[name]
    shape = (2 if name == "two_input_channels" else 1, 64, 4)
    assert findings(network(**changes), shape) == expected


class HalfImage(nn.Module):
    def forward(self, x):
        return nn.functional.max_pool2d(x, x.shape[3])


def test_a_kernel_that_is_computed_is_found():
    found = findings(network(pool=HalfImage()))
    assert found == [("max_pool2d", KERNEL, "computed in the model", SIDES)]


@pytest.mark.parametrize("name", ALLOWED)
def test_the_last_allowed_value_is_not_found(name):
    assert findings(network(**ALLOWED[name])) == []


@pytest.mark.parametrize("layer", ["first", "second"])
@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("height", [1, 2, 3])
def test_strides(height, width, layer):
    kernels = {"first": nn.Conv2d(1, 8, 3, (height, width), 1)}
    kernels["second"] = nn.Conv2d(8, 16, 3, (height, width), 1)
    found = findings(network(**{"pool": None, layer: kernels[layer]}))
    if (height, width) in ((1, 1), (2, 1), (2, 2)):
        assert found == []
    else:
        assert found == [(layer, "the stride", f"({height}, {width})", STRIDES)]


def time_series(stride=1, pool=2):
    return nn.Sequential(
        nn.Conv1d(1, 8, 3, stride, 1), nn.ReLU(), nn.MaxPool1d(pool),
        nn.Conv1d(8, 16, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"stride": 2, "pool": 4}, []),
        ({"stride": 3}, [("0", "the stride", "(3, 1)", STRIDES)]),
        ({"pool": 5}, [("2", KERNEL, "(5, 1)", SIDES)]),
    ],
)
def test_a_time_series_has_width_1(changes, expected):
    assert findings(time_series(**changes), (1, 64)) == expected


@pytest.mark.parametrize(("bit_width", "least"), [(8, 16), (4, 8), (2, 8)])
def test_inputs_of_a_linear_layer(bit_width, least):
    allowed = f"at least {least} ({bit_width}-bit weights)"
    assert findings(network(**hidden(least)), **weights(bit_width)) == []
    found = findings(network(**hidden(least - 1)), **weights(bit_width))
    assert found == [("head.2", LINEAR, str(least - 1), allowed)]


@pytest.mark.parametrize(("height", "found"), [(48, ["average"]), (72, [])])
def test_an_average_of_2_is_found_and_one_of_3_is_not(height, found):
    model = network(relu2=nn.Sequential(nn.ReLU(), nn.MaxPool2d((3, 4))))
    assert [layer for layer, *_ in findings(model, (1, height, 4))] == found


def test_an_offset_in_float_is_found():
    found = findings(network(), float_ops=["fb"])
    given = ("the offset", "a float (float_ops has 'fb')", "integers")
    assert found == [(layer, *given) for layer in ("first", "second", "head")]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("bit_width", "bits"), [(8, 24), (4, 16), (2, 16)])
def test_the_largest_offset(bit_width, bits, sign):
    """A signed integer of so many bits holds up to ``2^(bits - 1) - 1``."""
    converted, x = convert(network(), **weights(bit_width))
    offset = converted.module.get_submodule("second").output.offset
    offset[3] = sign * (2 ** (bits - 1) - 1)
    assert check(converted, x) == []
    offset[3] = sign * 2 ** (bits - 1)
    (found,) = check(converted, x)
    assert (found.layer, found.rule) == ("second", LARGEST)
    assert found.given == str(2 ** (bits - 1))
    assert found.allowed == f"{bits} bits ({bit_width}-bit weights)"


def test_a_half_in_one_offset_is_found():
    converted, x = convert(network())
    offset = converted.module.get_submodule("head").output.offset
    offset[1] = 2.0
    assert check(converted, x) == []
    offset[1] = 2.5
    assert [(f.layer, f.rule) for f in check(converted, x)] == [("head", "the offset")]


def test_a_large_offset_is_found():
    """Biases are clipped to the offset's bits; half an output scale is added to them."""
    model = network()
    nn.init.constant_(
        model.second.bias, -900.0
    )  # nothing passes the ReLU: the head's scale is tiny
    (found,) = check(*convert(model, **weights(4)))
    assert (found.layer, found.allowed) == ("head", "16 bits (4-bit weights)")
    assert 2**15 <= int(found.given) < 2**16


def test_strict_lists_all_at_once():
    model = network(first=nn.Conv2d(1, 6, (3, 9), padding=4), second=nn.Conv2d(6, 16, 3))
    with pytest.raises(ValueError, match=r"3 things that the NPU does not compute:\n  'first'"):
        check(*convert(model), strict=True)


def test_a_wrong_example_is_named():
    wrapper = TINPUTinyMLPTQFxModule(network(), verbose=False)
    wrapper.calibrate([torch.randn(4, 1, 64, 4)])
    with pytest.raises(ValueError, match=r"shape \(1, 3, 64, 4\) does not pass"):
        check_hardware_rules(wrapper.convert(), torch.randn(2, 3, 64, 4))
