import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.graph.running import as_batches, sweep
from edgeailite.quantization.modules.layer_calls import layer_call
from tests.quantization.zoo import FunctionalLayers


def _prepared():
    torch.manual_seed(0)
    wrapper = PTCFxModule(FunctionalLayers(), qconfig_type="WC8_AT8")
    return wrapper.calibrate([torch.randn(4, 3, 8, 8)]).module


def test_last_step_has_the_outputs_of_the_model():
    model = _prepared()
    batches = [(torch.randn(2, 3, 8, 8),), (torch.randn(3, 3, 8, 8),)]
    for step in sweep(model, batches):
        outputs = step.outputs
    with torch.no_grad():
        for output, batch in zip(outputs, batches, strict=True):
            assert torch.equal(output, model(*batch))


def test_a_change_at_a_step_counts_for_all_behind_it():
    model = _prepared()
    x = torch.randn(2, 3, 8, 8)
    changed = None
    for step in sweep(model, [(x,)]):
        unit = layer_call(model, step.node)
        if changed is None and unit is not None and unit.bias is not None:
            before = step.outputs[0].clone()
            unit.bias.data += 1.0
            step.recompute()
            changed = step.outputs[0] - before
        last = step.outputs[0]
    assert changed.abs().min() > 0.5
    with torch.no_grad():
        assert torch.equal(last, model(x))


def test_default_arguments_are_filled_in():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x, scale=2.0):
            return self.conv(x) * scale

    model = PTCFxModule(Scaled()).calibrate([torch.randn(2, 1, 4, 4)]).module
    x = torch.randn(2, 1, 4, 4)
    for step in sweep(model, [(x,)]):
        output = step.outputs[0]
    with torch.no_grad():
        assert torch.equal(output, model(x))


def test_batches_are_taken_from_what_loaders_give():
    x = torch.zeros(2, 1)
    assert [len(b) for b in as_batches([x, x], 1)] == [1, 1]
    assert [len(b) for b in as_batches([(x, 0), [x, 1], (x, 2)], 1, limit=2)] == [1, 1]


@pytest.mark.parametrize("count", [1, 3])
def test_values_are_dropped_after_their_last_use(count):
    model = _prepared()
    batches = [(torch.randn(1, 3, 8, 8),)] * count
    held = [len(step._values) for step in sweep(model, batches)]
    assert max(held) < len(model.graph.nodes) / 2
