import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.methods import METHODS, methods_named, post_training_method
from edgeailite.quantization.modules.layer_calls import layer_calls


@pytest.fixture
def shift_biases():
    """Register a method for the time of a test."""

    @post_training_method("shift_biases")
    def shift(model, batches):
        assert len(batches) == 2
        assert [len(batch[0]) for batch in batches] == [3, 3]
        for call in layer_calls(model):
            call.bias.data += 1.0
        return [call.path for call in layer_calls(model)]

    yield shift
    del METHODS["shift_biases"]


def test_every_method_of_the_package_is_registered():
    assert set(METHODS) >= {
        "activation_ranges",
        "analytic_biases",
        "bias_absorption",
        "biases",
        "block_tuning",
        "equalization",
        "least_squares",
        "weight_ranges",
    }


def test_a_method_from_outside_is_one_of_them(shift_biases):
    assert METHODS["shift_biases"] is shift_biases
    names = ("activation_ranges", "shift_biases")
    assert methods_named(names) == names
    with pytest.raises(ValueError, match="'shift_biases'"):
        methods_named("unknown")


def test_a_wrapper_calibrates_with_a_method_from_outside(shift_biases):
    torch.manual_seed(0)
    data = [torch.randn(4, 3, 8, 8) for _ in range(2)]
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    expected = network[2].bias.detach() + 1.0
    wrapper = PTCFxModule(network, verbose=False)
    wrapper.calibrate(data, quality=["activation_ranges", "shift_biases"])
    assert [gain.num_changed for gain in wrapper.post_training] == [3, 2]
    assert torch.equal(wrapper.module.get_submodule("2").bias, expected)


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match=r"'biases' is registered already, by .*bias_correction"):
        post_training_method("biases")(lambda model, batches: [])
    assert METHODS["biases"].__name__ == "correct_biases"
