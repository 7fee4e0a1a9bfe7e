import pytest
import torch
from torch import nn

from edgeailite.models import create_model
from edgeailite.models.classification.resnet import BasicBlock, Bottleneck


@pytest.mark.parametrize(("block", "channels"), [(BasicBlock, 16), (Bottleneck, 4)])
def test_shortcut_is_a_projection_only_where_shapes_differ(block, channels):
    assert block(16, channels, 1, nn.ReLU).downsample is None
    assert isinstance(block(16, channels, 2, nn.ReLU).downsample, nn.Sequential)
    assert isinstance(block(12, channels, 1, nn.ReLU).downsample, nn.Sequential)


@pytest.mark.parametrize(("block", "channels"), [(BasicBlock, 16), (Bottleneck, 4)])
def test_zero_residual_leaves_the_input(block, channels):
    model = block(16, channels, 1, nn.ReLU).eval()
    nn.init.zeros_([m for m in model.modules() if isinstance(m, nn.BatchNorm2d)][-1].weight)
    x = torch.rand(1, 16, 5, 5)
    assert torch.equal(model(x), x)


def test_max_pool_of_stride_one_is_left_out():
    assert isinstance(create_model("resnet18_x1").maxpool, nn.MaxPool2d)
    small = create_model("resnet18_x1", strides=(1, 1, 1, 2, 2))
    assert isinstance(small.maxpool, nn.Identity)
    assert list(small.state_dict()) == list(create_model("resnet18_x1").state_dict())


def test_half_width_halves_every_stage():
    model = create_model("resnet50_xp5")
    assert [s[-1].conv3.out_channels for s in (model.layer1, model.layer4)] == [128, 1024]
    assert model.layer1[0].conv2.out_channels == 32
