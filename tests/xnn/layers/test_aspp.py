import pytest
import torch
from torch import fx, nn

from edgeailite.xnn.layers.aspp import LiteASPP


def test_size_is_kept_and_the_dilated_branches_are_depthwise():
    aspp = LiteASPP(8, 12, 16).eval()
    x = torch.randn(2, 8, 20, 24)
    assert aspp(x).shape == (2, 12, 20, 24)
    depthwise = [m for m in aspp.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert [conv.dilation[0] for conv in depthwise] == [6, 12, 18]
    assert all(conv.groups == 8 for conv in depthwise)
    assert torch.equal(fx.symbolic_trace(aspp)(x), aspp(x))


def test_output_sees_as_far_as_the_largest_dilation():
    aspp = LiteASPP(1, 1, 2, dilations=(2, 5), norm_layer=None, activation=None)
    x = torch.zeros(1, 1, 21, 21, requires_grad=True)
    aspp(x)[0, 0, 10, 10].backward()
    reached = sorted({(abs(int(r) - 10)) for r, _ in x.grad[0, 0].nonzero()})
    assert reached == [0, 2, 5]


def test_every_convolution_is_normalized_and_activated_by_request():
    aspp = LiteASPP(4, 4, 4, dilations=(1, 2), norm_layer=None, activation=nn.ReLU6)
    kinds = [type(m) for m in aspp.modules()]
    assert nn.BatchNorm2d not in kinds
    assert kinds.count(nn.ReLU6) == kinds.count(nn.Conv2d) == 6


def test_no_dilation_raises():
    with pytest.raises(ValueError, match="dilations is empty"):
        LiteASPP(4, dilations=())
