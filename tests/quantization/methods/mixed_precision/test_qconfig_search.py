import copy
import pickle

import pytest
import torch

from edgeailite.quantization import TINPUTinyMLPTQFxModule
from edgeailite.quantization.methods.mixed_precision.metrics import accuracy
from edgeailite.quantization.methods.mixed_precision.qconfig_search import (
    apply_mixed_precision,
    without_search,
)
from edgeailite.quantization.methods.mixed_precision.sensitivity import layer_sensitivity
from edgeailite.quantization.wrappers.tinyml import run_auto_quantization
from tests.quantization.methods.mixed_precision.network import DATA, SIZES, network


class Loader:
    """Iterable, but neither copied nor pickled, as a loader with workers."""

    def __iter__(self):
        return iter(DATA)

    def __reduce__(self):
        raise TypeError("not picklable")


def test_a_dict_is_searched_without_being_changed():
    model = network()
    given = {"weight": {"bitwidth": 8}, "calibration_dataloader": Loader(), "max_bytes": 900}
    keys, state = dict(given), copy.deepcopy(model.state_dict())
    result = run_auto_quantization(model, given)
    assert given == keys
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert set(result) == {"weight"}
    pickle.dumps(result)
    wrapper = TINPUTinyMLPTQFxModule(model, qconfig_type=result, verbose=False)
    assert {s.path for s in layer_sensitivity(wrapper.module, [DATA[0][:1]])} == set(SIZES)


@pytest.mark.parametrize("float_metric", [None, 0.25, 25.0])
def test_an_accuracy_is_the_goal_of_a_classifier(float_metric):
    given = {
        "calibration_dataloader": Loader(), "eval_dataloader": Loader(),
        "task_type": "generic_timeseries_classification", "float_metric": float_metric,
        "autoquant_tolerance_classification": 100,
    }  # fmt: skip
    found = run_auto_quantization(network(), given)["weight"]["mixed_precision"]
    assert set(found) == {2}  # everything is allowed


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="needs calibration_dataloader"):
        run_auto_quantization(network(), {"max_bytes": 900})
    with pytest.raises(ValueError, match="needs a goal: max_bytes, or eval_dataloader"):
        run_auto_quantization(network(), {"inputs": DATA[0][0]})
    with pytest.raises(ValueError, match="no batch to evaluate on"):
        accuracy(network(), [])


def test_helpers_return_new_dicts():
    given = {"weight": {"bitwidth": 8}, "eval_dataloader": 1, "activation": {}}
    assert apply_mixed_precision(given, {4: ("a",)})["weight"] == {
        "bitwidth": 8,
        "mixed_precision": {4: ["a"]},
    }
    assert without_search(given) == {"weight": {"bitwidth": 8}, "activation": {}}
    assert given == {"weight": {"bitwidth": 8}, "eval_dataloader": 1, "activation": {}}
