import pytest
import torch

from edgeailite.quantization.arithmetic.fake_quantize import (
    fake_quantize_reference,
    in_memory_order,
)
from edgeailite.quantization.arithmetic.qparams import activation_qparams
from edgeailite.quantization.arithmetic.ranges import (
    SAMPLE_SIZE,
    mse_range,
    percentile_range,
    sample,
    weight_max_abs,
)
from edgeailite.quantization.arithmetic.spec import QuantSpec


@pytest.mark.parametrize("signed", [True, False, None])
@pytest.mark.parametrize("power_of_two", [True, False])
def test_mse_range_has_at_most_the_error_of_the_full_range(signed, power_of_two):
    spec = QuantSpec(bit_width=4, signed=signed, power_of_two=power_of_two)
    values = torch.randn(5000)
    values[0] = 20.0

    def error(clips):
        target = values.clamp_min(0) if signed is False else values
        grid = activation_qparams(clips, spec)
        return float((fake_quantize_reference(values, *grid) - target).square().mean())

    found = mse_range(values, spec)
    assert error(found) < error(percentile_range(values, 0.0))


def test_a_sample_does_not_grow_with_the_tensor():
    small, large = torch.randn(1000), torch.randn(50 * SAMPLE_SIZE + 11)
    assert torch.equal(sample(small), small)
    assert SAMPLE_SIZE / 2 < sample(large).numel() <= 1.1 * SAMPLE_SIZE


def test_a_sample_is_spread_over_all_channels():
    x = torch.arange(64.0).reshape(1, 64, 1, 1).expand(16, 64, 64, 64).contiguous()
    counts = torch.bincount(sample(x).long(), minlength=64)
    assert counts.min() > 0.5 * counts.float().mean()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_order_makes_no_copy(layout):
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=layout)
    flat = in_memory_order(x)
    assert flat.data_ptr() == x.data_ptr()
    assert sorted(flat.tolist()) == sorted(x.flatten().tolist())


@pytest.mark.parametrize("rule", ["min_max", "percentile", "mse"])
def test_weight_ranges_of_an_outlier(rule):
    rows = torch.randn(4, 2000)
    rows[2, 5] = 1000.0
    spec = QuantSpec(
        signed=True, granularity="per_channel", range_rule=rule, range_shrink_percentile=0.1
    )
    found = weight_max_abs(rows, spec)
    assert found.shape == (4,)
    full = rows.abs().amax(dim=1)
    assert bool((found <= full).all())
    if rule == "min_max":
        assert torch.equal(found, full)
    if rule == "percentile":
        assert [int((row.abs() > m).sum()) for row, m in zip(rows, found, strict=True)] == [2] * 4


@pytest.mark.parametrize("rule", ["percentile", "mse"])
def test_weight_ranges_per_tensor_are_one_number(rule):
    found = weight_max_abs(torch.randn(4, 500), QuantSpec(signed=True, range_rule=rule))
    assert found.shape == (4,)
    assert found.unique().numel() == 1
