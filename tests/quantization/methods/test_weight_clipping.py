import pytest
import torch
from torch import nn

from edgeailite.quantization.methods.weight_clipping import constrain_weights
from edgeailite.quantization.wrappers import QuantTrainModule


def prepared(model: nn.Module) -> nn.Module:
    return QuantTrainModule(model, torch.randn(1, 3, 4, 4), total_epochs=4).module


def test_outliers_are_clipped_at_the_documented_limit():
    conv = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        conv.weight.fill_(0.5)
        conv.weight[0, 0, 0, 0], conv.weight[1, 0, 0, 0] = 40.0, -50.0
    model = prepared(nn.Sequential(conv))
    assert constrain_weights(model) == ["0"]
    # 16 * median = 8, a power of two: the limit is 8 * 120 / 128
    assert float(conv.weight.detach().max()) == 7.5
    assert float(conv.weight.detach().min()) == -7.5
    assert int((conv.weight == 0.5).sum()) == conv.weight.numel() - 2
    assert constrain_weights(model) == []


@pytest.mark.parametrize(("typical", "largest"), [(0.01, 14.9), (2.0, 31.0)])
def test_small_or_common_maxima_stay(typical, largest):
    """Clipped only if the maximum is above 15 and above 16 times the median."""
    conv = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        conv.weight.fill_(typical)
        conv.weight[0, 0, 0, 0] = largest
    before = conv.weight.detach().clone()
    assert constrain_weights(prepared(nn.Sequential(conv))) == []
    assert torch.equal(conv.weight, before)


def test_the_folded_weight_is_what_counts():
    conv, norm = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8, eps=1e-30)
    with torch.no_grad():
        conv.weight.fill_(0.5)
        norm.weight[2], norm.weight[3] = -100.0, 0.0
    model = prepared(nn.Sequential(conv, norm))
    assert constrain_weights(model) == ["0"]
    assert conv.weight[2].detach().flatten().tolist() == pytest.approx([0.075] * 3)
    others = [i for i in range(8) if i != 2]
    assert bool((conv.weight[others] == 0.5).all())
    assert bool(conv.weight.isfinite().all())
