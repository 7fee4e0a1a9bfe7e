import pytest
import torch
from torch import nn

from edgeailite.quantization.report import build_report
from tests.quantization.helpers import trained


class OverwritesItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 4, 1), nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        y = self.conv(x)
        y *= self.scale
        return y


def test_what_the_model_overwrites_is_measured_before():
    model = trained(OverwritesItsInput(), [(3, 8, 8)])
    report = build_report(model, [torch.randn(4, 3, 8, 8)])
    assert report.layers[0].output_sqnr > 20


def test_large_values_are_sampled():
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 1)), [(3, 8, 8)])
    images = torch.randn(2, 3, 200, 200).clamp(-2, 2)
    whole = build_report(model, [images])
    halves = build_report(model, images.split(1))
    entry, other = whole.activations[0], halves.activations[0]
    assert sum(entry.histogram.counts) < images.numel()
    assert (entry.clipped, entry.values) == (other.clipped, other.values)
    assert entry.sqnr == pytest.approx(other.sqnr, abs=0.2)
