import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeailite.quantization.arithmetic.ranges import SAMPLE_SIZE
from edgeailite.quantization.report.statistics import Statistics, histogram

floats = st.floats(-1e3, 1e3, width=32)


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
