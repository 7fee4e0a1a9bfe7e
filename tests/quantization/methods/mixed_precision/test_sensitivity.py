import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule, TINPUTinyMLPTQFxModule
from edgeailite.quantization.methods.mixed_precision.sensitivity import (
    layer_sensitivity,
)
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.prepare.tinyml_qconfig import BIT_WIDTHS, weight_spec


def wrapper():
    torch.manual_seed(0)
    return TINPUTinyMLPTQFxModule(
        nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
            nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 3),
        ).eval(),
        verbose=False,
    )  # fmt: skip


def tinyml_spec(_, bits):
    return weight_spec(bits)


def measure(model, batches, bit_widths=BIT_WIDTHS, spec=tinyml_spec):
    return layer_sensitivity(model, batches, bit_widths, weight_spec=spec)


BATCHES = [(torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(i)),) for i in (0, 1)]


def test_fewer_bits_cost_more_and_each_layer_is_measured():
    found = measure(wrapper().module, BATCHES)
    assert [s.path for s in found] == ["0", "4", "6"]
    assert [s.num_weights for s in found] == [36, 1152, 24]
    for layer in found:
        assert 0 < layer.errors[8] < layer.errors[4] < layer.errors[2] < 1


def test_the_error_is_that_of_the_weight_alone():
    model = wrapper().module
    (layer,) = [s for s in measure(model, BATCHES, (4,)) if s.path == "6"]
    linear = model.get_submodule("6")
    x = torch.cat([b for (b,) in BATCHES])
    with torch.no_grad():
        features = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.ReLU())
        features[1].load_state_dict(
            {k: model.get_submodule("4").state_dict()[k] for k in ("weight", "bias")}
        )
        conv = torch.nn.functional.conv2d(x, model.get_submodule("0").weight)
        hidden = features(torch.relu(model.get_submodule("1")(conv)))
        linear.weight_quantizer.spec = weight_spec(4)
        quantized = linear.quantized_parameters(linear.weight, None, None, None)[0]
        change = hidden @ (quantized - linear.weight).T
        output = hidden @ linear.weight.T + linear.bias
    expected = float(change.double().square().mean() / output.double().var(correction=0))
    assert layer.errors[4] == pytest.approx(expected, rel=1e-4)


def test_the_model_is_left_as_it_was():
    made = wrapper().train()
    state = {k: v.clone() for k, v in made.module.state_dict().items()}
    specs = [
        m.weight_quantizer.spec for m in made.module.modules() if hasattr(m, "weight_quantizer")
    ]
    modes = [m.training for m in made.module.modules()]
    measure(made.module, BATCHES)
    assert specs == [
        m.weight_quantizer.spec for m in made.module.modules() if hasattr(m, "weight_quantizer")
    ]
    assert modes == [m.training for m in made.module.modules()]
    assert all(torch.equal(state[k], v) for k, v in made.module.state_dict().items())
    layers = [m for m in made.module.modules() if isinstance(m, QuantLayer)]
    assert [layer._substitute for layer in layers] == [None] * len(specs)


def test_it_is_left_as_it_was_after_an_error_too():
    made = wrapper()
    calls = []

    def failing(_, bits):
        calls.append(bits)
        if len(calls) > 2:
            raise RuntimeError("stop")
        return weight_spec(bits)

    with pytest.raises(RuntimeError, match="stop"):
        measure(made.module, BATCHES, spec=failing)
    assert all(
        m.fake_quant_enabled for m in made.module.modules() if hasattr(m, "weight_quantizer")
    )
    assert {
        m.weight_quantizer.spec.bit_width
        for m in made.module.modules()
        if hasattr(m, "weight_quantizer")
    } == {8}


def test_no_batch_is_an_error():
    with pytest.raises(ValueError, match="no batch to measure sensitivity on"):
        measure(wrapper().module, [])


def test_macs_of_one_input_are_counted():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(),
        nn.ConvTranspose2d(4, 6, 2, stride=2), nn.Flatten(), nn.Linear(6 * 100, 5),
    ).eval()  # fmt: skip
    batches = [(torch.randn(3, 2, 15, 15),), (torch.randn(2, 2, 15, 15),)]
    found = layer_sensitivity(PTCFxModule(model, verbose=False).module, batches, (8,))
    expected = {"0": 49 * 4 * 18, "2": 25 * 4 * 9, "4": 25 * 4 * 6 * 4, "6": 600 * 5}
    assert {s.path: s.num_macs for s in found} == expected


def test_outputs_are_measured_with_their_weights():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    data = [x for (x,) in BATCHES]
    made = PTCFxModule(model, qconfig_type="WC8_AT8", verbose=False).calibrate(data)
    specs = [m.spec for m in made.module.modules() if hasattr(m, "spec")]
    weights = layer_sensitivity(made.module, BATCHES, (8, 4))
    both = layer_sensitivity(made.module, BATCHES, (8, 4), activations=True)
    for alone, together in zip(weights, both, strict=True):
        assert together.errors[8] > alone.errors[8]
        assert together.errors[4] > alone.errors[4]
    assert specs == [m.spec for m in made.module.modules() if hasattr(m, "spec")]
