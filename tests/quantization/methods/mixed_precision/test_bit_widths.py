import copy

import pytest
import torch
from torch import nn

from edgeailite.quantization import (
    PTCFxModule,
    QATFxModule,
    QuantCalibrateModule,
    QuantTestModule,
    QuantTrainModule,
)
from edgeailite.quantization.methods.mixed_precision import MixedPrecision, search_bit_widths
from edgeailite.quantization.report import build_report
from edgeailite.quantization.verify.compare import verify

X = torch.zeros(1, 3, 12, 12)
RANDOM = torch.Generator().manual_seed(1)
DATA = [torch.randn(8, 3, 12, 12, generator=RANDOM) for _ in range(2)]
BITS = {4: ["0"], 16: ["5"]}
WRAPPERS = {
    "train": lambda m, bits: QuantTrainModule(m, X, total_epochs=4, bit_widths=bits),
    "calibrate": lambda m, bits: QuantCalibrateModule(m, X, bit_widths=bits),
    "qat": lambda m, bits: QATFxModule(m, total_epochs=4, bit_widths=bits),
    "ptc": lambda m, bits: PTCFxModule(m, qconfig_type="WC8SYMP2_AT8SYMP2", bit_widths=bits),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


def weight_bits(wrapper):
    return [
        m.weight_quantizer.spec.bit_width
        for m in wrapper.module.modules()
        if hasattr(m, "weight_quantizer")
    ]


@pytest.mark.parametrize("name", WRAPPERS)
def test_layers_get_their_bits_and_stay_exact(name, tmp_path):
    wrapper = WRAPPERS[name](network(), BITS).calibrate(DATA)
    assert weight_bits(wrapper) == [4, 16]
    words = [layer.weight_spec.split()[0] for layer in build_report(wrapper).layers]
    assert words == ["int4", "int16"]
    wrapper.export(X, tmp_path / "model.onnx")
    comparison = verify(wrapper, DATA, tmp_path / "model.onnx")
    off = [n for key, n in comparison.mismatches.items() if "off" in key or "evaluation" in key]
    assert off == [0, 0]


def test_outputs_get_them_too_where_the_choice_says_so():
    found = MixedPrecision({"0": 4, "5": 16}, activations=True)
    wrapper = PTCFxModule(network(), bit_widths=found, verbose=False)
    spec_of = {n: m.spec.bit_width for n, m in wrapper.module.named_modules() if hasattr(m, "spec")}
    assert [bits for name, bits in spec_of.items() if name.startswith("2")] == [4]
    assert [bits for name, bits in spec_of.items() if name.startswith("5")] == [16]
    assert sorted(spec_of.values()) == [4, 8, 8, 16]


@pytest.mark.parametrize("activations", [False, True])
def test_a_choice_is_found_saved_and_wrapped_with(activations, tmp_path):
    model = network()
    found = search_bit_widths(
        model,
        lambda m, bits: PTCFxModule(m, bit_widths=bits, verbose=False),
        DATA,
        max_bytes=8 * 27 + 32 * 2,
        activations=activations,
    )
    assert found.num_bytes <= 280
    assert found.activations is activations
    path = found.save(tmp_path / "bits.json")
    wrapper = PTCFxModule(copy.deepcopy(model), bit_widths=path, verbose=False)
    assert weight_bits(wrapper) == list(found.chosen.values())
    assert MixedPrecision.load(path) == found


def test_more_bits_where_the_budget_allows_are_nearer_to_float():
    model, x = network(), torch.cat(DATA)
    with torch.no_grad():
        target = model(x)

    def error(budget):
        found = search_bit_widths(
            model,
            lambda m, bits: PTCFxModule(m, bit_widths=bits, verbose=False),
            DATA,
            max_mac_bits=budget,
            bit_widths=(16, 8, 4, 2),
        )
        assert found.mac_bits <= budget
        wrapper = PTCFxModule(copy.deepcopy(model), bit_widths=found, verbose=False)
        with torch.no_grad():
            return float((wrapper.calibrate(DATA)(x) - target).square().mean())

    macs = 100 * 8 * 27 + 32
    assert error(8 * macs) < error(4 * macs) < error(2 * macs)


def test_a_name_that_is_no_layer_is_named():
    message = r"bit_widths names 'conv', which is no quantized layer .* nearest are: "
    with pytest.raises(ValueError, match=message):
        PTCFxModule(network(), bit_widths={4: ["conv"]})
    with pytest.raises(ValueError, match="bit_width is 1; allowed: a whole number from 2 to 16"):
        PTCFxModule(network(), bit_widths={1: ["0"]})


@pytest.mark.parametrize("activations", [False, True])
def test_a_checkpoint_holds_the_bits(activations):
    found = MixedPrecision({"0": 4, "5": 16}, activations=activations)
    wrapper = QuantCalibrateModule(network(), X, bit_widths=found).calibrate(DATA)
    loaded = QuantTestModule(network(), X)
    loaded.module.load_state_dict(wrapper.module.state_dict())
    with torch.no_grad():
        assert loaded(DATA[0]).equal(wrapper(DATA[0]))
    assert weight_bits(loaded) == [4, 16]
    assert loaded.module.state_dict().keys() == wrapper.module.state_dict().keys()
    plain = QuantCalibrateModule(network(), X).module.state_dict()
    assert not any(key.endswith("own_bits") for key in plain)


def test_a_bias_keeps_its_range_where_products_get_finer():
    def bias_bits(bits, activations=False):
        found = MixedPrecision(bits, activations=activations)
        wrapper = QuantCalibrateModule(network(), X, bit_widths=found)
        layers = (m for m in wrapper.module.modules() if hasattr(m, "bias_spec"))
        return [layer.bias_spec.bit_width for layer in layers]

    assert bias_bits({}) == [16, 16]
    assert bias_bits({"0": 16, "5": 4}) == [24, 16]
    assert bias_bits({"0": 16, "5": 16}, activations=True) == [24, 24]
