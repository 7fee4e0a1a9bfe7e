"""Arguments, schedule, state-dict contract and calibration of the PACT2 wrappers."""

import copy
import operator
import pickle

import pytest
import torch
from torch import nn

from edgeailite.quantization.modules.layer_calls import layer_calls
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.wrappers import (
    QuantCalibrateModule,
    QuantTestModule,
    QuantTrainModule,
)

X = (1, 3, 8, 8)


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, eps=1e-3, momentum=0.03),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6(), nn.Dropout(0.3),
        nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


def wrap(**options: object) -> QuantTrainModule:
    return QuantTrainModule(net(), torch.rand(X), **{"total_epochs": 8, **options})


def train_step(wrapper: nn.Module, lr: float = 1e-2) -> None:
    optimizer = torch.optim.SGD(wrapper.parameters(), lr=lr)
    optimizer.zero_grad()
    wrapper(torch.randn(8, *X[1:])).square().mean().backward()
    optimizer.step()


def calibrated(**options: object) -> QuantCalibrateModule:
    wrapper = QuantCalibrateModule(net(), torch.rand(X), **options)
    wrapper.train()
    torch.manual_seed(0)
    for _ in range(4):
        wrapper(torch.randn(8, *X[1:]))
    return wrapper.eval()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"total_epochs": 0}, "total_epochs"),
        ({"bitwidth_weights": 1}, "bitwidth_weights"),
        ({"bitwidth_activations": 17}, "bitwidth_activations"),
        ({"per_channel_q": "some"}, "per_channel_q"),
        ({"constrain_bias": "MAYBE"}, "SATURATE"),
        ({"range_shrink_activations": 50}, "range_shrink_activations"),
        ({"rounding": "up"}, "half_even"),
        ({"range_rule": "guess"}, "range_rule"),
    ],
)
def test_wrong_argument_is_named(options, word):
    with pytest.raises(ValueError, match=word):
        wrap(**options)


def test_unknown_keyword_is_an_error():
    with pytest.raises(TypeError, match="bitwidth_weight"):
        wrap(bitwidth_weight=8)


def test_dummy_input_of_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"dummy_input, example_inputs\) of shape \(1, 5, 8, 8\)"):
        QuantTrainModule(net(), torch.rand(1, 5, 8, 8), total_epochs=2)


def test_nan_weight_is_named():
    model = net()
    with torch.no_grad():
        model[3].weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"'3\.weight' holds NaN"):
        QuantTrainModule(model, torch.rand(X), total_epochs=2)


def test_nan_activation_names_the_quantizer():
    wrapper = wrap().train()
    with pytest.raises(ValueError, match=r"'0\.activation_in' holds NaN"):
        wrapper(torch.full(X, torch.nan))


def test_schedule_freezes_batch_norm_then_ranges_and_says_so(capsys):
    wrapper = wrap(total_epochs=8)
    frozen = []
    for _ in range(8):
        assert wrapper.train() is wrapper
        wrapper(torch.randn(4, *X[1:]))
        ranges = any(q.observer_enabled for q in quantizers(wrapper).values())
        frozen.append((wrapper.module.get_submodule("1").training, ranges))
        assert wrapper.eval() is wrapper
    assert frozen == [(True, True)] * 3 + [(False, True)] * 2 + [(False, False)] * 3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "epoch 3: batch norm" in lines[0]
    assert "epoch 5: activation ranges" in lines[1]


def test_ranges_behind_a_frozen_batch_norm_go_on_learning():
    wrapper = wrap(total_epochs=2).train()  # freezes batch norm at once
    wrapper(torch.randn(4, *X[1:]))
    assert all(q.has_range for q in quantizers(wrapper).values())


def test_unfreeze_undoes_freeze():
    wrapper = wrap().train()
    wrapper.freeze()
    before = {k: v.clone() for k, v in wrapper.module.state_dict().items() if "clips" in k}
    wrapper(10 * torch.randn(4, *X[1:]))
    assert all(torch.equal(v, wrapper.module.state_dict()[k]) for k, v in before.items())
    wrapper.unfreeze()
    mean = wrapper.module.get_submodule("1").running_mean.clone()
    wrapper(10 * torch.randn(4, *X[1:]))
    assert any(not torch.equal(v, wrapper.module.state_dict()[k]) for k, v in before.items())
    assert not torch.equal(mean, wrapper.module.get_submodule("1").running_mean)


def test_evaluation_before_training_freezes_nothing():
    wrapper = wrap()
    wrapper.eval()
    with pytest.warns(UserWarning, match="never seen data"):
        wrapper(torch.rand(X))
    wrapper.train()
    wrapper(torch.randn(4, *X[1:]))
    assert all(q.has_range for q in quantizers(wrapper).values())


def test_first_training_step_leaves_float_weights_float():
    wrapper = wrap().train()
    before = wrapper.module.get_submodule("0").weight.clone()
    wrapper(torch.randn(4, *X[1:]))
    assert torch.equal(before, wrapper.module.get_submodule("0").weight)


def test_wrapping_changes_no_hyperparameter_and_no_float_key():
    keys = set(net().state_dict())
    wrapper = wrap()
    batch_norm = wrapper.module.get_submodule("1")
    assert (batch_norm.eps, batch_norm.momentum) == (1e-3, 0.03)
    assert wrapper.module.get_submodule("6").p == 0.3
    assert keys <= set(wrapper.module.state_dict())


def test_float_checkpoint_loads_strictly_and_another_models_does_not():
    wrapper = wrap()
    wrapper.module.load_state_dict(net().state_dict())
    state = net().state_dict()
    state["11.more"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"11\.more"):
        wrapper.module.load_state_dict(state)
    state = net().state_dict()
    del state["0.weight"]
    with pytest.raises(RuntimeError, match=r"0\.weight"):
        wrapper.module.load_state_dict(state)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_mid_training_compute_the_same(copier):
    wrapper = wrap().train()
    train_step(wrapper)
    twin = copier(wrapper)
    assert twin.epoch == wrapper.epoch
    for module in (wrapper, twin):
        torch.manual_seed(5)
        train_step(module)
    x = torch.randn(4, *X[1:])
    assert torch.equal(wrapper.eval()(x), twin.eval()(x))


def test_wrapper_state_restores_the_schedule():
    wrapper = wrap(total_epochs=4)
    for _ in range(3):
        wrapper.train()
        train_step(wrapper)
    other = wrap(total_epochs=4)
    other.load_state_dict(wrapper.state_dict())
    assert (other.epoch, other.progress.batch_norm_frozen) == (2, True)
    x = torch.randn(4, *X[1:])
    assert torch.equal(wrapper.eval()(x), other.eval()(x))


def test_resumed_calibration_equals_an_uninterrupted_one():
    batches = [torch.randn(8, *X[1:]) for _ in range(4)]
    whole, first, second = (QuantCalibrateModule(net(), torch.rand(X)) for _ in range(3))
    for wrapper, data in ((whole, batches), (first, batches[:2])):
        wrapper.train()
        for x in data:
            wrapper(x)
    second.train()
    second.load_state_dict(first.state_dict())
    for x in batches[2:]:
        second(x)
    for key, value in whole.module.state_dict().items():
        assert torch.equal(value, second.module.state_dict()[key]), key


def test_calibration_keeps_statistics_and_needs_no_gradient():
    wrapper = QuantCalibrateModule(net(), torch.rand(X)).train()
    mean = wrapper.module.get_submodule("1").running_mean.clone()
    assert not wrapper(torch.randn(4, *X[1:])).requires_grad
    assert torch.equal(mean, wrapper.module.get_submodule("1").running_mean)


def test_bias_calibration_changes_biases_only_where_asked():
    start = net().state_dict()["11.bias"]
    assert torch.equal(calibrated(bias_calibration=False).module.state_dict()["11.bias"], start)
    small, large = (
        calibrated(lr_calib=r).module.state_dict()["11.bias"] - start for r in (0.01, 0.2)
    )
    assert 0 < small.abs().sum() < large.abs().sum()


def test_bias_calibration_in_training_leaves_batch_norms_to_the_step():
    states = []
    for corrects in (False, True):
        torch.manual_seed(0)
        wrapper = QuantTrainModule(
            net(), torch.rand(X), total_epochs=4, bias_calibration=corrects
        ).train()
        wrapper(torch.randn(4, *X[1:]))
        norm = wrapper.module.get_submodule("1")
        assert norm.training
        states.append((norm.running_mean.clone(), norm.num_batches_tracked.clone()))
    assert all(map(torch.equal, *states))


@pytest.mark.filterwarnings("ignore:Biases do not fit 16 bits")
@pytest.mark.parametrize("per_channel_q", [False, True, "all"])
@pytest.mark.parametrize("constrain_bias", [None, "NONE", "SATURATE", "REDUCE_WEIGHT_SCALE"])
def test_per_channel_weights_with_every_bias_rule(per_channel_q, constrain_bias):
    wrapper = calibrated(per_channel_q=per_channel_q, constrain_bias=constrain_bias)
    for unit in layer_calls(wrapper.module):
        expected = per_channel_q == "all" or (per_channel_q is True and unit.layer.num_groups > 1)
        assert (unit.layer.weight_quantizer.spec.granularity == "per_channel") == expected
    x = torch.randn(4, *X[1:])
    assert torch.equal(wrapper(x), wrapper.convert()(x))


@pytest.mark.parametrize(
    ("options", "attribute", "value"),
    [
        ({"bitwidth_weights": 4}, "weight_quantizer.spec.bit_width", 4),
        ({"power2_weight_range": False}, "weight_quantizer.spec.power_of_two", False),
        ({"range_shrink_weights": 1.0}, "weight_quantizer.spec.range_rule", "percentile"),
        ({"constrain_bias": "NONE"}, "bias_spec.bit_width", 32),
    ],
)
def test_weight_options_reach_every_layer(options, attribute, value):
    units = layer_calls(wrap(**options).module)
    assert [operator.attrgetter(attribute)(u.layer) for u in units] == [value] * 4


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"bitwidth_activations": 6}, "bit_width", 6),
        ({"power2_activation_range": False}, "power_of_two", False),
        ({"histogram_range": False}, "range_rule", "min_max"),
        ({"range_shrink_activations": 0.5}, "range_shrink_percentile", 0.5),
        ({"range_rule": "mse"}, "range_rule", "mse"),
        ({"rounding": "half_up"}, "rounding", "half_up"),
    ],
)
def test_activation_options_reach_every_quantizer(options, field, value):
    found = quantizers(wrap(**options))
    assert found
    assert {getattr(q.spec, field) for q in found.values()} == {value}


def test_quantize_in_and_out_can_be_left_in_float():
    both = set(quantizers(wrap().module))
    assert both - set(quantizers(wrap(quantize_in=False).module)) == {"0.activation_in"}
    assert both - set(quantizers(wrap(quantize_out=False).module)) == {"11.activation_q"}


def test_verbose_mode_prints_what_is_quantized(capsys):
    wrap(verbose_mode=True)
    assert "0.activation_in" in capsys.readouterr().out


def test_constrain_weights_clips_once_before_the_first_step(capsys):
    def first_weight(**options: object) -> torch.Tensor:
        model = net()
        with torch.no_grad():
            model[11].weight[0, 0] = 100.0
        wrapper = QuantTrainModule(model, torch.rand(X), total_epochs=4, **options).train()
        wrapper(torch.randn(4, *X[1:]))
        return wrapper.module.get_submodule("11").weight[0, 0]

    assert first_weight() < 100
    assert "11" in capsys.readouterr().out
    assert first_weight(constrain_weights=False) == 100
    assert first_weight(per_channel_q="all") == 100


def test_leaf_module_stays_float():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    model = nn.Sequential(nn.Conv2d(3, 4, 1), Branch(), nn.Conv2d(4, 2, 1))
    wrapper = QuantTrainModule(model, torch.rand(X), total_epochs=2, leaf_modules=["1"]).train()
    assert wrapper(torch.randn(X)).shape == (1, 2, 8, 8)


def test_test_module_loads_a_checkpoint_and_stays_in_evaluation():
    source = calibrated()
    test = QuantTestModule(net(), torch.rand(X))
    test.module.load_state_dict(source.module.state_dict())
    with pytest.warns(UserWarning, match="only evaluates"):
        test.train()
    assert not test.training
    x = torch.randn(4, *X[1:])
    assert torch.equal(test(x), source(x))


def test_autocast_gives_finite_values_on_the_grid():
    wrapper = calibrated()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = wrapper(torch.randn(4, *X[1:])).float()
    step = wrapper.module.get_submodule("11").activation_q.qparams().scale
    assert torch.equal(out / step, (out / step).round())


def test_data_parallel_without_devices_computes_the_same():
    wrapper = calibrated()
    x = torch.randn(4, *X[1:])
    assert torch.equal(nn.DataParallel(wrapper)(x), wrapper(x))


def test_converted_module_cannot_be_trained():
    with pytest.raises(RuntimeError, match="cannot be trained"):
        calibrated().convert().train()
