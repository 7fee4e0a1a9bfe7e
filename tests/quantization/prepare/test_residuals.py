import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.arithmetic.sqnr import sqnr
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.report import build_report
from edgeailite.quantization.verify import verify


class Stream(nn.Module):
    """A stem, blocks that add to a stream what they compute from its norm, and a ResNet's block."""

    def __init__(self, blocks=6, width=16):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 4, 4), nn.Linear(width, 5)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(blocks + 1)])
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(blocks)])
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.conv(x)).flatten(2).transpose(1, 2)
        for norm, layer in zip(self.norms, self.layers, strict=False):
            x = x + F.gelu(layer(norm(x)))
        return self.head(self.norms[-1](x).mean(1))


def wrap(bits, preset="WC8_AT8"):
    torch.manual_seed(0)
    model, x = Stream(), torch.randn(4, 3, 16, 16)
    original = copy.deepcopy(model)
    wrapper = PTCFxModule(model, qconfig_type=preset, residual_bits=bits, verbose=False)
    wrapper.calibrate([x])
    with torch.no_grad():
        return wrapper, x, float(sqnr(original(x), wrapper(x)))


def test_sums_that_norms_and_sums_alone_read_have_more_bits():
    wrapper, *_ = wrap(12)
    quantizers = {n: m for n, m in wrapper.module.named_modules() if isinstance(m, FakeQuantize)}
    fine = {name: m.spec.bit_width for name, m in quantizers.items() if m.spec.bit_width != 8}
    assert list(fine.values()) == [12] * 6  # not the sum that a layer reads, nor its ReLU
    assert all(name.startswith("add") for name in fine)


# With free scales the 8 bits of the output are most of what is left.
@pytest.mark.parametrize(("preset", "gain"), [("WC8_AT8", 0.4), ("WT8SYMP2_AT8SYMP2", 1.5)])
def test_a_stream_with_16_bits_is_closer_to_float_and_equal_everywhere(preset, gain, tmp_path):
    *_, coarse = wrap(None, preset)
    wrapper, x, fine = wrap(16, preset)
    assert fine > coarse + gain
    found = verify(wrapper, [x], wrapper.export(x, tmp_path / "m.onnx"))
    assert set(found.mismatches.values()) == {0}
    assert build_report(wrapper, [x]).floats == {}


@pytest.mark.parametrize("bits", [8, 17, "16", 12.5])
def test_bits_that_a_stream_cannot_have_are_refused(bits):
    with pytest.raises(ValueError, match=r"residual_bits is .*; allowed: 9 to 16, or None"):
        PTCFxModule(nn.Linear(2, 2), residual_bits=bits)
