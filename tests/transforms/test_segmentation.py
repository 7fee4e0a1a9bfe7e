import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from edgeailite.transforms import segmentation_eval_transform, segmentation_train_transform

PLAIN = {"image_mean": (0.0, 0.0, 0.0), "image_scale": (1.0, 1.0, 1.0)}


@pytest.fixture
def pair():
    """The label is the tens of the red channel: where one goes, the other must follow."""
    labels = np.repeat(np.repeat(np.arange(12, dtype=np.uint8).reshape(3, 4), 10, 0), 10, 1)
    pixels = np.stack([labels * 10 + 5, np.full_like(labels, 50), np.full_like(labels, 90)], -1)
    return Image.fromarray(pixels), tv_tensors.Mask(torch.from_numpy(labels)[None])


def _train(**changes):
    options = {"img_resize": (30, 40), "img_crop": (24, 32), "rand_scale": (1.0, 1.0)}
    return segmentation_train_transform(**(options | PLAIN | changes))


def _agreement(image, target):
    inside = target != 255
    return ((image[0][inside] // 10) == target[inside]).float().mean().item()


@pytest.mark.parametrize(
    "changes",
    [{}, {"rand_crop": False}, {"rand_scale": (0.5, 2.0)}, {"rand_rotation": 20.0}],
    ids=["crop", "centre", "scale", "rotation"],
)
def test_labels_follow_the_pixels(pair, changes):
    transform = _train(**changes)
    for seed in range(8):
        torch.manual_seed(seed)
        image, target = transform(*pair)
        assert (image.shape, target.shape) == ((3, 24, 32), (24, 32))
        assert (image.dtype, target.dtype) == (torch.float32, torch.uint8)
        assert type(image) is type(target) is torch.Tensor
        assert set(target.unique().tolist()) <= {*range(12), 255}
        assert _agreement(image, target) > 0.7


def test_flip_mirrors_half_of_the_images(pair):
    transform = _train(img_crop=(30, 40))
    firsts = []
    for seed in range(60):
        torch.manual_seed(seed)
        image, target = transform(*pair)
        assert _agreement(image, target) == 1.0
        firsts.append(int(target[0, 0]))
    assert set(firsts) == {0, 3}
    assert 15 < firsts.count(3) < 45
    torch.manual_seed(0)
    assert {int(_train(img_crop=(30, 40), rand_flip=False)(*pair)[1][0, 0])} == {0}


def test_outside_is_the_mean_colour_and_ignored(pair):
    options = {"rand_scale": (0.5, 0.5), "image_mean": (1.0, 2.0, 3.0)}
    for more in ({}, {"rand_crop": False}, {"input_channel_reverse": True}):
        image, target = _train(**options, **more)(*pair)
        outside = target == 255
        assert 0.1 < outside.float().mean() < 0.9
        assert image[:, outside].abs().max() == 0.0


def test_evaluation_keeps_the_target_or_resizes_it(pair):
    image, target = segmentation_eval_transform(img_resize=(15, 20), **PLAIN)(*pair)
    assert (image.shape, target.shape) == ((3, 15, 20), (30, 40))
    transform = segmentation_eval_transform(img_resize=(15,), output_size=(60, 80), **PLAIN)
    image, target = transform(*pair)
    assert (image.shape, target.shape) == ((3, 15, 15), (60, 80))
    assert torch.equal(target[::2, ::2], pair[1][0])


def test_normalization_and_channel_order(pair):
    transform = segmentation_eval_transform(
        img_resize=(30, 40), image_mean=(90.0, 0.0, 5.0), image_scale=(1.0, 2.0, 0.5),
        input_channel_reverse=True,
    )  # fmt: skip
    image, _ = transform(*pair)
    assert image[:, 0, 0].tolist() == [0.0, 100.0, 0.0]


@pytest.mark.parametrize("name", ["img_resize", "img_crop"])
def test_wrong_size(name):
    with pytest.raises(ValueError, match="one or two numbers"):
        _train(**{name: (1, 2, 3)})
