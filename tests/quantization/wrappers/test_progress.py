"""States that the schedule sets in a model, and their way into a checkpoint and back."""

import pytest
import torch
from torch import nn

from edgeailite.quantization import QuantCalibrateModule, QuantTrainModule
from edgeailite.quantization.graph.operations import BATCH_NORM_MODULES
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.wrappers.progress import Progress
from edgeailite.quantization.wrappers.schedule import Schedule

SCHEDULE = Schedule(batch_norm_epoch=1, range_epoch=2, hard_epoch=4, damping=0.2, total_epochs=3)
KEYS = ["epoch", "batch_norm_epoch", "range_epoch", "batch_norm_frozen", "ranges_frozen"]


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


def test_state_of_an_earlier_version_may_lack_keys():
    progress = Progress(SCHEDULE)
    progress.restore({"epoch": 5})
    assert (progress.epoch, progress.schedule) == (5, SCHEDULE)
    assert not progress.batch_norm_frozen


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
