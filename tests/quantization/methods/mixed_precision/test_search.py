import random

import pytest
import torch

from tests.quantization.methods.mixed_precision.network import DATA, SIZES, network, search


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
