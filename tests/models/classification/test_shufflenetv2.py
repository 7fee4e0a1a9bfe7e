import pytest
import torch
from torch import nn

from edgeailite.models import create_model
from edgeailite.models.classification.shufflenetv2 import ShuffleUnit


def test_half_of_the_channels_pass_a_unit_untouched():
    unit = ShuffleUnit(8, 8, 1, nn.ReLU).eval()
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(unit(x)[:, ::2], x[:, :4])


def test_a_width_that_is_not_defined_is_refused():
    with pytest.raises(ValueError, match=r"width_mult is 0\.75; ShuffleNetV2 is defined for 0\.5"):
        create_model("shufflenetv2_x0p75")
