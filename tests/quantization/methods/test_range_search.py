import copy

import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule, QConfig, QuantCalibrateModule, QuantSpec
from edgeailite.quantization.methods.range_search import (
    input_energy,
    search_activation_ranges,
    search_weight_ranges,
)
from edgeailite.quantization.modules.layer_calls import float_arithmetic, layer_calls
from edgeailite.quantization.modules.pact2 import quantizers
from tests.quantization.helpers import randomize_batch_norms


def _network():
    torch.manual_seed(0)
    return randomize_batch_norms(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 4),
        )
    ).eval()


def _batches():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, 12, 12, generator=generator),) for _ in range(2)]


def _output_error(model, batches):
    with torch.no_grad():
        with float_arithmetic(model):
            references = [model(*b) for b in batches]
        return sum(
            float((model(*b) - y).square().sum()) for b, y in zip(batches, references, strict=True)
        )


@pytest.mark.parametrize("preset", ["WC8_AT8", "WC8SYMP2_AT8SYMP2", "WC8P2_AT8P2", "WC4_AT8"])
def test_ranges_are_set_and_stay(preset):
    model = PTCFxModule(_network(), qconfig_type=preset).eval().module
    changed = search_activation_ranges(model, _batches())
    assert changed == list(quantizers(model))
    for quantizer in quantizers(model).values():
        assert quantizer.has_range
        assert not quantizer.observer_enabled
        low, high = quantizer.clips_act.tolist()
        assert low <= 0 <= high


@pytest.mark.parametrize("symmetric", [False, True])
def test_range_has_less_error_than_minimum_and_maximum(symmetric):
    x = torch.randn(8, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    x = x.sign() * x.abs() ** 3  # heavy tails
    activation = QuantSpec(bit_width=4, symmetric=symmetric, power_of_two=False)
    config = QConfig(QuantSpec(bit_width=16, signed=True), activation)
    model = PTCFxModule(nn.Sequential(nn.Conv2d(1, 1, 1)), qconfig_type=config).eval().module
    search_activation_ranges(model, [(x,)])
    quantizer = next(iter(quantizers(model).values()))
    error = (quantizer(x.clone()) - x).square().mean()
    quantizer.clips_act.copy_(torch.stack([x.min(), x.max()]))
    assert error < 0.9 * (quantizer(x.clone()) - x).square().mean()


def test_power_of_two_ranges_are_powers_of_two_of_the_least_error():
    """Beside the chosen range neither the next larger nor the next smaller has less error."""
    model = PTCFxModule(_network(), qconfig_type="WC8SYMP2_AT8SYMP2").eval().module
    batches = _batches()
    search_activation_ranges(model, batches)
    quantizer = next(iter(quantizers(model).values()))
    x = torch.cat([b[0] for b in batches])

    def error(factor):
        twin = copy.deepcopy(quantizer)
        twin.clips_act *= factor
        return float((twin(x.clone()) - x).square().mean())

    assert error(1.0) <= min(error(2.0), error(0.5)) * 1.001


def test_channels_that_weigh_more_count_more():
    """A range is chosen for what the layer behind it does, not for the values alone."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False))
    with torch.no_grad():
        network[0].weight[:] = torch.tensor([100.0, 1.0]).reshape(2, 1, 1, 1)
    coarse = QuantSpec(bit_width=4, power_of_two=False, signed=True)
    fine = QuantSpec(bit_width=16, signed=True)
    highs = []
    for small_channel in (1e-3, 1e3):
        with torch.no_grad():
            network[1].weight[:] = torch.tensor([1.0, small_channel]).reshape(1, 2, 1, 1)
        model = PTCFxModule(copy.deepcopy(network), qconfig_type=QConfig(fine, coarse)).eval()
        search_activation_ranges(model.module, [(torch.randn(4, 1, 8, 8),)])
        highs.append(float(quantizers(model.module)["0.activation_q"].clips_act[1]))
    assert highs[1] < highs[0] / 5


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 8, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.ConvTranspose2d(4, 6, 3),
        nn.Linear(4, 6),
    ],
    ids=["conv", "grouped", "depthwise", "transposed", "linear"],
)
def test_input_energy_is_what_unit_inputs_give(layer):
    """Energy of channel c: the output's sum of squares for an impulse in it."""
    unit = layer_calls(PTCFxModule(nn.Sequential(layer), qconfig_type="WC8_AT8").eval().module)[0]
    energy = input_energy(unit)
    assert energy.shape == (4,)
    for channel in range(4):
        shape = (1, 4) if isinstance(layer, nn.Linear) else (1, 4, 7, 7)
        x = torch.zeros(shape)
        x[(0, channel) if isinstance(layer, nn.Linear) else (0, channel, 3, 3)] = 1.0
        response = unit.layer.operate(x, unit.weight, None)
        torch.testing.assert_close(energy[channel], response.square().sum())


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_weight_ranges_lower_the_error_of_coarse_weights(granularity, power_of_two):
    torch.manual_seed(0)
    network = _network()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight[0].flatten()[0] = 6.0 * module.weight.abs().max()
    weight = QuantSpec(bit_width=4, signed=True, granularity=granularity, power_of_two=power_of_two)
    config = QConfig(weight, QuantSpec(bit_width=16))
    model = PTCFxModule(network, qconfig_type=config).eval().module
    batches = _batches()
    search_activation_ranges(model, batches)
    before = _output_error(model, batches)
    narrowed = search_weight_ranges(model, batches)
    assert narrowed
    assert _output_error(model, batches) < 0.8 * before


def test_weight_range_is_part_of_the_state_and_goes_with_a_float_checkpoint():
    batches = _batches()
    floats = _network().state_dict()
    model = PTCFxModule(_network(), qconfig_type="WC4_AT8").eval().module
    search_activation_ranges(model, batches)
    (path, *_) = search_weight_ranges(model, batches)
    assert f"{path}.weight_range" in model.state_dict()
    twin = PTCFxModule(_network(), qconfig_type="WC4_AT8").eval().module
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(twin(*batches[0]), model(*batches[0]))
    twin.load_state_dict(floats)
    assert not any(name.endswith("weight_range") for name in twin.state_dict())


def test_fixed_ranges_stay():
    model = PTCFxModule(_network(), qconfig_type="WC8SYMP2_AT8SYMP2R4").eval().module
    changed = search_activation_ranges(model, _batches())
    for path, quantizer in quantizers(model).items():
        assert (path in changed) == (quantizer.spec.fixed_range is None)


def test_training_keeps_a_weight_range_with_a_learning_batch_norm():
    """What is trained afterwards is on the same grid, folded or not."""
    model = QuantCalibrateModule(_network(), dummy_input=torch.zeros(1, 3, 12, 12)).eval().module
    batches = _batches()
    search_activation_ranges(model, batches)
    unit = layer_calls(model)[0]
    unit.layer.register_buffer("weight_range", torch.full((8,), 0.3))
    scale = unit.folded().scale
    assert torch.equal(scale, torch.full((8,), 0.5 / 128))
