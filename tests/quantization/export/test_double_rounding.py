"""Files in which a value is rounded to two grids: ONNX Runtime must not make one of them."""

import onnx
import pytest
import torch
from torch import nn

from edgeailite.quantization.verify import verify
from edgeailite.quantization.wrappers import PTCFxModule

IMAGES = torch.rand(4, 3, 9, 9)


class Clipped(nn.Module):
    def forward(self, x):
        return x.clamp(0.0, 0.5)


@pytest.mark.parametrize("format", ["QDQ_MODEL", "INT_MODEL"])
@pytest.mark.parametrize("preset", ["WC8_AT8", "WC8P2_AT8P2", "WT8SYMP2_AT8SYMP2"])
def test_both_roundings_stay(preset, format, tmp_path):
    wrapper = PTCFxModule(Clipped(), qconfig_type=preset).calibrate([IMAGES])
    path = wrapper.export(IMAGES, tmp_path / "m.onnx", format=format)
    assert [n.op_type for n in onnx.load(path).graph.node].count("Max") == 1
    found = verify(wrapper, [torch.rand(16, 3, 9, 9)], path)
    assert found.exact, str(found)


def test_one_rounding_needs_no_limit(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1))
    wrapper = PTCFxModule(model, qconfig_type="WC8_AT8").calibrate([IMAGES])
    path = wrapper.export(IMAGES, tmp_path / "m.onnx")
    assert "Max" not in {n.op_type for n in onnx.load(path).graph.node}
