import numpy as np
import pytest
from PIL import Image

from edgeailite.datasets import create_dataset
from edgeailite.datasets.cityscapes import CITYSCAPES


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val"):
        for folder in ("leftImg8bit", "gtFine"):
            (tmp_path / folder / split / "ulm").mkdir(parents=True)
        Image.new("RGB", (6, 4)).save(tmp_path / f"leftImg8bit/{split}/ulm/a_leftImg8bit.png")
        labels = np.arange(24, dtype=np.uint8).reshape(4, 6) + 10
        labels[0, 0] = 255
        target = tmp_path / f"gtFine/{split}/ulm/a_gtFine_labelIds.png"
        Image.fromarray(labels).save(target)
    return tmp_path


def test_label_numbers_of_the_19_classes(root):
    dataset = create_dataset("cityscapes_segmentation", root, "val")
    _, target = dataset[0]
    flat = target.flatten().tolist()
    assert flat[0] == 255
    expected = {11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 28: 15, 31: 16, 32: 17, 33: 18}
    assert {label: flat[label - 10] for label in expected} == expected
    assert [flat[label - 10] for label in (14, 15, 16, 18, 29, 30)] == [255] * 6


def test_classes_palette_and_weights_belong_together():
    assert len(CITYSCAPES.classes) == len(CITYSCAPES.palette) == len(CITYSCAPES.weights) == 19
    assert CITYSCAPES.classes[13] == "car"
    assert CITYSCAPES.palette[13] == (0, 0, 142)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No folder '.*leftImg8bit/train'.*gtFine"):
        create_dataset("cityscapes_segmentation", tmp_path, "train")


def test_empty_folder(root):
    (root / "leftImg8bit/val/ulm/a_leftImg8bit.png").unlink()
    with pytest.raises(ValueError, match="holds no images"):
        create_dataset("cityscapes_segmentation", root, "val")


def test_missing_target(root):
    (root / "gtFine/train/ulm/a_gtFine_labelIds.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images have no target.*a_leftImg8bit"):
        create_dataset("cityscapes_segmentation", root, "train")


def test_wrong_labels(root):
    target = root / "gtFine/val/ulm/a_gtFine_labelIds.png"
    Image.fromarray(np.full((4, 6), 34, np.uint8)).save(target)
    with pytest.raises(ValueError, match=r"does not know: 34 \(24 pixels\).*0 to 33, 255"):
        create_dataset("cityscapes_segmentation", root, "val")
