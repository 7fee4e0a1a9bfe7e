import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule, QConfig, QuantCalibrateModule, QuantSpec
from edgeailite.quantization.methods.activation_ranges import search_activation_ranges
from edgeailite.quantization.methods.weight_ranges import search_weight_ranges
from edgeailite.quantization.modules.layer_calls import float_arithmetic, layer_calls
from tests.quantization.methods.networks import depthwise_network, image_batches


def _output_error(model, batches):
    with torch.no_grad():
        with float_arithmetic(model):
            references = [model(*b) for b in batches]
        return sum(
            float((model(*b) - y).square().sum()) for b, y in zip(batches, references, strict=True)
        )


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_weight_ranges_lower_the_error_of_coarse_weights(granularity, power_of_two):
    torch.manual_seed(0)
    network = depthwise_network()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight[0].flatten()[0] = 6.0 * module.weight.abs().max()
    weight = QuantSpec(bit_width=4, signed=True, granularity=granularity, power_of_two=power_of_two)
    config = QConfig(weight, QuantSpec(bit_width=16))
    model = PTCFxModule(network, qconfig_type=config).eval().module
    batches = image_batches()
    search_activation_ranges(model, batches)
    before = _output_error(model, batches)
    narrowed = search_weight_ranges(model, batches)
    assert narrowed
    assert _output_error(model, batches) < 0.8 * before


def test_weight_range_is_part_of_the_state_and_goes_with_a_float_checkpoint():
    batches = image_batches()
    floats = depthwise_network().state_dict()
    model = PTCFxModule(depthwise_network(), qconfig_type="WC4_AT8").eval().module
    search_activation_ranges(model, batches)
    (path, *_) = search_weight_ranges(model, batches)
    assert f"{path}.weight_range" in model.state_dict()
    twin = PTCFxModule(depthwise_network(), qconfig_type="WC4_AT8").eval().module
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(twin(*batches[0]), model(*batches[0]))
    twin.load_state_dict(floats)
    assert not any(name.endswith("weight_range") for name in twin.state_dict())


def test_training_keeps_a_weight_range_with_a_learning_batch_norm():
    """What is trained afterwards is on the same grid, folded or not."""
    model = (
        QuantCalibrateModule(depthwise_network(), dummy_input=torch.zeros(1, 3, 12, 12))
        .eval()
        .module
    )
    batches = image_batches()
    search_activation_ranges(model, batches)
    call = layer_calls(model)[0]
    call.layer.register_buffer("weight_range", torch.full((8,), 0.3))
    scale = call.folded().scale
    assert torch.equal(scale, torch.full((8,), 0.5 / 128))
