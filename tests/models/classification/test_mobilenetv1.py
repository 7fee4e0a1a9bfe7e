from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeailite.models import create_model
from edgeailite.xnn.utils import is_dwconv, load_weights

CHECKPOINT = Path(__file__).parents[4] / "shared/data/imagenet_samples/mobilenet_v1_025.pth"


def test_depthwise_and_pointwise_alternate_after_the_stem():
    model = create_model("mobilenetv1_x0p25", num_classes=3)
    convs = [block[0] for block in model.features]
    assert len(convs) == 27
    assert [is_dwconv(conv) for conv in convs] == [False] + [True, False] * 13
    assert [convs[0].out_channels, convs[-1].out_channels] == [8, 256]


def test_normalization_and_activation_reach_every_block():
    norm_layer = partial(nn.BatchNorm2d, eps=1e-3)
    model = create_model("mobilenetv1_x0p25", norm_layer=norm_layer, activation=nn.ReLU6)
    assert {block[1].eps for block in model.features} == {1e-3}
    assert {type(block[2]) for block in model.features} == {nn.ReLU6}


@pytest.mark.skipif(not CHECKPOINT.is_file(), reason="needs the development data")
def test_public_checkpoint_loads():
    model = create_model("mobilenetv1_x0p25", activation=nn.ReLU6)
    assert load_weights(model, CHECKPOINT, strict=True, verbose=False).complete
    assert torch.isfinite(model.eval()(torch.randn(1, 3, 224, 224))).all()
