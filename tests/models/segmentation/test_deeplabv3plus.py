import torch

from edgeailite.models.segmentation import DeepLabV3PlusDecoder


def _features(channels, last):
    sides = (32, 16, 8, 4, last)
    return [torch.randn(1, c, s, s) for c, s in zip(channels, sides, strict=True)]


def test_only_the_features_of_strides_4_and_16_matter():
    channels = (4, 6, 8, 10, 12)
    decoder = DeepLabV3PlusDecoder(channels, 3, group_width=1).eval()
    features = _features(channels, 4)
    expected = decoder(features)
    assert expected.shape == (1, 3, 64, 64)
    for index, matters in enumerate((False, True, False, False, True)):
        changed = list(features)
        changed[index] = changed[index] + 1.0
        assert torch.equal(decoder(changed), expected) != matters


def test_group_width_reaches_every_3x3_convolution():
    decoder = DeepLabV3PlusDecoder((16, 32, 48, 64, 80), 3, group_width=16)
    spatial = [m for m in decoder.modules() if getattr(m, "kernel_size", None) == (3, 3)]
    assert len(spatial) == 4
    assert {m.in_channels // m.groups for m in spatial} == {16}
