import torch
from torch import nn

from edgeailite.models import create_model


def test_pools_of_stride_one_are_left_out_and_keep_the_names():
    small = create_model("vgg16_x1", num_classes=3, width_mult=0.125, strides=(1, 1, 2, 2, 2))
    pools = [m for m in small.features if isinstance(m, nn.MaxPool2d | nn.Identity)]
    assert [type(m) for m in pools] == [nn.Identity] * 2 + [nn.MaxPool2d] * 3
    full = create_model("vgg16_x1", num_classes=3, width_mult=0.125)
    assert list(small.state_dict()) == list(full.state_dict())
    assert small.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 3)
