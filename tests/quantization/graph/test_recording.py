import pytest
import torch
from torch import nn

from edgeailite.quantization.graph.recording import hooked, results_kept


def _hooks(model):
    return [len(module._forward_hooks) for module in model.modules()]


def test_hooks_see_arguments_and_result_and_go_away():
    model, seen = nn.Sequential(nn.ReLU(), nn.Sigmoid()), []
    x = torch.randn(3)
    with hooked([(model[1], lambda module, args, y: seen.append((module, args, y)))]):
        y = model(x)
    model(x)
    ((module, (given,), result),) = seen
    assert module is model[1]
    assert torch.equal(given, x.relu())
    assert result is y


def test_hooks_go_away_after_an_error():
    model = nn.Sequential(nn.ReLU(), nn.ReLU())

    def refuse(*_):
        raise RuntimeError("seen")

    with pytest.raises(RuntimeError, match="seen"), hooked([(m, refuse) for m in model]):
        model(torch.zeros(1))
    assert _hooks(model) == [0, 0, 0]


def test_hooks_go_away_if_one_cannot_be_registered():
    model = nn.Sequential(nn.ReLU())
    pairs = [(model[0], lambda *_: None), (None, lambda *_: None)]
    with pytest.raises(AttributeError), hooked(pairs):
        pass
    assert _hooks(model) == [0, 0]


def test_results_are_kept_by_name():
    model = nn.Sequential(nn.ReLU(), nn.Sigmoid())
    x = torch.randn(3)
    with results_kept(model.named_children()) as results:
        y = model(x)
    assert list(results) == ["0", "1"]
    assert torch.equal(results["0"], x.relu())
    assert torch.equal(results["1"], y)
    assert _hooks(model) == [0, 0, 0]
