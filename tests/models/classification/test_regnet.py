from torch import nn

from edgeailite.models.classification.regnet import XBlock


def test_shortcut_is_a_projection_only_where_shapes_differ():
    assert XBlock(16, 16, 1, 8, nn.ReLU).proj is None
    assert isinstance(XBlock(16, 16, 2, 8, nn.ReLU).proj, nn.Conv2d)
    assert isinstance(XBlock(8, 16, 1, 8, nn.ReLU).proj, nn.Conv2d)


def test_groups_have_their_width():
    block = XBlock(32, 64, 1, 16, nn.ReLU)
    assert block.f.b.groups == 4
    assert block.f.b.weight.shape == (64, 16, 3, 3)
