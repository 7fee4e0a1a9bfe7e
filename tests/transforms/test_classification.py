import numpy as np
import pytest
import torch
from PIL import Image

from edgeailite.transforms import (
    AUTO_AUGMENT_POLICIES,
    classification_eval_transform,
    classification_train_transform,
)

PLAIN = {"image_mean": (0.0, 0.0, 0.0), "image_scale": (1.0, 1.0, 1.0)}


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _train(**changes):
    options = {"img_resize": (32,), "img_crop": (32,), "rand_flip": False} | PLAIN | changes
    return classification_train_transform(**options)


def test_eval_transform_of_an_image_of_the_right_size_keeps_its_pixels(image):
    transform = classification_eval_transform(img_resize=(40, 60), img_crop=(40, 60), **PLAIN)
    expected = np.asarray(image).transpose(2, 0, 1).astype(np.float32)
    assert np.array_equal(transform(image).numpy(), expected)


def test_eval_transform_normalizes_after_reversing(image):
    transform = classification_eval_transform(
        img_resize=(40, 60),
        img_crop=(40, 60),
        image_mean=(1.0, 2.0, 3.0),
        image_scale=(1.0, 0.5, 0.25),
        input_channel_reverse=True,
    )
    blue, green, red = np.asarray(image).astype(np.float32).transpose(2, 0, 1)[::-1]
    expected = np.stack([blue - 1, (green - 2) / 2, (red - 3) / 4])
    assert np.array_equal(transform(image).numpy(), expected)


@pytest.mark.parametrize(
    ("img_resize", "img_crop", "shape"),
    [((32,), (32,), (32, 32)), ((256,), (224,), (224, 224)), ((48, 96), (24, 80), (24, 80))],
)
def test_sizes(image, img_resize, img_crop, shape):
    sizes = {"img_resize": img_resize, "img_crop": img_crop}
    assert classification_eval_transform(**sizes, **PLAIN)(image).shape == (3, *shape)
    assert _train(**sizes)(image).shape == (3, *shape)
    assert _train(**sizes, rand_crop=False)(image).shape == (3, *shape)


def test_size_of_three_numbers():
    with pytest.raises(ValueError, match=r"one or two numbers .* got \[1, 2, 3\]"):
        classification_eval_transform(img_resize=(1, 2, 3), img_crop=(8,), **PLAIN)


def test_train_transform_without_randomness_equals_eval(image):
    expected = classification_eval_transform(img_resize=(36,), img_crop=(32,), **PLAIN)(image)
    assert torch.equal(_train(img_resize=(36,), rand_crop=False)(image), expected)


def test_train_transform_random_crop_follows_the_seed(image):
    transform = _train()
    views = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        views.append(transform(image))
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_train_transform_rand_scale_one_keeps_nearly_all_of_the_image(image):
    corner = np.zeros((40, 40, 3), dtype=np.uint8)
    corner[:2, :2] = 255
    views = [_train(rand_scale=(1.0, 1.0))(Image.fromarray(corner)) for _ in range(20)]
    assert all(view.shape == (3, 32, 32) for view in views)
    small = [_train(rand_scale=(0.05, 0.06))(Image.fromarray(corner)) for _ in range(20)]
    assert sum(v.max().item() > 0 for v in views) > sum(v.max().item() > 0 for v in small)


def test_train_transform_flips_about_half(image):
    transform = _train(rand_crop=False, rand_flip=True)
    plain = _train(rand_crop=False)(image)
    flipped = [torch.equal(transform(image), plain.flip(-1)) for _ in range(64)]
    assert 10 < sum(flipped) < 54


@pytest.mark.parametrize("policy", sorted(AUTO_AUGMENT_POLICIES))
def test_train_transform_auto_augment_changes_images(image, policy):
    torch.manual_seed(0)
    plain = _train(rand_crop=False)(image)
    transform = _train(rand_crop=False, auto_augment=policy)
    assert any(not torch.equal(transform(image), plain) for _ in range(8))


def test_train_transform_unknown_policy():
    with pytest.raises(ValueError, match=r"Unknown augmentation 'best'\. Available: imagenet"):
        _train(auto_augment="best")


def test_train_transform_random_erasing_blanks_a_part():
    white = Image.new("RGB", (32, 32), (255, 255, 255))
    view = _train(rand_crop=False, random_erasing=1.0)(white)
    assert 0 < (view == 0).sum() < view.numel()
