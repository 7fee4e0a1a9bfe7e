"""Options without effect warn, at the user's line; shared options are read in one way."""

import warnings

import pytest
import torch
from torch import nn

from edgeailite.quantization import (
    GenericTinyMLPTQFxModule,
    PTCFxModule,
    QATFxModule,
    QuantCalibrateModule,
    QuantTestModule,
    QuantTrainModule,
    TINPUTinyMLPTQFxModule,
    TrainingMethods,
)
from edgeailite.quantization.wrappers.arguments import as_inputs, read_example_inputs

X = torch.rand(1, 3, 8, 8)
METHODS = TrainingMethods(damping=0.1)


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


@pytest.mark.parametrize(
    ("wrapper", "options", "message"),
    [
        (QuantCalibrateModule, {"methods": METHODS}, "methods=.*QuantCalibrateModule does not"),
        (QuantTestModule, {"methods": METHODS}, "methods=.*QuantTestModule does not train"),
        (QuantTrainModule, {"total_epochs": 2, "lr_calib": 0.1}, "lr_calib=0.1 has no effect"),
        (QuantCalibrateModule, {"lr_calib": 0.1, "bias_calibration": False}, "lr_calib=0.1"),
        (QuantCalibrateModule, {"steps_per_epoch": 4}, "steps_per_epoch=4 has no effect"),
        (
            QuantCalibrateModule,
            {"range_shrink_activations": 0.1, "histogram_range": False},
            "range_shrink_activations=0.1 .*rule 'min_max'",
        ),
        (
            QuantTrainModule,
            {"total_epochs": 2, "range_shrink_activations": 0.1, "range_rule": "mse"},
            "range_shrink_activations=0.1 .*rule 'mse'",
        ),
    ],
)
def test_options_without_effect_warn_where_the_wrapper_is_made(wrapper, options, message):
    with pytest.warns(UserWarning, match=message) as found:
        wrapper(net(), X, **options)
    assert [w.filename for w in found] == [__file__]


@pytest.mark.parametrize(
    "make",
    [
        PTCFxModule,
        GenericTinyMLPTQFxModule,
        TINPUTinyMLPTQFxModule,
        lambda model, **options: QATFxModule(model, is_qat=False, total_epochs=2, **options),
    ],
)
def test_batch_norm_epochs_of_a_calibration_warn(make):
    with pytest.warns(UserWarning, match="num_batch_norm_update_epochs=3 has no effect") as found:
        wrapper = make(net(), num_batch_norm_update_epochs=3)
    assert [w.filename for w in found] == [__file__]
    assert wrapper.progress.schedule.batch_norm_epoch is None


@pytest.mark.parametrize(
    ("wrapper", "options"),
    [
        (QuantCalibrateModule, {"methods": TrainingMethods()}),
        (QuantCalibrateModule, {"lr_calib": 0.1}),
        (QuantCalibrateModule, {"range_shrink_activations": 0, "histogram_range": False}),
        (QuantTestModule, {"lr_calib": 0.1, "total_epochs": 4, "constrain_weights": True}),
        (QuantTestModule, {"steps_per_epoch": 4}),
        (QuantCalibrateModule, {"total_epochs": 4, "steps_per_epoch": 4}),
        (QuantTestModule, {"bias_calibration": True}),
    ],
)
def test_one_set_of_options_serves_the_pact2_wrappers(wrapper, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapper(net(), X, **options)


@pytest.mark.parametrize("value", [None, 0, False])
def test_no_epochs_of_batch_norm_are_no_reason_to_warn(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PTCFxModule(net(), num_batch_norm_update_epochs=value)


def test_inputs_are_given_once():
    assert as_inputs(X) == (X,)
    assert as_inputs([X, None]) == (X, None)
    assert read_example_inputs((), None) is None
    assert read_example_inputs((), ()) is None
    assert read_example_inputs((), None, {"scale": X}) == ()
    assert read_example_inputs((X,), None) == read_example_inputs((), X) == (X,)
    with pytest.raises(ValueError, match="give the inputs once"):
        read_example_inputs((X,), X)
