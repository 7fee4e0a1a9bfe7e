import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeailite.quantization.arithmetic.ranges import SAMPLE_SIZE
from edgeailite.quantization.arithmetic.sqnr import decibel, sqnr
from edgeailite.quantization.report import build_report
from edgeailite.quantization.report.measure import Statistics, histogram
from tests.quantization.helpers import trained

floats = st.floats(-1e3, 1e3, width=32)


def test_sqnr():
    x = torch.randn(1000)
    assert sqnr(x, x) == math.inf
    assert sqnr(x, x * 0.9) == pytest.approx(20.0, abs=1e-4)


def test_decibel_of_nothing_is_finite():
    assert math.isfinite(decibel(0.0, 1.0))


@given(st.lists(floats, min_size=1, max_size=50), floats, floats)
def test_every_value_is_in_one_bin(values, a, b):
    found = histogram(torch.tensor(values), min(a, b), max(a, b))
    assert sum(found.counts) == len(values)
    assert found.low < found.high


def test_values_beyond_the_window_are_in_the_outermost_bins():
    found = histogram(torch.tensor([-9.0, 0.1, 7.0, 8.0]), 0.0, 1.0, num_bins=4)
    assert found.counts == [2, 0, 0, 2]


def test_a_histogram_reaches_at_most_a_grids_width_beyond_the_grid():
    seen = Statistics()
    values = torch.tensor([-0.5, 0.5, 1000.0])
    seen.add_float(values, (-1.0, 1.0))
    seen.keep(values)
    found = seen.histogram((-1.0, 1.0))
    assert (found.low, found.high) == (-1.0, 3.0)
    assert found.counts[-1] == 1


def test_memory_does_not_grow_with_batches():
    seen = Statistics()
    generator = torch.Generator().manual_seed(0)
    for _ in range(64):
        values = torch.rand(SAMPLE_SIZE, generator=generator)
        seen.add_float(values, (0.0, 0.5))
        seen.keep(values)
    assert sum(s.numel() for s in seen._sample) <= 2 * SAMPLE_SIZE
    assert seen.count == 64 * SAMPLE_SIZE
    assert seen.num_clipped / seen.count == pytest.approx(0.5, abs=0.01)
    assert seen.percentile == pytest.approx(0.999, abs=0.001)


def test_each_batch_counts_alike_after_thinning():
    seen = Statistics()
    for level in range(16):
        seen.keep(torch.full((SAMPLE_SIZE,), float(level)))
    kept = torch.cat(seen._sample)
    shares = torch.bincount(kept.long(), minlength=16) / kept.numel()
    assert shares.min() > 0.8 / 16
    assert shares.max() < 1.2 / 16


class OverwritesItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 4, 1), nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        y = self.conv(x)
        y *= self.scale
        return y


def test_what_the_model_overwrites_is_measured_before():
    model = trained(OverwritesItsInput(), [(3, 8, 8)])
    report = build_report(model, [torch.randn(4, 3, 8, 8)])
    assert report.layers[0].output_sqnr > 20


def test_large_values_are_sampled():
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 1)), [(3, 8, 8)])
    images = torch.randn(2, 3, 200, 200).clamp(-2, 2)
    whole = build_report(model, [images])
    halves = build_report(model, images.split(1))
    entry, other = whole.activations[0], halves.activations[0]
    assert sum(entry.histogram.counts) < images.numel()
    assert (entry.clipped, entry.values) == (other.clipped, other.values)
    assert entry.sqnr == pytest.approx(other.sqnr, abs=0.2)
