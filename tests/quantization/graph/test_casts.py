"""Casts: what changes nothing is no operation, what changes the type is refused by name."""

import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.graph.calls import operation_of
from edgeailite.quantization.graph.capture import capture
from edgeailite.quantization.graph.model import graph_of
from edgeailite.quantization.graph.opened_calls import open_calls
from edgeailite.quantization.graph.structure import Example
from edgeailite.quantization.report import build_report


class Casts(nn.Module):
    def __init__(self, cast, has_layer=True):
        super().__init__()
        self.conv, self.cast = nn.Conv2d(3, 4, 1), cast
        self.has_layer = has_layer

    def forward(self, x):
        return self.cast(self.conv(x)) if self.has_layer else self.conv(self.cast(x))


ROWS = {
    "to_type": (
        *(lambda y: y.float(), lambda y: y.to(torch.float32), lambda y: y.to(y.dtype)),
        *(lambda y: y.to(y.flip(1)), lambda y: y.type_as(y), lambda y: y.to(dtype=y.dtype)),
    ),
    "to_device": (lambda y: y.to("cpu", torch.float32), lambda y: y.to(device=y.device)),
    "no_floats": (lambda y: y.to(torch.int64), lambda y: y.to(dtype=torch.bool)),
    "unknown": (lambda y: y.double(), lambda y: y.to(torch.float16)),
}
CASES = [(row, cast) for row, casts in ROWS.items() for cast in casts]


@pytest.mark.parametrize("example", [None, Example((torch.randn(2, 3, 4, 4),))])
@pytest.mark.parametrize(("row", "cast"), CASES)
def test_a_cast_belongs_to_the_row_of_what_it_changes(row, cast, example):
    captured = capture(Casts(cast), example=example)
    made = graph_of(captured).find_nodes(op="output")[0].all_input_nodes[0]
    assert operation_of(made).name == row
    open_calls(captured, lambda operation: False)
    assert (made in graph_of(captured).nodes) == (row != "to_type")


def test_a_cast_of_another_type_names_both_types():
    x = torch.randint(0, 9, (2, 3, 4, 4))
    wrapper = PTCFxModule(Casts(lambda x: x.float(), False), example_inputs=x, verbose=False)
    (entry,) = build_report(wrapper.calibrate([x])).floats.values()
    assert entry.reason == "it makes torch.float32 of torch.int64"


def test_a_cast_of_an_input_of_unknown_type_stays_in_float():
    wrapper = PTCFxModule(Casts(lambda x: x.float() / 9, False), verbose=False)
    x = torch.randint(0, 9, (2, 3, 4, 4))
    floats = build_report(wrapper.calibrate([x])).floats
    assert "give an example input" in floats["float_1"].reason


def test_a_copy_does_not_share_memory():
    def overwrite(y):
        copied = y.to(torch.float32, copy=True)
        return y.add_(1.0) + copied

    model, x = Casts(overwrite).eval(), torch.randn(2, 3, 4, 4)
    assert torch.equal(capture(model, example=Example((x,)))(x), model(x))


def test_a_function_of_a_moved_constant_is_integers():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            y = self.conv(x)
            places = torch.linspace(0.1, 1.0, y.shape[-1]).reshape(1, -1)
            return y * (6.28 * places.to(device="cpu", dtype=torch.float32)).sin()

    x = torch.randn(2, 3, 4, 4)
    wrapper = PTCFxModule(Positions(), example_inputs=x, verbose=False).calibrate([x])
    assert build_report(wrapper).floats == {}


def test_a_constant_made_of_sizes_is_no_number():
    class Ramp(Casts):
        def forward(self, x):
            y = self.conv(x)
            return y * torch.linspace(0.1, 1.0, y.shape[-1])

    x = torch.randn(2, 3, 4, 4)
    for example in (None, x):
        wrapper = PTCFxModule(Ramp(None), example_inputs=example, verbose=False).calibrate([x])
        reasons = [entry.reason for entry in build_report(wrapper).floats.values()]
        assert all("no float32" in reason for reason in reasons)
        assert bool(reasons) == (example is None)
