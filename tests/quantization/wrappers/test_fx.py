import copy
import pickle

import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule, PTQFxModule, QATFxModule, QConfig
from edgeailite.quantization.graph.operations import BATCH_NORM_MODULES
from edgeailite.quantization.modules.pact2 import quantizers
from tests.quantization.helpers import randomize_batch_norms, run_onnx

SHAPE = (4, 3, 8, 8)
LIFE = ["WC8_AT8", "WT8SYMP2_AT8SYMP2", "WC4_AT8"]


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        return self.head((self.relu(self.bn2(self.conv2(x))) + x).mean((2, 3)))


def small():
    return randomize_batch_norms(Small())


def train(wrapper, epochs=2, steps=3):
    optimizer = torch.optim.SGD([p for p in wrapper.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(epochs):
        wrapper.train()
        for _ in range(steps):
            optimizer.zero_grad()
            wrapper(torch.randn(SHAPE)).square().mean().backward()
            optimizer.step()
    return wrapper.eval()


def batch_norms(wrapper):
    return [m for m in wrapper.modules() if isinstance(m, BATCH_NORM_MODULES)]


def freezing_epochs(wrapper, epochs=8):
    """The epochs at which batch norm and ranges were frozen first; None: never."""
    found = [None, None]
    for epoch in range(epochs):
        wrapper.train()
        wrapper(torch.randn(SHAPE))
        frozen = [
            not any(m.training for m in batch_norms(wrapper)),
            not any(q.observer_enabled for q in quantizers(wrapper.module).values()),
        ]
        for i, is_frozen in enumerate(frozen):
            if is_frozen and found[i] is None:
                found[i] = epoch
        wrapper.eval()
    return tuple(found)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (3, 5)),
        ({"num_batch_norm_update_epochs": False}, (None, 5)),
        ({"num_observer_update_epochs": False}, (3, None)),
        ({"num_batch_norm_update_epochs": 1, "num_observer_update_epochs": 2}, (1, 2)),
        ({"num_batch_norm_update_epochs": 0}, (0, 5)),
    ],
)
def test_schedule(options, expected):
    assert freezing_epochs(QATFxModule(small(), total_epochs=8, **options)) == expected


@pytest.mark.parametrize("name", ["num_batch_norm_update_epochs", "num_observer_update_epochs"])
@pytest.mark.parametrize("value", [True, -1, "2", 1.5])
def test_wrong_schedule_says_what_is_allowed(name, value):
    with pytest.raises(ValueError, match=rf"{name} is .*allowed: None .*False"):
        QATFxModule(small(), total_epochs=4, **{name: value})


@pytest.mark.parametrize("epochs", [0, -1, 2.0, True])
def test_total_epochs_is_asked_for(epochs):
    with pytest.raises(ValueError, match=r"total_epochs is .*QATFxModule needs the number"):
        QATFxModule(small(), total_epochs=epochs)


@pytest.mark.parametrize("factor", [-0.1, 1.5])
def test_bias_calibration_factor_is_a_part(factor):
    with pytest.raises(ValueError, match=r"bias_calibration_factor is .*allowed: 0"):
        PTCFxModule(small(), bias_calibration_factor=factor)


def test_calibration_changes_ranges_and_biases_only():
    model = small()
    before = copy.deepcopy(model.state_dict())
    wrapper = PTCFxModule(model, bias_calibration_factor=0.5)
    wrapper.train()
    assert not wrapper(torch.randn(SHAPE)).requires_grad
    after = wrapper.eval().module.state_dict()
    changed = {k for k, v in before.items() if not torch.equal(v, after[k])}
    assert changed == {"bn1.bias", "bn2.bias", "head.bias"}
    assert all(q.has_range for q in quantizers(wrapper.module).values())


def test_bias_calibration_moves_the_means_to_those_of_float():
    model, data = small(), [torch.randn(64, 3, 8, 8)]
    reference = copy.deepcopy(model).eval()(data[0]).mean(0)
    errors = []
    for factor in (0.0, 0.5):
        wrapper = PTCFxModule(
            copy.deepcopy(model), qconfig_type="WC4_AT8", bias_calibration_factor=factor
        )
        wrapper.calibrate(data * 12)
        errors.append(float((wrapper(data[0]).mean(0) - reference).detach().abs().max()))
    assert errors[1] < errors[0] / 2


def test_bias_calibration_in_training_runs_before_the_step():
    wrapper = QATFxModule(small(), total_epochs=4, bias_calibration_factor=0.5)
    before = wrapper.module.head.bias.clone()
    wrapper.train()
    assert wrapper(torch.randn(SHAPE)).requires_grad
    assert not torch.equal(wrapper.module.head.bias, before)


def test_is_qat_chooses_between_training_and_calibration():
    assert not QATFxModule(small(), total_epochs=2, is_qat=False)(torch.randn(SHAPE)).requires_grad
    assert PTCFxModule(small(), is_qat=True, total_epochs=2)(torch.randn(SHAPE)).requires_grad
    assert PTQFxModule is PTCFxModule


def test_batch_norm_epochs_without_effect_warn():
    with pytest.warns(UserWarning, match="num_batch_norm_update_epochs=1 has no effect"):
        PTCFxModule(small(), num_batch_norm_update_epochs=1)


def test_observer_epochs_of_calibration():
    wrapper = PTCFxModule(small(), num_observer_update_epochs=2)
    assert freezing_epochs(wrapper, 4)[1] == 2


@pytest.mark.parametrize("kind", ["tensor", "pair", "list"])
def test_calibrate_takes_what_a_loader_gives(kind):
    image, target = torch.randn(SHAPE), torch.zeros(4)
    batch = {"tensor": image, "pair": (image, target), "list": [image, target]}[kind]
    wrapper = PTCFxModule(small())
    assert wrapper.calibrate([batch] * 5, num_batches=3) is wrapper
    assert not wrapper.training
    assert {int(q.num_batches_tracked) + 1 for q in quantizers(wrapper.module).values()} == {3}


def test_calibrate_without_data_says_so():
    with pytest.raises(ValueError, match="no batch to calibrate with"):
        PTCFxModule(small()).calibrate([])


def test_calibrating_before_training_takes_no_epoch_of_the_schedule():
    wrapper = QATFxModule(small(), total_epochs=8)
    wrapper.calibrate([torch.randn(SHAPE)])
    assert wrapper.trains
    assert freezing_epochs(wrapper) == (3, 5)


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x, scale=None, flip=False):
        if flip:
            x = x.flip(-1)
        x = self.conv(x)
        return x if scale is None else x * scale


def test_optional_arguments_keep_their_defaults_or_are_given():
    x, scale = torch.randn(SHAPE), torch.rand(4, 4, 1, 1)
    for wrapper, inputs in [
        (PTCFxModule(Optional()), (x,)),
        (PTCFxModule(Optional(), x), (x,)),
        (PTCFxModule(Optional(), example_inputs=(x, scale)), (x, scale)),
        (PTCFxModule(Optional(), x, scale), (x, scale)),
    ]:
        wrapper.train()
        assert wrapper(*inputs).shape == (4, 4, 8, 8)
    wrapper = PTCFxModule(Optional(), x, example_kwargs={"scale": scale})
    assert wrapper.train()(x, scale=scale).shape == (4, 4, 8, 8)


def test_inputs_given_twice_or_of_a_wrong_shape_are_refused():
    x = torch.randn(SHAPE)
    with pytest.raises(ValueError, match="give the inputs once"):
        PTCFxModule(small(), x, example_inputs=x)
    with pytest.raises(ValueError, match=r"of shape \(4, 5, 8, 8\) does not pass through Small"):
        PTCFxModule(small(), example_inputs=torch.randn(4, 5, 8, 8))


def test_leaf_modules_stay_in_float():
    wrapper = PTCFxModule(small(), leaf_modules=["conv2"])
    assert type(wrapper.module.conv2) is nn.Conv2d
    assert type(wrapper.module.conv1) is not nn.Conv2d


@pytest.mark.parametrize("disabled", ["DISABLED", QConfig(weight=None, activation=None)])
def test_disabled_is_the_float_model(disabled, tmp_path):
    model, x = small().eval(), torch.randn(SHAPE)
    expected = copy.deepcopy(model)(x)
    wrapper = PTCFxModule(model, qconfig_type=disabled).eval()
    assert not quantizers(wrapper.module)
    assert torch.equal(wrapper(x), expected)
    path = wrapper.export(x, tmp_path / "m.onnx")
    torch.testing.assert_close(run_onnx(path, (x,))[0], expected, rtol=1e-4, atol=1e-5)


# ---- the life of a checkpoint --------------------------------------------------------------------


def wrap(kind, preset, model):
    if kind == "qat":
        return QATFxModule(model, qconfig_type=preset, total_epochs=4)
    return PTCFxModule(model, qconfig_type=preset)


def prepared(kind, preset):
    wrapper = wrap(kind, preset, small())
    return train(wrapper) if kind == "qat" else wrapper.calibrate(torch.randn(3, *SHAPE))


@pytest.mark.parametrize("kind", ["qat", "ptc"])
@pytest.mark.parametrize("preset", LIFE)
def test_checkpoint_loads_into_a_fresh_wrapper(kind, preset, tmp_path):
    wrapper, x = prepared(kind, preset), torch.randn(SHAPE)
    torch.save(wrapper.module.state_dict(), tmp_path / "model.pth")
    fresh = wrap(kind, preset, Small())
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    fresh.module.load_state_dict(state)
    assert torch.equal(fresh.eval()(x), wrapper(x))
    by_path = wrap(kind, preset, Small()).load_weights(tmp_path / "model.pth").eval()
    assert torch.equal(by_path(x), wrapper(x))


@pytest.mark.parametrize("kind", ["qat", "ptc"])
@pytest.mark.parametrize("preset", LIFE)
def test_converted_model_saves_loads_and_exports(kind, preset, tmp_path):
    wrapper, x = prepared(kind, preset), torch.randn(SHAPE)
    converted = wrapper.convert()
    torch.save(converted.module.state_dict(), tmp_path / "integers.pth")
    fresh = wrap(kind, preset, Small()).calibrate(torch.randn(1, *SHAPE)).convert()
    fresh.module.load_state_dict(torch.load(tmp_path / "integers.pth", weights_only=True))
    assert torch.equal(fresh(x), converted(x))
    files = [m.export(x, tmp_path / f"{i}.onnx") for i, m in enumerate((converted, fresh, wrapper))]
    results = [run_onnx(path, (x,))[0] for path in files]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[0], converted(x))


@pytest.mark.parametrize("preset", LIFE)
def test_training_goes_on_as_without_the_break(preset):
    torch.manual_seed(1)
    wrapper = train(QATFxModule(small(), qconfig_type=preset, total_epochs=4))
    resumed = QATFxModule(Small(), qconfig_type=preset, total_epochs=4)
    resumed.load_state_dict(wrapper.state_dict())
    outcomes = []
    for one in (wrapper, resumed):
        torch.manual_seed(2)
        train(one, epochs=2)
        outcomes.append(one.module.state_dict())
    assert all(torch.equal(v, outcomes[1][k]) for k, v in outcomes[0].items())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent_and_equal(copied):
    wrapper, x = prepared("qat", "WC8_AT8"), torch.randn(SHAPE)
    other = copied(wrapper)
    assert torch.equal(other(x), wrapper(x))
    train(other)
    assert not torch.equal(other(x), wrapper(x))
    assert torch.equal(other.convert()(x), copied(other.convert())(x))


def test_autocast_trains_and_evaluates():
    wrapper = QATFxModule(small(), total_epochs=4).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = wrapper(torch.randn(SHAPE))
    output.float().square().mean().backward()
    assert wrapper.module.conv1.weight.grad.isfinite().all()
    assert wrapper.eval()(torch.randn(SHAPE)).isfinite().all()


@pytest.mark.parametrize("shape", [(8, 6), (6, 4)])
@pytest.mark.parametrize("has_example", [True, False])
def test_batch_norm_of_tokens_is_not_folded_into_the_features_of_a_linear_layer(shape, has_example):
    x = torch.randn(5, *shape)
    model = nn.Sequential(nn.Linear(shape[-1], 8), nn.BatchNorm1d(shape[0]))
    expected = model.eval()(x).detach()
    example = {"example_inputs": x} if has_example else {}
    wrapper = PTCFxModule(model, qconfig_type="WC8SYMP2_AT8SYMP2", **example)
    if not has_example and shape[0] == 8:
        with pytest.raises(ValueError, match=r"linear layer of 8 outputs.*3 axes.*example_inputs"):
            wrapper.calibrate([x])
        return
    wrapper.calibrate([x])
    assert (wrapper(x) - expected).abs().max() < 0.1
