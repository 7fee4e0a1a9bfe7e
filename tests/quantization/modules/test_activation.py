import copy
import pickle

import pytest
import torch
from torch import nn

from edgeailite.quantization.arithmetic.qparams import activation_qparams
from edgeailite.quantization.arithmetic.ranges import percentile_range
from edgeailite.quantization.arithmetic.spec import QuantSpec
from edgeailite.quantization.modules.activation import FakeQuantize, RangeObserver


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


def test_disabled_fake_quantization_is_the_float_activation():
    x = torch.tensor([-1.0, 0.3, 9.0])
    for spec, bounds, expected in [
        (QuantSpec(signed=False), None, [0.0, 0.3, 9.0]),
        (QuantSpec(signed=True), None, [-1.0, 0.3, 9.0]),
        (QuantSpec(signed=False), (0.0, 6.0), [0.0, 0.3, 6.0]),
    ]:
        quantizer = FakeQuantize(spec, bounds)
        quantizer.fake_quant_enabled = False
        assert quantizer(x).tolist() == pytest.approx(expected)


def test_absorbed_bounds_cut_the_grid():
    quantizer = FakeQuantize(QuantSpec(signed=False), (0.0, 6.0))
    x = torch.linspace(-1, 10, 1001)
    y = quantizer(x)
    assert float(y.min()) == 0.0
    assert float(y.max()) == 6.0  # 6 / (8 / 256) is whole
    x = x.clone().requires_grad_()
    quantizer(x).sum().backward()
    inside = (x.detach() > 0) & (x.detach() < 6)
    assert bool((x.grad[inside] == 1).all())
    assert bool((x.grad[x.detach() > 6.1] == 0).all())


RULES = ["min_max", "percentile", "mse"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("power_of_two", [True, False])
@pytest.mark.parametrize("reach", [0.3, 0.9, 5.0])
def test_the_range_of_a_clamp_is_that_of_its_values(rule, power_of_two, reach):
    """Bounds of the data's own are the range; others change nothing."""
    x = torch.linspace(-reach, reach, 2001)
    spec = QuantSpec(power_of_two=power_of_two, range_rule=rule, range_shrink_percentile=0)
    bounded, behind = FakeQuantize(spec, (-1.0, 1.0)), FakeQuantize(spec)
    assert torch.equal(bounded(x), behind(x.clamp(-1, 1)))
    assert torch.equal(bounded.clips_act, behind.clips_act)
    if rule != "mse":
        assert bounded.clips_act.abs().tolist() == pytest.approx([min(reach, 1.0)] * 2)


@pytest.mark.parametrize("rule", RULES)
def test_a_clamp_far_wider_than_the_data_changes_nothing(rule):
    x = torch.randn(4000)
    spec = QuantSpec(range_rule=rule)
    for bounds in ((-65504.0, 65504.0), (-100.0, 1e4), (-torch.inf, torch.inf)):
        assert torch.equal(FakeQuantize(spec, bounds)(x), FakeQuantize(spec)(x))


@pytest.mark.parametrize(
    ("bounds", "expected"), [((5.0, 10.0), 4.98), ((-10.0, -5.0), -5.0), ((0.25, 0.5), 0.25)]
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_clamp_beside_the_data_gives_its_bound(bounds, expected, symmetric):
    quantizer = FakeQuantize(QuantSpec(symmetric=symmetric), bounds)
    y = quantizer(torch.linspace(-0.1, 0.1, 11))
    assert y.tolist() == pytest.approx([expected] * 11, rel=0.01)
    low, high = quantizer.limits(quantizer.qparams())
    assert -128 <= low <= high <= 255


def test_the_fixed_range_of_a_clamp_in_an_early_checkpoint_stays():
    state = {"clips_act": torch.tensor([-3.0, 3.0]), "num_batches_tracked": torch.tensor(-1.0)}
    flags = {"observer_enabled": torch.tensor(0), "fake_quant_enabled": torch.tensor(1)}
    for checkpoint in (state, {**state, **flags}):
        quantizer = FakeQuantize(QuantSpec(learned=True), (-3.0, 3.0))
        quantizer.load_state_dict(checkpoint)
        quantizer.train()(torch.randn(100))
        assert quantizer.has_range
        assert quantizer.clips_act.tolist() == [-3.0, 3.0]
    fresh = FakeQuantize(QuantSpec(), (-3.0, 3.0))
    fresh.load_state_dict(FakeQuantize(QuantSpec(), (-3.0, 3.0)).state_dict())
    assert not fresh.has_range
    assert fresh.observer_enabled


def test_a_placeholder_is_no_range_to_convert():
    quantizer = FakeQuantize(QuantSpec())
    with pytest.raises(ValueError, match=r"range at 'a\.b' has never seen data.*calibrate\(loader"):
        quantizer.require_range("a.b")
    quantizer(torch.randn(10))
    quantizer.require_range("a.b")
    FakeQuantize(QuantSpec(fixed_range=(-1.0, 1.0))).require_range("a.b")


def trained_quantizer(low, high, signed):
    quantizer = FakeQuantize(QuantSpec(signed=signed)).train()
    quantizer(torch.linspace(low, high, 64))
    return quantizer.eval()


def test_a_shared_scale_is_the_coarsest():
    a = trained_quantizer(0.0, 1.0, False)  # 1 / 256
    b = trained_quantizer(-2.0, 2.0, True)  # 2 / 128
    FakeQuantize.share_scale([a, b])
    assert float(a.qparams().scale) == float(b.qparams().scale) == 2 / 128
    assert (a.qparams().quant_min, b.qparams().quant_min) == (0, -128)


def test_groups_that_meet_become_one():
    quantizers = [trained_quantizer(-(2.0**i), 2.0**i, True) for i in range(4)]
    FakeQuantize.share_scale(quantizers[:2])
    FakeQuantize.share_scale(quantizers[2:])
    FakeQuantize.share_scale(quantizers[1:3])
    FakeQuantize.share_scale(quantizers[1:3])
    assert {float(q.qparams().scale) for q in quantizers} == {8 / 128}
    assert all(len(q._partners) == 3 for q in quantizers)


def test_a_partner_without_data_does_not_count():
    a, b = trained_quantizer(-0.5, 0.5, True), FakeQuantize(QuantSpec(signed=True))
    FakeQuantize.share_scale([a, b])
    assert float(a.qparams().scale) == 0.5 / 128
    fixed = FakeQuantize(QuantSpec(signed=True, fixed_range=(-4.0, 4.0)))
    FakeQuantize.share_scale([a, fixed])
    assert float(a.qparams().scale) == 4 / 128


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_shares_with_copies(duplicate):
    pair = nn.ModuleList([trained_quantizer(-(2.0**i), 2.0**i, True) for i in range(2)])
    FakeQuantize.share_scale(pair)
    other = duplicate(pair)
    other[1].clips_act.mul_(8)
    assert float(other[0].qparams().scale) == 16 / 128
    assert float(pair[0].qparams().scale) == 2 / 128
    assert set(other.state_dict()) == set(pair.state_dict())
