import pytest
import torch
from torch import nn

from edgeailite.models import create_model
from edgeailite.models.classification.regnet import XBlock


def test_shortcut_is_a_projection_only_where_shapes_differ():
    assert XBlock(16, 16, 1, 8, nn.ReLU).proj is None
    assert isinstance(XBlock(16, 16, 2, 8, nn.ReLU).proj, nn.Conv2d)
    assert isinstance(XBlock(8, 16, 1, 8, nn.ReLU).proj, nn.Conv2d)


def test_groups_have_their_width():
    block = XBlock(32, 64, 1, 16, nn.ReLU)
    assert block.f.b.groups == 4
    assert block.f.b.weight.shape == (64, 16, 3, 3)


@pytest.mark.parametrize("name", ["regnetx400mf", "regnetx800mf", "regnetx1p6gf", "regnetx3p2gf"])
def test_the_bgr_name_is_the_same_network(name):
    first, second = (create_model(f"{name}_x1{end}", num_classes=3) for end in ("", "_bgr"))
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(first.eval()(x), second.eval()(x))
