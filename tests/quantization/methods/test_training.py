import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization import (
    GenericTinyMLPTQFxModule,
    GenericTinyMLQATFxModule,
    PTCFxModule,
    QATFxModule,
    QuantCalibrateModule,
    QuantTestModule,
    QuantTrainModule,
    TINPUTinyMLQATFxModule,
    TrainingMethods,
)
from edgeailite.quantization.methods.distillation import add_distillation, distillation_loss
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.modules.layer_calls import layer_calls
from edgeailite.quantization.verify.compare import verify
from tests.quantization.helpers import randomize_batch_norms

X = torch.zeros(1, 3, 12, 12)
ALL = TrainingMethods("all", damping=0.01, distillation=0.5, freeze_oscillations=0.01)
WRAPPERS = {
    "pact2": lambda m, methods: QuantTrainModule(m, X, total_epochs=3, methods=methods),
    "fx": lambda m, methods: QATFxModule(m, total_epochs=3, methods=methods),
    "power of two": lambda m, methods: QATFxModule(
        m, qconfig_type="WC8SYMP2_AT8SYMP2", total_epochs=3, methods=methods
    ),
    "generic": lambda m, methods: GenericTinyMLQATFxModule(m, 3, methods=methods),
    "tinpu": lambda m, methods: TINPUTinyMLQATFxModule(m, 3, methods=methods),
}


def network():
    torch.manual_seed(0)
    return randomize_batch_norms(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
            *(nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4), nn.Hardtanh(-20, 20)),
        )
    )


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(8, 3, 12, 12, generator=generator),
            torch.randint(0, 4, (8,), generator=generator),
        )
        for _ in range(6)
    ]


def train(wrapper, batches, epochs, optimizer=None):
    if optimizer is None:
        parameters = [p for p in wrapper.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, 0.02, momentum=0.9)
    for _ in range(epochs):
        wrapper.train()
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(wrapper(x), y).backward()
            optimizer.step()
    return optimizer


@pytest.mark.filterwarnings("ignore:.*the NPU computes.*:UserWarning")
@pytest.mark.parametrize("name", WRAPPERS)
def test_every_wrapper_trains_with_all_methods_and_stays_exact(name, batches, tmp_path):
    wrapper = WRAPPERS[name](network(), ALL)
    train(wrapper, batches, 3)
    for parameter in wrapper.module.parameters():
        assert parameter.grad is not None
        assert parameter.isfinite().all()
    wrapper.eval()
    wrapper.export(X, tmp_path / "model.onnx", dynamic_batch=True)
    comparison = verify(wrapper, [x for x, _ in batches[:2]], tmp_path / "model.onnx")
    assert sum(comparison.mismatches.values()) == 0


@pytest.mark.parametrize("part", ["activations", "weights", "all"])
def test_only_the_ranges_that_were_asked_for_are_parameters(part):
    methods = TrainingMethods(learned_ranges=part)
    names = {n.rpartition(".")[2] for n, _ in WRAPPERS["fx"](network(), methods).named_parameters()}
    expected = {"activations": {"clips_act"}, "weights": {"weight_range"}}
    assert names - {"weight", "bias"} == expected.get(part, {"clips_act", "weight_range"})


def test_learned_ranges_follow_weights_that_are_loaded_after_wrapping(batches):
    other = network()
    with torch.no_grad():
        other[0].weight.mul_(5.0)
    loaded = WRAPPERS["fx"](network(), ALL)
    loaded.module.load_state_dict(other.state_dict())
    loaded.train()
    direct = WRAPPERS["fx"](other, ALL).train()
    for (name, own), expected in zip(loaded.named_parameters(), direct.parameters(), strict=True):
        assert own.equal(expected), name


def test_a_range_of_a_checkpoint_is_kept(batches):
    first = WRAPPERS["fx"](network(), TrainingMethods(learned_ranges="weights"))
    train(first, batches, 1)
    second = WRAPPERS["fx"](network(), TrainingMethods(learned_ranges="weights"))
    second.module.load_state_dict(first.module.state_dict())
    second.train()
    ranges = {n: p for n, p in second.named_parameters() if n.endswith("weight_range")}
    assert ranges
    assert all(p.equal(first.state_dict()[n]) for n, p in ranges.items())


@pytest.mark.parametrize("methods", [ALL, None])
def test_a_resumed_training_ends_at_the_same_weights(methods, batches):
    whole = WRAPPERS["fx"](network(), methods)
    optimizer = train(whole, batches, 1)
    saved = io.BytesIO()
    torch.save({"module": whole.state_dict(), "optimizer": optimizer.state_dict()}, saved)
    train(whole, batches, 2, optimizer)

    saved.seek(0)
    content = torch.load(saved, weights_only=True)
    torch.manual_seed(5)
    resumed = WRAPPERS["fx"](randomize_batch_norms(network()), methods)
    optimizer = torch.optim.SGD([p for p in resumed.parameters() if p.requires_grad], 0.02, 0.9)
    resumed.load_state_dict(content["module"])
    optimizer.load_state_dict(content["optimizer"])
    train(resumed, batches, 2, optimizer)
    for name, value in whole.module.state_dict().items():
        assert value.equal(resumed.module.state_dict()[name]), name


def test_the_teacher_is_the_float_model_as_it_was(batches):
    model = network().eval()
    x = batches[0][0]
    with torch.no_grad():
        expected = model(x)
    wrapper = WRAPPERS["fx"](model, TrainingMethods(distillation=0.5))
    train(wrapper, batches, 2)
    torch.testing.assert_close(wrapper.teacher(x), expected)
    assert not any(p.requires_grad for p in wrapper.teacher.parameters())


def test_the_teacher_is_from_before_a_calibration(batches):
    model, images = network().eval(), [x for x, _ in batches]
    with torch.no_grad():
        expected = model(images[0])
    wrapper = WRAPPERS["fx"](model, TrainingMethods(distillation=0.5))
    wrapper.calibrate(images, quality=("activation_ranges", "biases"))
    again = WRAPPERS["fx"](network(), TrainingMethods(distillation=0.5))
    again.load_state_dict(wrapper.state_dict())
    for made in (wrapper, again):
        train(made, batches, 1)
        torch.testing.assert_close(made.teacher(images[0]), expected)


def test_gradients_are_those_of_the_mixed_loss(batches):
    x, y = batches[0]
    student, teacher = nn.Linear(12, 4), nn.Linear(12, 4)
    features = x[:, 0, 0]
    mixed = copy.deepcopy(student)
    output = add_distillation(mixed(features), teacher(features).detach(), 0.3, 2.0)
    F.cross_entropy(output, y).backward()
    output, target = student(features), teacher(features).detach()
    own = F.cross_entropy(output, y)
    loss = 0.7 * own + 0.3 * distillation_loss(output, target, 2.0)
    loss.backward()
    torch.testing.assert_close(mixed.weight.grad, student.weight.grad)


def test_the_distillation_loss_is_the_written_one():
    generator = torch.Generator().manual_seed(0)
    y, t = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(2))
    p, q = (torch.softmax(v / 4.0, 1) for v in (t, y))
    expected = 16.0 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation_loss(y, t, 4.0), expected)
    assert distillation_loss(t, t, 4.0).abs() < 1e-6


def test_distillation_of_several_outputs():
    y = {"out": torch.randn(2, 3, requires_grad=True), "aux": torch.randn(2, 5, requires_grad=True)}
    target = {key: torch.randn(value.shape) for key, value in y.items()}
    output = add_distillation(y, target, 1.0, 1.0)
    (output["out"].sum() + output["aux"].sum()).backward()
    for key, value in y.items():
        own = value.detach().clone().requires_grad_()
        (distillation_loss(own, target[key], 1.0) / 2).backward()
        torch.testing.assert_close(value.grad, own.grad)


def test_damping_grows_over_the_epochs(batches):
    methods = TrainingMethods(damping=0.2)
    wrapper = QATFxModule(network(), total_epochs=5, methods=methods)
    seen = []
    for _ in range(5):
        wrapper.train()
        seen += [
            {m.weight_quantizer.damping for m in wrapper.modules() if isinstance(m, QuantLayer)}
        ]
        wrapper(batches[0][0])
    assert [round(d, 4) for found in seen for d in found] == [0, 0.0293, 0.1, 0.1707, 0.2]


def test_damped_weights_come_to_rest_on_their_grid(batches):
    def distance(damping):
        torch.manual_seed(0)
        methods = TrainingMethods(damping=damping)
        wrapper = QATFxModule(network(), qconfig_type="WC4_AT8", total_epochs=8, methods=methods)
        train(wrapper, batches, 8)
        layer = wrapper.eval().module.get_submodule("8")
        quantized, _ = layer.quantized_parameters(layer.weight, None, None, None)
        return (layer.weight - quantized).square().mean().item()

    assert distance(5.0) < 0.1 * distance(0.0)


def integers(wrapper):
    """Weights of each layer as integers, by path."""
    found = {}
    for call in layer_calls(wrapper.module):
        weight, _ = call.quantized_parameters()
        found[call.path] = (weight / call.layer.channels(call.folded().scale, weight)).round()
    return found


@pytest.mark.parametrize("freezes_batch_norm", [None, False])
def test_frozen_weights_keep_their_integers_to_the_end(freezes_batch_norm, batches):
    wrapper = QATFxModule(
        network(), qconfig_type="WC4_AT8", total_epochs=8, verbose=False,
        num_batch_norm_update_epochs=freezes_batch_norm,
        methods=TrainingMethods(freeze_oscillations=0.005),
    )  # fmt: skip
    optimizer = torch.optim.SGD(wrapper.parameters(), 0.05, momentum=0.9)
    train(wrapper, batches, 7, optimizer)
    states = {
        c.path: c.layer.weight_quantizer.oscillations.state for c in layer_calls(wrapper.module)
    }
    frozen = {path: state[2] == math.inf for path, state in states.items()}
    points = {path: state[3].round() for path, state in states.items()}
    assert sum(int(mask.sum()) for mask in frozen.values()) > 10
    optimizer.param_groups[0]["lr"] = 0.001  # as at the end of any schedule
    train(wrapper, batches, 1, optimizer)
    final = integers(wrapper.eval())
    for path, mask in frozen.items():
        assert final[path][mask].equal(points[path][mask])
        assert states[path][2][mask].min() == math.inf


def test_what_a_calibration_changes_is_not_frozen_back(batches):
    wrapper = WRAPPERS["fx"](network(), TrainingMethods(freeze_oscillations=0.01))
    train(wrapper, batches, 1)
    assert "0.oscillations" in wrapper.module.state_dict()
    wrapper.calibrate([x for x, _ in batches], quality=("equalization", "activation_ranges"))
    assert "0.oscillations" not in wrapper.module.state_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learned_ranges": "some"}, "learned_ranges is 'some'; allowed: 'none', 'activations'"),
        ({"damping": -1.0}, "damping is -1.0; allowed: 0"),
        ({"freeze_oscillations": 1.0}, r"freeze_oscillations is 1\.0; allowed: 0 .* up to 1"),
        ({"distillation": 1.5}, "distillation is 1.5; allowed: 0 .* to 1"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be positive"),
    ],
)
def test_what_methods_refuse(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingMethods(**changes)


@pytest.mark.parametrize("wrapper", [PTCFxModule, GenericTinyMLPTQFxModule])
def test_fx_wrappers_that_do_not_train_refuse_methods(wrapper):
    with pytest.raises(ValueError, match=r"methods was given, but this \w+ does not train"):
        wrapper(network(), methods=ALL)


@pytest.mark.parametrize("wrapper", [QuantCalibrateModule, QuantTestModule])
def test_methods_of_a_set_of_options_change_nothing_where_nothing_trains(wrapper):
    with pytest.warns(UserWarning, match=f"methods=.* has no effect: {wrapper.__name__} does not"):
        made = wrapper(network(), X, methods=ALL)
    assert made.teacher is None
    names = {name.rpartition(".")[2] for name, _ in made.named_parameters()}
    assert names == {"weight", "bias"}


def test_a_calibration_before_the_training_is_where_it_begins(batches):
    images = [x for x, _ in batches]
    methods = TrainingMethods(learned_ranges="all")
    wrapper = QATFxModule(network(), qconfig_type="WC4_AT8", total_epochs=3, methods=methods)
    wrapper.calibrate(images, quality=("equalization", "activation_ranges", "weight_ranges"))
    with torch.no_grad():
        calibrated = wrapper(images[0])
    state = copy.deepcopy(wrapper.module.state_dict())
    wrapper.train()
    for name, value in wrapper.module.state_dict().items():
        assert value.equal(state[name]), name
    plain = PTCFxModule(network(), qconfig_type="WC4_AT8", verbose=False)
    plain.calibrate(images, quality=("equalization", "activation_ranges", "weight_ranges"))
    with torch.no_grad():
        torch.testing.assert_close(calibrated, plain(images[0]))


def test_a_wrapper_without_methods_evaluates_what_was_learned(batches):
    trained = WRAPPERS["pact2"](network(), ALL)
    train(trained, batches, 2)
    evaluated = QuantTestModule(network(), X)
    evaluated.module.load_state_dict(trained.module.state_dict())
    with torch.no_grad():
        assert evaluated(batches[0][0]).equal(trained.eval()(batches[0][0]))
    assert evaluated.module.state_dict().keys() == trained.module.state_dict().keys()
