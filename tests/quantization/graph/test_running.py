import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.graph.running import (
    GraphRunner,
    as_batches,
    node_values,
    sweep,
    value_shapes,
)
from edgeailite.quantization.modules.layer_calls import layer_call
from tests.quantization.zoo import FunctionalLayers


def _prepared():
    torch.manual_seed(0)
    wrapper = PTCFxModule(FunctionalLayers(), qconfig_type="WC8_AT8")
    return wrapper.calibrate([torch.randn(4, 3, 8, 8)]).module


def test_last_run_has_the_outputs_of_the_model():
    model = _prepared()
    batches = [(torch.randn(2, 3, 8, 8),), (torch.randn(3, 3, 8, 8),)]
    for run in sweep(model, batches):
        outputs = run.outputs
    with torch.no_grad():
        for output, batch in zip(outputs, batches, strict=True):
            assert torch.equal(output, model(*batch))


def test_a_change_at_an_operation_counts_for_all_behind_it():
    model = _prepared()
    x = torch.randn(2, 3, 8, 8)
    changed = None
    for run in sweep(model, [(x,)]):
        call = layer_call(model, run.node)
        if changed is None and call is not None and call.bias is not None:
            before = run.outputs[0].clone()
            call.bias.data += 1.0
            run.recompute()
            changed = run.outputs[0] - before
        last = run.outputs[0]
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
    for run in sweep(model, [(x,)]):
        output = run.outputs[0]
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
    held = [len(run._values) for run in sweep(model, batches)]
    assert max(held) < len(model.graph.nodes) / 2


def test_runner_shows_every_value_before_and_after():
    model, x = _prepared(), torch.randn(2, 3, 8, 8)
    results, read = {}, {}

    def before(node, values):
        read[node] = [v.clone() if isinstance(v, torch.Tensor) else v for v in values]

    with torch.no_grad():
        output = GraphRunner(model, results.__setitem__, before).run(x)
        expected = model(x)
    assert list(results) == list(read) == list(model.graph.nodes)
    assert torch.equal(output, expected)
    (end,) = model.graph.find_nodes(op="output")
    assert torch.equal(read[end][0], expected)


def test_values_of_the_wanted_nodes_alone():
    model, x = _prepared(), torch.randn(2, 3, 8, 8)
    (end,) = model.graph.find_nodes(op="output")
    wanted = [end.all_input_nodes[0]]
    with torch.no_grad():
        expected = model(x)
    found = node_values(model, [x], wanted)
    assert list(found) == wanted
    assert torch.equal(found[wanted[0]], expected)


def test_shapes_of_values_and_of_an_example_that_does_not_pass():
    model = _prepared()
    shapes = value_shapes(model, [torch.randn(2, 3, 8, 8)])
    assert shapes[model.graph.find_nodes(op="placeholder")[0]] == (2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"shape \(2, 4, 8, 8\) does not pass through the model"):
        value_shapes(model, [torch.randn(2, 4, 8, 8)])
