import pytest
import torch

from edgeailite.models.segmentation.encoder import ENCODERS, Encoder


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("output_stride", [32, 16])
def test_features_have_the_strides_and_channels_that_are_stated(name, output_stride):
    encoder = Encoder(ENCODERS[name], output_stride).eval()
    with torch.no_grad():
        features = encoder(torch.zeros(1, 3, 64, 96))
    strides = (2, 4, 8, 16, output_stride)
    assert [f.shape[1] for f in features] == list(encoder.channels)
    assert [f.shape[2:] for f in features] == [(64 // s, 96 // s) for s in strides]


def test_encoder_is_in_training_mode_with_fresh_statistics():
    encoder = Encoder(ENCODERS["mobilenetv2_tv"])
    assert all(module.training for module in encoder.modules())
    assert not encoder.features[0][1].running_mean.any()
