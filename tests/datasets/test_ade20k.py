import numpy as np
import pytest
from PIL import Image

from edgeailite.datasets import create_dataset

TABLE = "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t1\t1\twall\n2\t0.1\t1\t1\tbuilding, edifice\n"


@pytest.fixture
def root(tmp_path):
    for split in ("training", "validation"):
        for kind in ("images", "annotations"):
            (tmp_path / kind / split).mkdir(parents=True)
        Image.new("RGB", (3, 2)).save(tmp_path / "images" / split / "x.jpg")
        labels = Image.fromarray(np.array([[0, 1, 2]] * 2, np.uint8))
        labels.save(tmp_path / "annotations" / split / "x.png")
    (tmp_path / "objectInfo150.txt").write_text(TABLE)
    return tmp_path


def test_classes_come_from_the_table_and_0_is_ignored(root):
    dataset = create_dataset("ade20k_segmentation", root, "val")
    assert dataset.classes == ["wall", "building"]
    assert dataset[0][1][0, 0].tolist() == [255, 0, 1]
    assert (0, 0, 0) not in dataset.labels.palette


def test_label_beyond_the_table(root):
    Image.fromarray(np.full((2, 3), 3, np.uint8)).save(root / "annotations/training/x.png")
    with pytest.raises(ValueError, match=r"does not know: 3 \(6 pixels\)"):
        create_dataset("ade20k_segmentation", root, "train")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("objectInfo150.txt", "names the classes"),
        ("images/training/x.jpg", "holds no .jpg"),
        ("annotations/training/x.png", "1 of 1 images have no target"),
    ],
)
def test_missing_files(root, missing, message):
    (root / missing).unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        create_dataset("ade20k_segmentation", root, "train")


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images/training.*annotations"):
        create_dataset("ade20k_segmentation", tmp_path, "train")
