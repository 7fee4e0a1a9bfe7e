import pytest
import torch
from torch import nn

from edgeailite.xnn.utils import freeze_bn, is_bn, is_conv, is_deconv, is_dwconv, unfreeze_bn


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Conv1d(4, 4, 1), {"conv"}),
        (nn.Conv2d(4, 8, 3), {"conv"}),
        (nn.Conv3d(4, 8, 3), {"conv"}),
        (nn.Conv2d(4, 8, 3, groups=2), {"conv"}),
        (nn.Conv2d(4, 8, 3, groups=4), {"conv", "dwconv"}),
        (nn.Conv2d(1, 8, 3), {"conv"}),
        (nn.ConvTranspose2d(4, 4, 2, groups=4), {"deconv"}),
        (nn.BatchNorm1d(4), {"bn"}),
        (nn.BatchNorm2d(4), {"bn"}),
        (nn.SyncBatchNorm(4), {"bn"}),
        (nn.Linear(4, 4), set()),
        (nn.GroupNorm(2, 4), set()),
    ],
    ids=lambda v: "+".join(sorted(v)) if isinstance(v, set) else str(v),
)
def test_predicates(module, expected):
    predicates = {"conv": is_conv, "deconv": is_deconv, "dwconv": is_dwconv, "bn": is_bn}
    assert {name for name, predicate in predicates.items() if predicate(module)} == expected


def test_frozen_batch_norm_keeps_its_statistics_while_the_rest_trains():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    freeze_bn(model)
    before = model[1].running_mean.clone()
    x = torch.randn(8, 3, 4, 4)
    model(x).sum().backward()
    assert torch.equal(model[1].running_mean, before)
    assert model.training
    assert model[2].training
    assert model[0].weight.grad is not None

    unfreeze_bn(model)
    model(x)
    assert not torch.equal(model[1].running_mean, before)


def test_freezing_does_not_reach_what_sits_below_a_batch_norm():
    model = nn.Sequential(nn.BatchNorm2d(4)).train()
    model[0].activation_q = nn.Identity()
    freeze_bn(model)
    assert (model[0].training, model[0].activation_q.training) == (False, True)


def test_unfreezing_leaves_an_evaluating_model_in_evaluation():
    model = nn.Sequential(nn.BatchNorm2d(4)).eval()
    unfreeze_bn(model)
    assert not model[0].training
