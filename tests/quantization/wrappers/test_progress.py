"""States that the schedule sets in a model, and their way into a checkpoint and back."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from edgeailite.quantization import (
    GenericTinyMLQATFxModule,
    PTCFxModule,
    QATFxModule,
    QuantCalibrateModule,
    QuantTrainModule,
    TINPUTinyMLQATFxModule,
)
from edgeailite.quantization.graph.operations import BATCH_NORM_MODULES
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.wrappers.progress import Progress
from edgeailite.quantization.wrappers.schedule import Schedule

SCHEDULE = Schedule(batch_norm_epoch=1, range_epoch=2, hard_epoch=4, damping=0.2, total_epochs=3)
PLACE = ["epoch", "has_stepped", "batches"]
KEYS = [*PLACE, "batch_norm_epoch", "range_epoch", "batch_norm_frozen", "ranges_frozen"]


def network():
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    wrapper = QuantTrainModule(nn.Sequential(*layers), torch.rand(1, 3, 8, 8), total_epochs=4)
    return wrapper.module.train()


def states(model):
    """Learning batch norms, learning ranges."""
    batch_norms = [m for m in model.modules() if isinstance(m, BATCH_NORM_MODULES)]
    return (
        any(m.training for m in batch_norms),
        any(q.observer_enabled for q in quantizers(model).values()),
    )


def weight_quantizer(model):
    (found,) = (m.weight_quantizer for m in model.modules() if isinstance(m, QuantLayer))
    return found


def test_each_epoch_sets_the_states_of_its_stage():
    model, progress = network(), Progress(SCHEDULE)
    weight_quantizer(model).starts_soft = True
    found, messages = [], []
    for _ in range(3):
        model.train()
        messages += progress.begin_epoch(model, trains=True)
        quantizer = weight_quantizer(model)
        found.append((*states(model), quantizer.softness, round(quantizer.damping, 4)))
    assert found == [(True, True, 1.0, 0.0), (False, True, 0.75, 0.1), (False, False, 0.5, 0.2)]
    assert messages == [
        "epoch 1: batch norm statistics are frozen from here on",
        "epoch 2: activation ranges are frozen from here on",
    ]


def test_a_calibration_leaves_weights_on_their_grid():
    model, progress = network(), Progress(SCHEDULE)
    weight_quantizer(model).starts_soft = True
    for _ in range(3):
        progress.begin_epoch(model, trains=False)
        assert (weight_quantizer(model).softness, weight_quantizer(model).damping) == (0.0, 0.0)


def test_weights_that_do_not_start_soft_stay_hard():
    model, progress = network(), Progress(SCHEDULE)
    progress.begin_epoch(model, trains=True)
    assert weight_quantizer(model).softness == 0.0


def test_freezing_by_hand_lasts_and_is_undone():
    model, progress = network(), Progress(SCHEDULE)
    progress.begin_epoch(model, trains=True)
    progress.freeze(model)
    assert states(model) == (False, False)
    model.train()
    assert progress.begin_epoch(model, trains=True) == []
    assert states(model) == (False, False)
    progress.unfreeze(model, training=True)
    assert states(model) == (True, True)
    # Batch norm was due in epoch 1, ranges are in epoch 2.
    model.train()
    assert len(progress.begin_epoch(model, trains=True)) == 1
    assert states(model) == (True, False)


def test_state_restores_a_position():
    model, progress = network(), Progress(SCHEDULE)
    for _ in range(2):
        progress.begin_epoch(model, trains=True)
    state = progress.state()
    assert list(state) == KEYS
    other = Progress(Schedule(hard_epoch=4, damping=0.2, total_epochs=3))
    other.restore({**state, "weights_clipped": True})
    assert other.state() == state
    assert other.schedule == SCHEDULE


@pytest.mark.parametrize("steps", [None, 3])
def test_state_of_an_earlier_version_is_the_end_of_an_epoch(steps):
    model, schedule = network(), replace(SCHEDULE, steps_per_epoch=steps)
    progress = Progress(schedule)
    progress.restore({"epoch": 5})
    assert (progress.epoch, progress.schedule) == (5, schedule)
    assert not progress.batch_norm_frozen
    progress.enter_training(model, trains=True)
    if steps is not None:
        progress.count_batch(model, trains=True)
    assert progress.epoch == 6


# ---- epochs --------------------------------------------------------------------------------------


def epochs(calls, **options):
    """Epoch after each call of a wrapper: t(rain), e(val), b(atch)."""
    wrapper = small(**options)
    found = []
    for call in calls:
        if call == "b":
            wrapper(torch.randn(2, 3, 8, 8))
        else:
            wrapper.train(call == "t")
        found.append(wrapper.epoch)
    return found


def small(**options):
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    options = {"total_epochs": 8, **options}
    return QuantTrainModule(nn.Sequential(*layers), torch.rand(1, 3, 8, 8), **options)


@pytest.mark.filterwarnings("ignore:.*never seen data")
@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ("tbetbetb", [0, 0, 0, 1, 1, 1, 2, 2]),
        ("tttbtt", [0, 0, 0, 0, 1, 1]),
        ("tebebtbet", [0, 0, 0, 0, 0, 0, 0, 0, 1]),  # batches in evaluation mode count nothing
        ("eebetb", [-1, -1, -1, -1, 0, 0]),
        ("btbt", [-1, 0, 0, 1]),
    ],
)
def test_train_counts_only_after_a_training_batch(calls, expected):
    assert epochs(calls) == expected


@pytest.mark.filterwarnings("ignore:.*never seen data")
@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ("tbbbbb", [0, 0, 0, 1, 1, 2]),
        ("tbetbetbeb", [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]),
        ("bbb", [0, 0, 1]),
        ("tbbtttb", [0, 0, 0, 0, 0, 0, 1]),
    ],
)
def test_batches_are_counted_where_steps_per_epoch_says_so(calls, expected):
    assert epochs(calls, steps_per_epoch=2) == expected


def test_validating_within_an_epoch_freezes_nothing_early(capsys):
    wrapper, learning = small(total_epochs=6, steps_per_epoch=4), []
    for step in range(24):
        if step % 2 == 0:  # validates twice in an epoch
            wrapper.eval()
            wrapper.train()
        wrapper(torch.randn(2, 3, 8, 8))
        learning.append(states(wrapper.module))
    assert learning == [(True, True)] * 8 + [(False, True)] * 8 + [(False, False)] * 8
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_going_on_within_an_epoch_keeps_batch_norm_frozen():
    wrapper = small(total_epochs=2).train()  # frozen from the start
    wrapper.eval()
    wrapper.train()
    assert wrapper.epoch == 0
    assert states(wrapper.module) == (False, True)


@pytest.mark.parametrize(
    ("options", "calls"), [({}, "tb" * 4), ({"steps_per_epoch": 1}, "t" + "b" * 4)]
)
def test_more_epochs_than_were_announced_warn_once(options, calls):
    message = r"Epoch 3 of total_epochs=2 begins: .* epoch.* steps_per_epoch"
    with pytest.warns(UserWarning, match=message) as found:
        epochs(calls, total_epochs=2, **options)
    assert [w.filename for w in found] == [__file__]


def test_calibrations_take_no_place_in_a_training():
    wrapper, data = small(steps_per_epoch=3), [torch.randn(2, 3, 8, 8)] * 4
    for place in ((-1, False, 0), (0, True, 2)):
        progress = wrapper.calibrate(data).progress
        assert (progress.epoch, progress.has_stepped, progress.batches) == place
        wrapper.train()
        for x in data[:2]:
            wrapper(x)


@pytest.mark.parametrize("steps", [None, 4])
def test_a_training_resumed_within_an_epoch_goes_on_to_the_bit(steps):
    batches = [torch.randn(4, 3, 8, 8) for _ in range(10)]

    def run(wrapper, data):
        for x in data:
            wrapper.train()
            wrapper.zero_grad()
            wrapper(x).square().mean().backward()
            with torch.no_grad():
                for parameter in wrapper.parameters():
                    parameter -= 0.1 * parameter.grad
        return wrapper

    torch.manual_seed(0)
    whole = run(small(total_epochs=10, steps_per_epoch=steps), batches[:5])
    resumed = small(total_epochs=10, steps_per_epoch=steps)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    first, second = (run(wrapper, batches[5:]).state_dict() for wrapper in (whole, resumed))
    assert first["_extra_state"] == second["_extra_state"]
    for name, value in first.items():
        assert name == "_extra_state" or torch.equal(value, second[name]), name


WRAPPERS = [
    lambda model, **options: QuantTrainModule(model, torch.rand(1, 3, 8, 8), **options),
    QATFxModule,
    PTCFxModule,
    GenericTinyMLQATFxModule,
    TINPUTinyMLQATFxModule,
]


@pytest.mark.parametrize("make", WRAPPERS)
def test_every_wrapper_counts_batches(make):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    wrapper = make(model, total_epochs=8, steps_per_epoch=2).train()
    for _ in range(5):
        wrapper(torch.randn(2, 3, 8, 8))
    assert (wrapper.epoch, wrapper.progress.batches) == (2, 1)


def test_copies_on_several_devices_cannot_count_batches():
    wrapper = small(steps_per_epoch=2).train()
    replica = wrapper._replicate_for_data_parallel()
    with pytest.raises(ValueError, match="steps_per_epoch counts batches, which copies"):
        replica(torch.randn(2, 3, 8, 8))
    by_epoch = small().train()._replicate_for_data_parallel()
    by_epoch(torch.randn(2, 3, 8, 8))
    assert by_epoch.progress.has_stepped


def test_setting_the_epochs_of_the_schedule_is_an_error():
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    wrapper = QuantTrainModule(nn.Sequential(*layers), torch.rand(1, 3, 8, 8), total_epochs=4)
    assert (wrapper.batch_norm_epoch, wrapper.range_epoch) == (1, 3)
    for name in ("batch_norm_epoch", "range_epoch"):
        with pytest.raises(AttributeError, match=name):
            setattr(wrapper, name, None)


def test_unfreezing_a_calibration_keeps_batch_norms_in_evaluation_mode():
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    wrapper = QuantCalibrateModule(nn.Sequential(*layers), torch.rand(1, 3, 8, 8)).train()
    wrapper.freeze().unfreeze()
    assert states(wrapper.module) == (False, True)
