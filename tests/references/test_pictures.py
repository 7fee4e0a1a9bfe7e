import torch

from edgeailite.datasets.cityscapes import CITYSCAPES
from references.edgeailite.engine import pictures
from references.edgeailite.engine.options_segmentation import SegmentationOptions


def test_to_photo_undoes_the_normalization():
    pixels = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    for reverse in (False, True):
        options = SegmentationOptions(input_channel_reverse=reverse)
        mean = torch.tensor(options.image_mean).reshape(3, 1, 1)
        scale = torch.tensor(options.image_scale).reshape(3, 1, 1)
        seen = pixels.flip(0) if reverse else pixels
        assert torch.equal(pictures.to_photo((seen - mean) * scale, options), pixels)


def test_colours_of_labels():
    labels = torch.tensor([[0, 13, 255]], dtype=torch.uint8)
    colours = pictures.colorize(labels, CITYSCAPES.palette)
    assert colours[:, 0].T.tolist() == [[128, 64, 128], [0, 0, 142], [0, 0, 0]]
    photo = torch.full((3, 1, 3), 100, dtype=torch.uint8)
    assert pictures.blend(photo, labels, CITYSCAPES.palette)[:, 0, 2].tolist() == [40, 40, 40]


def test_resized_labels_are_labels():
    labels = torch.tensor([[0, 255], [7, 3]], dtype=torch.uint8)
    resized = pictures.resize_labels(labels, (4, 6))
    assert (resized.shape, resized.dtype) == ((4, 6), torch.uint8)
    assert resized[0].tolist() == [0, 0, 0, 255, 255, 255]


def test_comparison_is_one_picture(tmp_path):
    photo = torch.zeros(3, 16, 32, dtype=torch.uint8)
    label_map = torch.zeros(16, 32, dtype=torch.long)
    samples = [(photo, label_map, label_map, label_map + 1)] * 2
    pictures.write_comparison(tmp_path / "p.png", samples, CITYSCAPES)
    picture = pictures.read(tmp_path / "p.png")
    assert picture.dtype == torch.uint8
    assert picture.shape[0] == 3
    assert picture.shape[2] > picture.shape[1] > 100
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]
