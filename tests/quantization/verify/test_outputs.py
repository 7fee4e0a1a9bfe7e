import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule, TINPUTinyMLPTQFxModule
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.verify.outputs import OutputGrid, flat, output_grids

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)).eval()


def test_tensors_of_any_structure_in_order():
    a, b, c = torch.zeros(3)
    assert flat({"x": a, "y": (b, [c], None)}) == [a, b, c]


def test_a_real_output_lies_on_its_grid():
    wrapper = PTCFxModule(_network(), verbose=False).calibrate([X])
    converted = wrapper.convert().module
    low, high = quantizers(wrapper.module)["3.activation_q"].clips_act.tolist()
    ((scale, factor),) = output_grids(converted)
    assert scale == pytest.approx((max(high, 0.0) - min(low, 0.0)) / 255)
    steps = converted(X) / scale
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0.0)
    assert factor == 1.0


@pytest.mark.filterwarnings("ignore:.*the NPU computes.*:UserWarning")
def test_an_output_of_integers_has_a_factor():
    wrapper = TINPUTinyMLPTQFxModule(_network(), 1, verbose=False).calibrate([X])
    converted = wrapper.convert().module
    ((scale, factor),) = output_grids(converted)
    assert scale == 1.0
    assert torch.equal(converted(X) * factor, wrapper.eval()(X))


def test_an_output_in_float_lies_on_no_grid():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softplus()).eval()
    wrapper = PTCFxModule(network, verbose=False, leaf_modules=["1"]).calibrate([X])
    assert output_grids(wrapper.convert().module) == [OutputGrid(None, 1.0)]
