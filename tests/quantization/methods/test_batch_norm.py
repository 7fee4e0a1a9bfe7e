import pytest
import torch
from torch import nn

from edgeailite.quantization import QATFxModule, QuantTrainModule
from edgeailite.quantization.methods.batch_norm import reestimate_batch_norms
from edgeailite.quantization.modules.layer_calls import layer_calls

X = torch.zeros(1, 3, 8, 8)


def _network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=0.03), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(8, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
    )  # fmt: skip


@pytest.fixture(params=["pact2", "fx"])
def wrapper(request):
    if request.param == "pact2":
        wrapper = QuantTrainModule(_network(), dummy_input=X, total_epochs=4)
    else:
        wrapper = QATFxModule(_network(), example_inputs=X, total_epochs=4, verbose=False)
    return wrapper.calibrate([torch.randn(8, 3, 8, 8)])


def test_statistics_are_those_of_the_data_on_the_quantized_weights(wrapper):
    batches = [torch.randn(32, 3, 8, 8) + shift for shift in (0.0, 1.0)]
    wrapper.module.get_submodule("1").running_mean.fill_(0.7)
    wrapper.reestimate_batch_norms(batches)
    norm, call = wrapper.module.get_submodule("1"), layer_calls(wrapper.module)[0]
    entrance = call.input_quantizer
    weight = call.quantized_parameters()[0].detach()
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    outputs = [
        nn.functional.conv2d(entrance(x.clone()), weight / gain.reshape(-1, 1, 1, 1), call.bias)
        for x in batches
    ]
    mean = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
    variance = torch.stack([y.var((0, 2, 3)) for y in outputs]).mean(0)
    # The grid of the weight moves a little with the variance that it is folded with.
    torch.testing.assert_close(norm.running_mean, mean, atol=0.02, rtol=0.02)
    torch.testing.assert_close(norm.running_var, variance, atol=0.02, rtol=0.05)


def test_nothing_else_changes(wrapper):
    before = {k: v.clone() for k, v in wrapper.module.state_dict().items()}
    wrapper.reestimate_batch_norms([torch.randn(8, 3, 8, 8)] * 2)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for name, value in wrapper.module.state_dict().items():
        is_norm = name.startswith(("1.", "5.")) and name.endswith(statistics)
        assert torch.equal(before[name], value) != is_norm, name
    assert not any(module.training for module in wrapper.modules())
    assert wrapper.module.get_submodule("1").momentum == 0.03


def test_data_are_needed(wrapper):
    with pytest.raises(ValueError, match="no batch to measure"):
        wrapper.reestimate_batch_norms([])
    with pytest.raises(ValueError, match="no batch to measure"):
        reestimate_batch_norms(wrapper.module, [])
