import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization import TINPUTinyMLPTQFxModule
from edgeailite.quantization.targets.tinpu.target import Tinpu


@pytest.mark.parametrize("bits", [1, 17])
def test_multipliers_have_a_few_bits(bits):
    with pytest.raises(ValueError, match=rf"input_multiplier_bits is {bits}; allowed: 2 to 16"):
        Tinpu(input_multiplier_bits=bits)


class FunctionalConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 1, 3, 1))
        self.head = nn.Linear(4 * 7, 4)

    def forward(self, x):
        return self.head(F.relu(F.conv2d(x, self.weight, None, (2, 1), (0, 0))).flatten(1))


def test_a_functional_convolution_is_checked_and_written_as_a_layer_is(tmp_path):
    x = torch.randn(2, 1, 16, 1)
    converted = TINPUTinyMLPTQFxModule(FunctionalConvolution()).calibrate([x]).convert()
    converted.export(x, tmp_path / "net.onnx", strict=True)
    text = converted.export_c(x, tmp_path)[0].read_text()
    assert ".stride = {2, 1}" in text
    assert ".kernel = {3, 1}" in text
