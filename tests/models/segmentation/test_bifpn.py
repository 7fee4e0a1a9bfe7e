import torch

from edgeailite.models.segmentation import BiFPNDecoder


def test_every_stride_but_the_first_is_exchanged():
    channels = (4, 6, 8, 10, 12)
    decoder = BiFPNDecoder(channels, 3, group_width=1).eval()
    sides = (32, 16, 8, 4, 2)
    features = [torch.randn(1, c, s, s) for c, s in zip(channels, sides, strict=True)]
    expected = decoder(features)
    assert expected.shape == (1, 3, 64, 64)
    for index in range(5):
        changed = list(features)
        changed[index] = changed[index] + 1.0
        assert torch.equal(decoder(changed), expected) == (index == 0)


def test_nothing_is_computed_in_vain():
    decoder = BiFPNDecoder((4, 6, 8, 10, 12), 3, group_width=1)
    sides = (32, 16, 8, 4, 2)
    channels = (4, 6, 8, 10, 12)
    features = [torch.randn(2, c, s, s) for c, s in zip(channels, sides, strict=True)]
    decoder(features).sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    assert (len(decoder.down), len(decoder.up)) == (4, 3)
