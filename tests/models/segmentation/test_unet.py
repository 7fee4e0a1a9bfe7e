import torch

from edgeailite.models.segmentation import UNetDecoder


def test_every_stride_is_joined():
    channels = (4, 6, 8, 40, 12)
    decoder = UNetDecoder(channels, 3, group_width=1).eval()
    sides = (32, 16, 8, 4, 2)
    features = [torch.randn(1, c, s, s) for c, s in zip(channels, sides, strict=True)]
    expected = decoder(features)
    assert expected.shape == (1, 3, 64, 64)
    for index in range(5):
        changed = list(features)
        changed[index] = changed[index] + 1.0
        assert not torch.equal(decoder(changed), expected)


def test_levels_are_as_wide_as_the_features_but_32_at_least():
    decoder = UNetDecoder((16, 24, 32, 96, 320), 3, group_width=1)
    assert [level.mix[1][0].out_channels for level in decoder.levels] == [96, 32, 32, 32]


def test_groups_divide_the_joined_channels():
    decoder = UNetDecoder((32, 72, 168, 408, 912), 3, group_width=16)
    assert [level.mix[0][0].in_channels % 8 for level in decoder.levels] == [0] * 4
    assert decoder.levels[0].mix[0][0].groups == (256 + 408) // 8
