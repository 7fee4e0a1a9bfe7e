import pytest
import torch
from torch import nn

from edgeailite.models import create_model
from edgeailite.models.classification.mobilenetv2 import InvertedResidual


def test_input_is_added_only_where_shapes_agree():
    assert InvertedResidual(8, 8, 1, 6, nn.ReLU).add is not None
    assert InvertedResidual(8, 8, 2, 6, nn.ReLU).add is None
    assert InvertedResidual(8, 16, 1, 6, nn.ReLU).add is None


def test_residual_is_the_input_plus_the_convolutions():
    block = InvertedResidual(8, 8, 1, 6, nn.ReLU).eval()
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(block(x), x + block.conv(x))


def test_no_expansion_at_ratio_one():
    assert len(InvertedResidual(8, 8, 1, 1, nn.ReLU).conv) == 3
    assert len(InvertedResidual(8, 8, 1, 6, nn.ReLU).conv) == 4


@pytest.mark.parametrize(("name", "last"), [("mobilenetv2_x0p5", 1280), ("mobilenetv2_x2", 2560)])
def test_last_convolution_grows_with_the_width_but_does_not_shrink(name, last):
    assert create_model(name).classifier[1].in_features == last


def test_dropout_reaches_the_classifier():
    assert create_model("mobilenetv2_tv_x1", dropout=0.5).classifier[0].p == 0.5
