import copy
import pickle
import random

import pytest
import torch
from torch import nn

from edgeailite.quantization import TINPUTinyMLPTQFxModule
from edgeailite.quantization.methods.mixed_precision.search import (
    MixedPrecision,
    accuracy,
    apply_mixed_precision,
    r_squared,
    search_bit_widths,
    without_search,
)
from edgeailite.quantization.methods.mixed_precision.sensitivity import layer_sensitivity
from edgeailite.quantization.targets.tinpu.qconfig import BIT_WIDTHS, weight_spec
from edgeailite.quantization.wrappers.tinyml import run_auto_quantization


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4),
    ).eval()  # fmt: skip


RANDOM = torch.Generator().manual_seed(0)
DATA = [
    (
        torch.randn(16, 1, 8, 8, generator=RANDOM),
        torch.randint(0, 4, (16,), generator=RANDOM),
    )
    for _ in range(3)
]
SIZES = {"0": 72, "3": 1152, "6": 1024}


def tinyml_spec(_, bits):
    return weight_spec(bits)


def make_wrapper(model, found):
    given = {"weight": {"mixed_precision": found.bits}}
    return TINPUTinyMLPTQFxModule(model, qconfig_type=given, verbose=False)


def search(**goal):
    options = {"weight_spec": tinyml_spec, "bit_widths": BIT_WIDTHS}
    return search_bit_widths(network(), make_wrapper, DATA, **options, **goal)


def test_a_size_is_kept_and_beats_random_choices_of_that_size():
    found = search(max_bytes=900)
    assert found.num_bytes <= 900
    measured = {s.path: s for s in found.sensitivities}
    error = sum(measured[p].errors[b] for p, b in found.chosen.items())
    generator = random.Random(0)
    others = [{p: generator.choice([8, 4, 2]) for p in SIZES} for _ in range(50)]
    fitting = [o for o in others if sum(SIZES[p] * b for p, b in o.items()) / 8 <= 900]
    assert len(fitting) > 5
    assert all(error <= sum(measured[p].errors[b] for p, b in o.items()) for o in fitting)


def test_a_metric_is_kept_with_few_bytes():
    reference = network()(torch.cat([x for x, _ in DATA])).detach()

    def closeness(wrapper):  # higher is better
        with torch.no_grad():
            outputs = wrapper(torch.cat([x for x, _ in DATA]))
        return -float((outputs - reference).square().mean() / reference.var())

    tight = search(evaluate=closeness, min_metric=-0.01)
    loose = search(evaluate=closeness, min_metric=-0.2)
    assert tight.metric >= -0.01
    assert loose.metric >= -0.2
    assert loose.num_bytes < tight.num_bytes


def test_a_metric_out_of_reach_gives_the_widest(capsys):
    found = search(evaluate=lambda _: 0.0, min_metric=1.0)
    assert set(found.chosen.values()) == {8}
    assert "even the widest weights reach only 0" in capsys.readouterr().out


@pytest.mark.parametrize("goal", [{}, {"max_bytes": 9, "min_metric": 1.0}, {"min_metric": 1.0}])
def test_exactly_one_goal_is_needed(goal):
    with pytest.raises(ValueError, match="needs a goal"):
        search(**goal)


def test_the_result_is_saved_and_read(tmp_path):
    found = search(max_bytes=900)
    path = found.save(tmp_path / "folder" / "bits.json")
    assert MixedPrecision.load(path) == found
    assert [p.name for p in path.parent.iterdir()] == ["bits.json"]
    assert sorted(found.bits) == sorted(set(found.chosen.values()))
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds no mixed precision .* MixedPrecision.save"):
        MixedPrecision.load(tmp_path / "other.json")


def test_the_table_names_every_layer():
    lines = str(search(max_bytes=900)).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["0", "3", "6"]
    assert "bits on average" in lines[-1]


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


def test_metrics():
    x, y = torch.randn(20, 3), torch.randn(20, 1)
    assert r_squared(lambda_module(lambda _: y), [(x, y)]) == pytest.approx(1.0)
    mean = y.mean(0, keepdim=True).expand_as(y)
    assert r_squared(lambda_module(lambda _: mean), [(x, y)]) == pytest.approx(0.0, abs=1e-6)
    labels = x.argmax(1)
    assert accuracy(nn.Identity(), [(x[:10], labels[:10]), (x[10:], labels[10:])]) == 100.0


def lambda_module(function):
    module = nn.Identity()
    module.forward = function
    return module
