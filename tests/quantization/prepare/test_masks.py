"""A mask among values: what may hold one stays in float, by name, until a softmax ends it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.arithmetic.sqnr import sqnr
from edgeailite.quantization.report import build_report

LOWEST = torch.finfo(torch.float32).min
# Scores, keys that are seen (1, else 0: an input), a causal mask and a bias (buffers).
MASKS = {
    "product": lambda s, seen, m, b: s + (1.0 - seen) * -1e4,
    "lowest": lambda s, seen, m, b: s + (1.0 - seen) * LOWEST,
    "bias behind": lambda s, seen, m, b: s + (1.0 - seen) * -1e4 + b,
    "difference": lambda s, seen, m, b: s - 1e4 * (1.0 - seen),
    "filled": lambda s, seen, m, b: s.masked_fill(seen == 0, -1e9),
    "filled, then a bias": lambda s, seen, m, b: s.masked_fill(seen == 0, -1e9) + b,
    "filled, then scaled": lambda s, seen, m, b: s.masked_fill(seen == 0, -1e9) * 0.5 + b,
    "filled, then weighted": lambda s, seen, m, b: s.masked_fill(seen == 0, -1e9) * b.abs(),
    "filled, then leaky": lambda s, seen, m, b: F.leaky_relu(s.masked_fill(seen == 0, -1e9)) + b,
    "filled twice": lambda s, seen, m, b: s.masked_fill(m, -1e9).masked_fill(m.t() & m, -1e9),
    "filled by both": lambda s, seen, m, b: s.masked_fill(seen == 0, -1e9).masked_fill(m, -1e9),
    "moved": lambda s, seen, m, b: s.masked_fill(seen == 0, -1e9).flip(1).flip(1) + b,
    "chosen": lambda s, seen, m, b: torch.where(seen == 0, torch.tensor(-1e9), s) + b,
    "constant, then a bias": lambda s, seen, m, b: s + m * -1e4 + b,
}  # fmt: skip


class Attention(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.qkv, self.last, self.mask = nn.Linear(8, 24), nn.Linear(8, 5), mask
        self.register_buffer("causal", torch.ones(6, 6).triu(1).bool())
        self.register_buffer("bias", torch.randn(6, 6))

    def forward(self, x, seen):
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = self.mask(q @ k.transpose(1, 2) / 3, seen[:, None], self.causal, self.bias)
        return self.last(scores.softmax(-1) @ v)


def wrap(mask, example):
    torch.manual_seed(0)
    x, lengths = torch.randn(4, 6, 8), torch.tensor([[6], [5], [3], [4]])
    inputs = x, (torch.arange(6) < lengths).float()
    model = Attention(mask)
    original = copy.deepcopy(model)
    given = inputs if example else None
    wrapper = PTCFxModule(model, example_inputs=given, verbose=False).calibrate([inputs])
    with torch.no_grad():
        return wrapper, inputs, float(sqnr(original(*inputs), wrapper(*inputs)))


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("name", MASKS)
def test_scores_keep_their_integers_beside_a_mask(name, example):
    wrapper, inputs, decibels = wrap(MASKS[name], example)
    assert decibels > 30  # one grid for both: 10 to 20 dB
    floats = build_report(wrapper, [inputs]).floats
    assert "softmax" in floats
    assert not {"qkv", "last"} & floats.keys()


def test_what_a_softmax_made_of_a_mask_is_quantized():
    def mask(s, seen, m, b):
        return s.masked_fill(seen == 0, -1e9).softmax(-1) + b

    wrapper, inputs, _ = wrap(mask, True)
    operations = [e.operation for e in build_report(wrapper, [inputs]).floats.values()]
    assert operations == ["masked_fill", "softmax"]


@pytest.mark.parametrize("fill", [0.0, -2.0])
def test_small_numbers_are_no_mask(fill):
    def mask(s, seen, m, b):
        return s.masked_fill(seen == 0, fill) + b

    wrapper, inputs, decibels = wrap(mask, True)
    assert decibels > 30
    assert len(build_report(wrapper, [inputs]).floats) == 1


def test_a_large_factor_alone_is_no_mask():
    class Sensor(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 5)
            self.gain = nn.Parameter(torch.ones(6))

        def forward(self, x):
            y = self.first(x * 65535.0)
            return self.last(y / 65535.0 + self.gain)

    torch.manual_seed(0)
    model, x = Sensor(), torch.randn(16, 4)
    original = copy.deepcopy(model)
    wrapper = PTCFxModule(model, verbose=False).calibrate([x])
    with torch.no_grad():
        assert sqnr(original(x), wrapper(x)) > 30
    assert build_report(wrapper, [x]).floats == {}


@pytest.mark.parametrize("preset", ["WT8SYMP2_AT8SYMP2", "WC8_AT8"])
def test_a_row_that_is_masked_as_a_whole_leaves_the_others_their_integers(preset):
    """Padding of a sequence masks whole rows: their values are no reason for a coarse grid."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            mask = torch.zeros(6, 6)
            mask[0], mask[2, 3:] = -1e9, -1e9
            self.register_buffer("mask", mask)
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return (4 * self.layer(x) + self.mask).softmax(-1)

    torch.manual_seed(0)
    model, x = Masked().eval(), torch.randn(4, 6, 6)
    wrapper = PTCFxModule(
        copy.deepcopy(model), qconfig_type=preset, example_inputs=x, verbose=False
    )
    wrapper.calibrate([x])
    with torch.no_grad():
        found, expected = wrapper(x), model(x)
    assert not build_report(wrapper).floats
    assert sqnr(expected[:, 1:], found[:, 1:]) > 25
    torch.testing.assert_close(found[:, 0], torch.full((4, 6), 1 / 6), rtol=0.0, atol=0.01)
