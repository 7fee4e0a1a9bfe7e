import pytest
import torch
from torch import nn

from edgeailite.quantization import (
    GenericTinyMLPTQFxModule,
    PTCFxModule,
    QATFxModule,
    TINPUTinyMLPTQFxModule,
)
from edgeailite.quantization.integer.memory import estimate_memory
from edgeailite.quantization.modules.pact2 import NoQAct, QAct


def converted(wrapper_type, model, x, **options):
    return wrapper_type(model, **options).calibrate([x]).convert()


def test_flash_of_a_convolution_by_hand():
    x = torch.randn(4, 1, 8, 8)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    estimate = estimate_memory(converted(TINPUTinyMLPTQFxModule, model, x), x)
    by_name = {layer.name: layer for layer in estimate.layers}
    assert (by_name["0"].weights, by_name["0"].offsets, by_name["0"].scales) == (36, 16, 8)
    assert (by_name["3"].weights, by_name["3"].offsets, by_name["3"].scales) == (432, 12, 6)
    assert estimate.flash == 36 + 16 + 8 + 432 + 12 + 6 + 6  # 6: quantization of the input


@pytest.mark.parametrize(("bits", "weights"), [(8, 432), (4, 216), (2, 108)])
def test_weights_count_with_their_bits(bits, weights):
    x, model = torch.randn(4, 144), nn.Sequential(nn.Linear(144, 3))
    for wrapper_type in (TINPUTinyMLPTQFxModule, GenericTinyMLPTQFxModule):
        made = converted(wrapper_type, model, x, qconfig_type={"weight": {"bitwidth": bits}})
        assert estimate_memory(made, x).layers[-1].weights == weights
        model = nn.Sequential(nn.Linear(144, 3))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        y = torch.relu(self.a(x))
        return torch.relu(self.b(y) + y)


def test_the_peak_of_a_residual_holds_both_branches():
    x = torch.randn(2, 4, 8, 8)
    for wrapper_type in (TINPUTinyMLPTQFxModule, GenericTinyMLPTQFxModule):
        estimate = estimate_memory(converted(wrapper_type, Residual(), x), x)
        # 4 * 64 raw floats and their integers; later three maps of 4 * 64 bytes.
        assert estimate.ram == 4 * 64 * 5
        assert estimate.peak.endswith("activation_in")


def test_float_values_take_four_bytes_and_reshapes_none():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 64), nn.Linear(64, 2)

        def forward(self, x):
            return self.b(self.a(x.flatten(1)).cumsum(1).reshape(-1, 64))

    x = torch.randn(4, 4, 4)
    estimate = estimate_memory(converted(TINPUTinyMLPTQFxModule, Mixed(), x), x)
    assert estimate.ram == 2 * 64 * 4  # cumsum: real values in and out
    assert estimate.peak == "cumsum"


@pytest.mark.parametrize("mark", [QAct, NoQAct])
def test_a_mark_takes_no_room(mark):
    x = torch.randn(4, 3, 8, 8)
    estimates = [
        estimate_memory(converted(PTCFxModule, nn.Sequential(nn.Conv2d(3, 4, 1), *rest), x), x)
        for rest in ([nn.RReLU(), mark()], [nn.RReLU()])
    ]
    assert estimates[0].ram == estimates[1].ram == 2 * 4 * 64 * 4  # real values in and out


def test_the_estimate_reads_as_a_table():
    x = torch.randn(4, 16)
    estimate = estimate_memory(
        converted(TINPUTinyMLPTQFxModule, nn.Sequential(nn.Linear(16, 3)), x), x
    )
    lines = str(estimate).splitlines()
    assert lines[0].split() == ["layer", "weights", "offsets", "scales", "total", "(bytes)"]
    assert lines[-2].split() == ["flash", "48", "16", "8", "72"]
    assert lines[-1].startswith("RAM: 80 bytes of values at the peak")
    assert estimate.to_dict()["flash"] == 72


def test_an_average_and_other_wrappers_count_too():
    x = torch.randn(4, 2, 6, 6)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AvgPool2d(3, 1, 1, False, False))
    layers = estimate_memory(converted(TINPUTinyMLPTQFxModule, model, x), x).layers
    assert (layers[-1].offsets, layers[-1].scales) == (16 * 4, 16 * 2)  # a factor for each place
    wrapper = QATFxModule(nn.Sequential(nn.Conv2d(2, 4, 3)), total_epochs=1).calibrate([x])
    assert estimate_memory(wrapper.convert(), x).layers[0].weights == 72


def test_a_model_that_is_not_converted_is_refused():
    wrapper = TINPUTinyMLPTQFxModule(nn.Sequential(nn.Linear(4, 2)))
    with pytest.raises(TypeError, match="needs a converted model"):
        estimate_memory(wrapper, torch.randn(1, 4))
