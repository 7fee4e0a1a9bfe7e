import copy

import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.methods.activation_ranges import search_activation_ranges
from edgeailite.quantization.methods.bias_absorption import absorb_biases
from edgeailite.quantization.modules.layer_calls import float_arithmetic
from edgeailite.quantization.verify.compare import verify
from tests.quantization.helpers import randomize_batch_norms


def _network(activation=nn.ReLU, padding=0):
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), activation()),
        *(nn.Conv2d(8, 8, 3, groups=8, padding=padding, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    randomize_batch_norms(network).eval()
    with torch.no_grad():
        network[1].bias[:4] += 20.0  # always far from zero
        network[4].bias[2] += 30.0
    return network


def _batches(seed):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(8, 3, 12, 12, generator=generator),) for _ in range(2)]


def _prepared(network, preset="WC8SYMP2_AT8SYMP2"):
    return PTCFxModule(network, qconfig_type=preset, verbose=False).eval()


def _outputs(model, batches):
    with torch.no_grad():
        return torch.cat([model(*b) for b in batches])


def test_float_network_stays_the_same():
    network = _network()
    expected = _outputs(network, _batches(1))
    model = _prepared(copy.deepcopy(network)).module
    assert absorb_biases(model, _batches(1)) == ["0", "3"]
    with float_arithmetic(model):
        found = _outputs(model, _batches(1))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_quantized_network_comes_nearer_to_float():
    network = _network()
    target = _outputs(network, _batches(2))

    def error(absorb):
        model = _prepared(copy.deepcopy(network)).module
        if absorb:
            absorb_biases(model, _batches(1))
        search_activation_ranges(model, _batches(1))
        return float((_outputs(model, _batches(2)) - target).square().mean())

    assert error(True) < 0.5 * error(False)


def test_padding_stops_it():
    model = _prepared(_network(padding=1)).module
    assert absorb_biases(model, _batches(1)) == ["3"]


def test_channels_that_reach_a_bound_stay():
    network = _network(nn.ReLU6)
    expected = _outputs(network, _batches(1))
    model = _prepared(copy.deepcopy(network)).module
    before = model.get_submodule("1").bias.detach().clone()
    absorb_biases(model, _batches(1))
    assert model.get_submodule("1").bias[:4].equal(before[:4])  # 20 is cut at 6
    with float_arithmetic(model):
        torch.testing.assert_close(_outputs(model, _batches(1)), expected, rtol=1e-5, atol=1e-5)


def test_a_value_that_others_read_too_stays():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = torch.relu(self.a(x) + 9.0)
            return x + self.b(x)

    assert absorb_biases(_prepared(Residual().eval()).module, _batches(1)) == []


def test_batch_norm_statistics_fit_a_later_training():
    network = _network()
    for module in network:
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    network.train()
    for batch in _batches(1):
        network(*batch)
    wrapper = _prepared(network.eval())
    absorb_biases(wrapper.module, _batches(1))
    batch_norm = wrapper.module.get_submodule("4")
    inputs = []
    batch_norm_input = wrapper.module.get_submodule("3").register_forward_hook(
        lambda _m, _a, y: inputs.append(y)
    )
    batch_norm.train()
    before = batch_norm.running_mean.clone()
    with float_arithmetic(wrapper.module), torch.no_grad():
        batch_norm.reset_running_stats()
        for batch in _batches(1):
            wrapper.module(*batch)
    batch_norm_input.remove()
    torch.testing.assert_close(batch_norm.running_mean, before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("preset", ["WT8SYMP2_AT8SYMP2", "WC8SYMP2_AT8SYMP2"])
def test_result_is_exact_as_onnx(preset, tmp_path):
    wrapper = PTCFxModule(_network(), qconfig_type=preset, verbose=False)
    images = [b for (b,) in _batches(1)]
    wrapper.calibrate(images, quality=("bias_absorption", "equalization", "activation_ranges"))
    wrapper.export(images[0][:1], tmp_path / "model.onnx", dynamic_batch=True)
    comparison = verify(wrapper, images, tmp_path / "model.onnx")
    assert sum(comparison.mismatches.values()) == 0
