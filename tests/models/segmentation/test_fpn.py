import torch

from edgeailite.models.segmentation import FPNDecoder


def test_every_stride_but_the_first_is_added():
    channels = (4, 6, 8, 10, 12)
    decoder = FPNDecoder(channels, 3, group_width=1).eval()
    sides = (32, 16, 8, 4, 2)
    features = [torch.randn(1, c, s, s) for c, s in zip(channels, sides, strict=True)]
    expected = decoder(features)
    assert expected.shape == (1, 3, 64, 64)
    for index in range(5):
        changed = list(features)
        changed[index] = changed[index] + 1.0
        assert torch.equal(decoder(changed), expected) == (index == 0)
