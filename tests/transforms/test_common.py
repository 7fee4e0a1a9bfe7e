import pytest
import torch

from edgeailite.transforms.common import NormalizeMeanScale, ReverseChannels, size_2d


def test_normalize_mean_scale():
    x = torch.full((2, 1, 1), 10, dtype=torch.uint8)
    y = NormalizeMeanScale((4.0, 0.0), (0.5, 2.0))(x)
    assert y.dtype == torch.float32
    assert y.flatten().tolist() == [3.0, 20.0]


def test_normalize_mean_scale_lengths_differ():
    with pytest.raises(ValueError, match=r"image_mean has 3 values and image_scale 1"):
        NormalizeMeanScale((0.0, 0.0, 0.0), (1.0,))


def test_reverse_channels():
    x = torch.arange(3.0).reshape(3, 1, 1)
    assert ReverseChannels()(x).flatten().tolist() == [2.0, 1.0, 0.0]


def test_size_2d():
    assert size_2d([5]) == (5, 5)
    assert size_2d((3, 4)) == (3, 4)
    with pytest.raises(ValueError, match="one or two numbers"):
        size_2d((1, 2, 3))
