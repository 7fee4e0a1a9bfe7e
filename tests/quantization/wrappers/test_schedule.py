"""The schedule as a pure function of the epoch."""

import math

import pytest

from edgeailite.quantization.wrappers.schedule import Schedule, Stage, make_schedule


def column(schedule, name, epochs):
    return [getattr(schedule.at(epoch), name) for epoch in range(epochs)]


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 8, 10, 25])
def test_training_freezes_batch_norm_then_ranges(epochs):
    schedule = make_schedule("Wrapper", epochs)
    half = epochs // 2
    assert column(schedule, "batch_norm_frozen", 30) == [e >= half - 1 for e in range(30)]
    assert column(schedule, "ranges_frozen", 30) == [e >= half + 1 for e in range(30)]


@pytest.mark.parametrize(
    ("given", "frozen"),
    [
        (None, [False] * 3 + [True] * 5),
        (False, [False] * 8),
        (0, [True] * 8),
        (2, [False] * 2 + [True] * 6),
        (9, [False] * 8),
    ],
)
def test_batch_norm_learns_for_as_many_epochs(given, frozen):
    schedule = make_schedule("Wrapper", 8, num_batch_norm_update_epochs=given)
    assert column(schedule, "batch_norm_frozen", 8) == frozen
    assert column(schedule, "ranges_frozen", 8) == [False] * 5 + [True] * 3


@pytest.mark.parametrize(
    ("given", "frozen"),
    [
        (None, [False] * 5 + [True] * 3),
        (False, [False] * 8),
        (0, [True] * 8),
        (1, [False] + [True] * 7),
    ],
)
def test_ranges_learn_for_as_many_epochs(given, frozen):
    schedule = make_schedule("Wrapper", 8, num_observer_update_epochs=given)
    assert column(schedule, "ranges_frozen", 8) == frozen
    assert column(schedule, "batch_norm_frozen", 8) == [False] * 3 + [True] * 5


@pytest.mark.parametrize(
    ("hard_epoch", "softness"),
    [
        (0, [0.0] * 5),
        (1, [1.0] + [0.0] * 4),
        (2, [1.0, 0.5, 0.0, 0.0, 0.0]),
        (4, [1.0, 0.75, 0.5, 0.25, 0.0]),
    ],
)
def test_softness_falls_linearly(hard_epoch, softness):
    assert column(Schedule(hard_epoch=hard_epoch), "softness", 5) == softness


@pytest.mark.parametrize(
    ("total_epochs", "damping"),
    [
        (5, [0, 0.0293, 0.1, 0.1707, 0.2, 0.2]),
        (2, [0, 0.2, 0.2, 0.2, 0.2, 0.2]),
        (1, [0, 0.2, 0.2, 0.2, 0.2, 0.2]),
    ],
)
def test_damping_grows_as_half_a_cosine(total_epochs, damping):
    schedule = make_schedule("Wrapper", total_epochs, damping=0.2)
    assert [round(d, 4) for d in column(schedule, "damping", 6)] == damping


@pytest.mark.parametrize(
    ("total_epochs", "limits"), [(3, [math.inf, 0.02, 0.01, 0.01]), (0, [math.inf, 0.01])]
)
def test_the_limit_of_oscillations_falls_as_damping_grows(total_epochs, limits):
    schedule = Schedule(freeze_oscillations=0.01, total_epochs=total_epochs)
    assert column(schedule, "freeze_above", len(limits)) == pytest.approx(limits)


def test_an_empty_schedule_changes_nothing():
    assert {Schedule().at(epoch) for epoch in range(100)} == {Stage()}


@pytest.mark.parametrize(
    ("epoch", "left"),
    [(-1, (3, 5)), (2, (3, 5)), (3, (None, 5)), (4, (None, 5)), (5, (None, None))],
)
def test_unfreezing_keeps_what_is_to_come(epoch, left):
    schedule = Schedule(3, 5, hard_epoch=4, damping=0.1, total_epochs=8)
    unfrozen = schedule.unfrozen(epoch)
    assert (unfrozen.batch_norm_epoch, unfrozen.range_epoch) == left
    assert (unfrozen.hard_epoch, unfrozen.damping, unfrozen.total_epochs) == (4, 0.1, 8)
    assert schedule.unfrozen(epoch, batch_norm=False).batch_norm_epoch == 3
    assert schedule.unfrozen(epoch, ranges=False).range_epoch == 5


def test_without_freezing_keeps_the_rest():
    schedule = Schedule(3, 5, hard_epoch=4, damping=0.1, total_epochs=8)
    free = Schedule(hard_epoch=4, damping=0.1, total_epochs=8)
    assert schedule.without_freezing() == free


@pytest.mark.parametrize("name", ["num_batch_norm_update_epochs", "num_observer_update_epochs"])
@pytest.mark.parametrize("value", [True, -1, "2", 1.5])
def test_wrong_epochs_say_what_is_allowed(name, value):
    with pytest.raises(ValueError, match=rf"{name} is .*allowed: None .*False"):
        make_schedule("Wrapper", 8, **{name: value})


@pytest.mark.parametrize("epochs", [0, -1, 2.0, True, None])
def test_total_epochs_are_asked_for(epochs):
    with pytest.raises(ValueError, match=r"total_epochs is .*; Wrapper needs the number of epochs"):
        make_schedule("Wrapper", epochs)


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "4"])
def test_wrong_steps_say_what_is_allowed(steps):
    with pytest.raises(ValueError, match=r"steps_per_epoch is .*allowed: None .* 1 or more"):
        make_schedule("Wrapper", 8, steps_per_epoch=steps)


@pytest.mark.parametrize("name", ["steps_per_epoch", "freeze_oscillations"])
def test_what_copies_on_several_devices_would_lose_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name} counts .*DataParallel\) cannot"):
        Schedule(**{name: 1}).refuse_replicas()
    Schedule(damping=0.1, total_epochs=2).refuse_replicas()
