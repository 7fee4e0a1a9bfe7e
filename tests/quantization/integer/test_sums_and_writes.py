"""Sums along axes, writes into a part, padding, windows, maxima: integers on all levels."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.arithmetic.sqnr import sqnr
from edgeailite.quantization.report import build_report
from edgeailite.quantization.verify import verify


def write_rows(y):
    z = y * 0.5
    z[:, 1:] = z[:, 1:] + y[:, :-1]
    return z.softmax(1)


def write_inside(y):
    z = y.sigmoid()
    z[:, 0] = z[:, 0] + y[:, 1]
    z[:, :, 1:-1, 2:] = y[:, :, 1:-1, 2:].tanh()
    z[..., :] = z + y
    return z


CALLS = {
    "sum of the radix": lambda y: y.reshape(y.shape[0], 2, 4, 6, 6).sum(dim=1),
    "sum of images": lambda y: y.sum(dim=(2, 3), keepdim=True),
    "sum of the batch": lambda y: y.sum(0),
    "sum of all": lambda y: y.sum(),
    "pad with 1": lambda y: F.pad(y, (0, 1), mode="constant", value=1.0),
    "pad below": lambda y: F.pad(y.relu(), (1, 1, 0, 2), value=-0.37),
    "scatter": lambda y: torch.slice_scatter(y, y[..., 1:3].sigmoid(), -1, 1, 3),
    "select": lambda y: torch.select_scatter(y, y[..., 0] + y[..., 1], -1, -1),
    "rows": write_rows,
    "inside": write_inside,
    "columns": lambda y: F.fold(F.unfold(y, 3, 1, 1, 2), (6, 6), 3, 1, 1, 2),
    "windows": lambda y: y.unfold(2, 3, 1).unfold(3, 2, 2).tanh(),
    "larger": lambda y: torch.maximum(y, y.flip(1)) - torch.min(y, y.sigmoid()),
    "largest": lambda y: 0.5 * y.max(1)[0] + y.min(dim=1).values - y.max(),
    "cast": lambda y: y.to(torch.float32).sigmoid() * y.float().to(y.dtype),
}


class Calls(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        y = self.conv(x)
        return [call(y) for call in CALLS.values()]


@pytest.mark.parametrize("preset", ["WC8_AT8", "WT8SYMP2_AT8SYMP2"])
def test_sums_and_writes_are_integers_in_evaluation_and_in_files(preset, tmp_path):
    torch.manual_seed(0)
    model, x = Calls().eval(), torch.randn(2, 3, 6, 6)
    original = copy.deepcopy(model)
    wrapper = PTCFxModule(model, qconfig_type=preset, example_inputs=x, verbose=False)
    wrapper.calibrate([x], quality="fast")
    assert build_report(wrapper).floats == {}
    found = verify(wrapper, [x, torch.randn(2, 3, 6, 6)], wrapper.export(x, tmp_path / "m.onnx"))
    assert found.mismatches["evaluation vs integer graph"] == 0
    assert found.mismatches["integer graph vs ONNX Runtime, optimizations on"] == 0
    with torch.no_grad():
        for name, wanted, integer in zip(CALLS, original(x), wrapper(x), strict=True):
            assert float(sqnr(wanted, integer)) > 25, name


@pytest.mark.parametrize("value", [-torch.inf, -1e4])
def test_padding_in_front_of_a_max_pool_moves_integers_where_it_is_minus_infinity(value):
    class Pools(Calls):
        def forward(self, x):
            return F.max_pool2d(F.pad(self.conv(x), (1, 1, 1, 1), value=value), 3, 2)

    x = torch.randn(2, 3, 6, 6)
    wrapper = PTCFxModule(Pools(), verbose=False).calibrate([x])
    entries = build_report(wrapper).floats.values()
    assert [entry.operation for entry in entries] == ["pad"] * (value != -torch.inf)
    assert all("a mask may be in it" in entry.reason for entry in entries)
    assert set(verify(wrapper, [x]).mismatches.values()) == {0}


@pytest.mark.parametrize(
    ("dim", "start", "end", "step", "known"),
    [(1, 3, 1, 1, False), (1, 0, 4, 2, False), (0, 1, -1, 1, False), (2, 1, -1, 1, True)],
)
def test_a_write_into_a_part_that_is_not_known_stays_in_float(dim, start, end, step, known):
    class Writes(Calls):
        def forward(self, x):
            y = self.conv(x)
            part = y.new_zeros(y.shape)[(*[slice(None)] * dim, slice(start, end, step))]
            return torch.slice_scatter(y, part, dim, start, end, step)

    x = torch.randn(4, 3, 6, 6)
    wrapper = PTCFxModule(Writes(), example_inputs=x, verbose=False)
    reasons = [e.reason for e in build_report(wrapper.calibrate([x])).floats.values()]
    assert any("part that is not known" in reason for reason in reasons) is not known
