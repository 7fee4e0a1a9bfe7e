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
from edgeailite.quantization.modules.activation import RangeObserver


def observed(*batches, **spec):
    observer = RangeObserver(QuantSpec(**spec))
    for batch in batches:
        observer(batch)
    return observer


def test_first_batch_replaces_the_placeholder():
    observer = RangeObserver(QuantSpec())
    assert observer.clips_act.tolist() == [-8.0, 8.0]
    assert not observer.has_range
    observer(torch.tensor([-0.25, 100.0]))
    assert observer.clips_act.tolist() == [-0.25, 100.0]
    assert observer.has_range


def test_unsigned_placeholder():
    assert RangeObserver(QuantSpec(signed=False)).clips_act.tolist() == [0.0, 8.0]


def test_running_average_follows_its_law():
    """The n-th batch counts max(1 / max(n, 1), 0.001), counted from 0."""
    observer, expected = RangeObserver(QuantSpec()), torch.zeros(2)
    for n in range(1100):
        x = torch.tensor([-1.0 - (n % 7), 2.0 + (n % 5)])
        observer(x)
        weight = max(1 / max(n, 1), 0.001)
        expected = expected + weight * (x - expected)
        assert float(observer.num_batches_tracked) == n
        torch.testing.assert_close(observer.clips_act, expected, rtol=1e-4, atol=1e-4)


def test_no_statistics_in_evaluation_mode_or_when_disabled():
    observer = observed(torch.tensor([-1.0, 1.0]))
    observer.eval()
    observer(torch.tensor([-9.0, 9.0]))
    observer.train()
    observer.observer_enabled = False
    observer(torch.tensor([-9.0, 9.0]))
    assert observer.clips_act.tolist() == [-1.0, 1.0]
    assert float(observer.num_batches_tracked) == 0


def test_range_is_up_to_date_after_an_observe_only_phase():
    observer = observed(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 3.0]))
    scale = activation_qparams(observer.clips_act, observer.spec).scale
    assert float(scale) == 4.0 / 256


def test_fixed_range_has_no_statistics():
    observer = observed(torch.tensor([-9.0, 9.0]), fixed_range=(-1.0, 1.0))
    assert observer.clips_act.tolist() == [-1.0, 1.0]
    assert observer.has_range


@pytest.mark.parametrize("percent", [0.1, 1.0, 10.0])
def test_percentile_leaves_that_part_outside_on_each_side(percent):
    values = torch.randn(10_000)
    low, high = percentile_range(values, percent)
    assert int((values > high).sum()) == int(10_000 * percent / 100)
    assert int((values < low).sum()) == int(10_000 * percent / 100)


def test_percentile_zero_is_min_and_max():
    values = torch.randn(1000)
    assert percentile_range(values, 0.0).tolist() == [float(values.min()), float(values.max())]


def test_percentile_ignores_an_outlier():
    x = torch.rand(20_000)
    x[7] = 1e6
    assert float(observed(x, range_rule="percentile").clips_act[1]) <= 1.0
    assert float(observed(x, range_rule="min_max").clips_act[1]) == 1e6


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


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rule", ["min_max", "percentile", "mse"])
def test_nan_and_inf_name_the_layer(bad, rule):
    observer = RangeObserver(QuantSpec(range_rule=rule))
    observer.name = "features.3.activation_q"
    x = torch.randn(1000)
    x[10] = bad
    with pytest.raises(ValueError, match=r"'features\.3\.activation_q' holds NaN or infinite"):
        observer(x)
    assert bool(observer.clips_act.isfinite().all())


def test_check_finite_names_the_layer():
    observer = RangeObserver(QuantSpec())
    observer.name = "stem"
    observer.check_finite()
    observer.clips_act[0] = float("nan")
    with pytest.raises(ValueError, match="'stem' holds NaN"):
        observer.check_finite()


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
