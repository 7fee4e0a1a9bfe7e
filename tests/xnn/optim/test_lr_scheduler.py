import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeailite.xnn.optim import SCHEDULERS, make_lr_scheduler


def options_of(name):
    return {"milestones": (5, 8)} if name in ("step", "multistep") else {}


def make(name, epochs=10, base=0.5, **options):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
    return optimizer, make_lr_scheduler(optimizer, name, epochs, **{**options_of(name), **options})


def rates(name, epochs=10, base=0.5, **options):
    optimizer, scheduler = make(name, epochs, base, **options)
    out = []
    for _ in range(epochs * options.get("steps_per_epoch", 1)):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return out


def test_cosine_equals_torch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    torch_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    expected = []
    for _ in range(10):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torch_scheduler.step()
    assert rates("cosine") == pytest.approx(expected)


@pytest.mark.parametrize("name", ["step", "multistep"])
def test_step_drops_at_each_milestone(name):
    assert rates(name, gamma=0.25) == pytest.approx([0.5] * 5 + [0.125] * 3 + [0.03125] * 2)


def test_poly_and_exponential_follow_their_formulas():
    assert rates("poly", power=2) == pytest.approx([0.5 * (1 - e / 10) ** 2 for e in range(10)])
    assert rates("exponential", gamma=0.9) == pytest.approx([0.5 * 0.9**e for e in range(10)])


def test_default_gamma_and_power():
    assert rates("step")[5] == pytest.approx(0.05)
    assert rates("exponential")[1] == pytest.approx(0.5 * 0.97)
    assert rates("poly")[5] == pytest.approx(0.5 * 0.5**0.9)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_warmup_rises_linearly_to_the_base_rate(name):
    assert rates(name, warmup_epochs=3)[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])


@pytest.mark.parametrize("name", SCHEDULERS)
@given(steps=st.integers(1, 7))
def test_stepping_by_iteration_passes_the_rates_of_stepping_by_epoch(name, steps):
    by_iteration = rates(name, steps_per_epoch=steps)
    assert by_iteration[::steps] == pytest.approx(rates(name))


def test_rate_stays_at_its_end_when_stepped_beyond_the_last_epoch():
    optimizer, scheduler = make("cosine")
    optimizer.step()
    for _ in range(15):
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.0


def test_each_parameter_group_keeps_its_own_base_rate():
    parameters = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    groups = [{"params": parameters[:1], "lr": 1.0}, {"params": parameters[1:], "lr": 0.1}]
    optimizer = torch.optim.SGD(groups)
    scheduler = make_lr_scheduler(optimizer, "cosine", 10)
    optimizer.step()
    scheduler.step()
    factor = (1 + math.cos(math.pi / 10)) / 2
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([factor, 0.1 * factor])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_resumed_schedule_equals_an_uninterrupted_one(name):
    options = {"warmup_epochs": 1.5, "steps_per_epoch": 2}
    expected = rates(name, **options)
    optimizer, scheduler = make(name, **options)
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    file = io.BytesIO()
    torch.save({"o": optimizer.state_dict(), "s": scheduler.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    optimizer, scheduler = make(name, **options)
    optimizer.load_state_dict(saved["o"])
    scheduler.load_state_dict(saved["s"])
    resumed = []
    for _ in range(7, 20):
        resumed.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert resumed == expected[7:]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear", {}, "Unknown scheduler 'linear'; use one of cosine, step"),
        ("cosine", {"epochs": 0}, "epochs and steps_per_epoch must be at least 1, got 0 and 1"),
        ("cosine", {"steps_per_epoch": 0}, "must be at least 1, got 10 and 0"),
        ("cosine", {"warmup_epochs": 10}, "warmup_epochs is 10; .* less than the 10 epochs"),
        ("cosine", {"warmup_epochs": -1}, "warmup_epochs is -1"),
        ("step", {"milestones": ()}, "The step scheduler needs milestones"),
        ("step", {"milestones": (8, 5)}, r"milestones must rise, got \[8, 5\]"),
    ],
)
def test_wrong_arguments_raise(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)


@pytest.mark.parametrize(
    ("name", "option"),
    [("cosine", {"gamma": 0.5}), ("poly", {"milestones": (3,)}), ("step", {"power": 2.0})],
)
def test_option_without_effect_warns(name, option):
    with pytest.warns(UserWarning, match=f"{next(iter(option))} has no effect on the {name}"):
        make(name, **option)
