import copy

import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule, QConfig, QuantSpec
from edgeailite.quantization.methods.activation_ranges import input_energy, search_activation_ranges
from edgeailite.quantization.modules.layer_calls import layer_calls
from edgeailite.quantization.modules.pact2 import quantizers
from tests.quantization.methods.networks import depthwise_network, image_batches


@pytest.mark.parametrize("preset", ["WC8_AT8", "WC8SYMP2_AT8SYMP2", "WC8P2_AT8P2", "WC4_AT8"])
def test_ranges_are_set_and_stay(preset):
    model = PTCFxModule(depthwise_network(), qconfig_type=preset).eval().module
    changed = search_activation_ranges(model, image_batches())
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
    model = PTCFxModule(depthwise_network(), qconfig_type="WC8SYMP2_AT8SYMP2").eval().module
    batches = image_batches()
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
    call = layer_calls(PTCFxModule(nn.Sequential(layer), qconfig_type="WC8_AT8").eval().module)[0]
    energy = input_energy(call)
    assert energy.shape == (4,)
    for channel in range(4):
        shape = (1, 4) if isinstance(layer, nn.Linear) else (1, 4, 7, 7)
        x = torch.zeros(shape)
        x[(0, channel) if isinstance(layer, nn.Linear) else (0, channel, 3, 3)] = 1.0
        response = call.layer.operate(x, call.weight, None)
        torch.testing.assert_close(energy[channel], response.square().sum())


def test_fixed_ranges_stay():
    model = PTCFxModule(depthwise_network(), qconfig_type="WC8SYMP2_AT8SYMP2R4").eval().module
    changed = search_activation_ranges(model, image_batches())
    for path, quantizer in quantizers(model).items():
        assert (path in changed) == (quantizer.spec.fixed_range is None)
