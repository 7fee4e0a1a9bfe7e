import pytest
from torch import nn

from edgeailite.models import create_model
from edgeailite.models.classification.mobilenetv3 import MobileNetV3, SqueezeExcitation


@pytest.mark.parametrize("size", ["small", "large"])
def test_lite_has_what_integer_hardware_computes(size):
    kinds = {type(m) for m in create_model(f"mobilenetv3_lite_{size}_x1").modules()}
    assert not kinds & {SqueezeExcitation, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid}
    assert nn.ReLU in kinds
    original = {type(m) for m in create_model(f"mobilenetv3_{size}_x1").modules()}
    assert {SqueezeExcitation, nn.Hardswish, nn.Hardsigmoid} <= original


def test_an_unknown_size_is_refused():
    with pytest.raises(ValueError, match="size is 'medium'; allowed: 'large', 'small'"):
        MobileNetV3("medium", False)
