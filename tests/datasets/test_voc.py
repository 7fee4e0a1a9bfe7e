import numpy as np
import pytest
from PIL import Image

from edgeailite.datasets import create_dataset


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for name in ("one", "two"):
        Image.new("RGB", (5, 4)).save(folder / "JPEGImages" / f"{name}.jpg")
        labels = Image.fromarray(np.array([[0, 20, 255, 3, 3]] * 4, np.uint8))
        labels.save(folder / "SegmentationClass" / f"{name}.png")
    (folder / "ImageSets/Segmentation/train.txt").write_text("one\ntwo\n")
    (folder / "ImageSets/Segmentation/val.txt").write_text("")
    return tmp_path


@pytest.mark.parametrize("inside", ["", "VOCdevkit/VOC2012"])
def test_listed_images_with_21_classes(root, inside):
    dataset = create_dataset("voc_segmentation", root / inside, "train")
    assert (len(dataset), len(dataset.classes)) == (2, 21)
    assert dataset[1][1][0, 0].tolist() == [0, 20, 255, 3, 3]


def test_missing_or_empty_list(root):
    with pytest.raises(ValueError, match=r"val\.txt' lists no images"):
        create_dataset("voc_segmentation", root, "val")
    with pytest.raises(FileNotFoundError, match=r"No list of images.*JPEGImages"):
        create_dataset("voc_segmentation", root / "VOCdevkit", "train")
