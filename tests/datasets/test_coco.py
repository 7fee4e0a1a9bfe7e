import json

import pytest
from PIL import Image

from edgeailite.datasets import create_dataset

pytest.importorskip("pycocotools")
# Its compiled part has no answer to a question that NumPy asks since version 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CAR, DOG, KITE = 3, 18, 38


def _square(image, category, x, side, number, **more):
    corners = [x, 0, x + side, 0, x + side, side, x, side]
    return {
        "id": number, "image_id": image, "category_id": category, "segmentation": [corners],
        "area": side * side, "bbox": [x, 0, side, side], "iscrowd": 0, **more,
    }  # fmt: skip


@pytest.fixture
def root(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 4, "width": 8} for i in (1, 2, 3)]
    for image in images:
        Image.new("RGB", (8, 4)).save(tmp_path / "val2017" / image["file_name"])
    crowd = {"counts": [28, 4], "size": [4, 8]}
    annotations = [
        _square(1, CAR, 0, 4, 1),
        _square(1, DOG, 2, 4, 2),
        _square(2, KITE, 0, 4, 3),
        _square(3, KITE, 0, 4, 4),
        _square(3, DOG, 0, 2, 5),
        {**_square(3, CAR, 7, 1, 6), "segmentation": crowd, "iscrowd": 1},
    ]
    content = {"images": images, "annotations": annotations, "categories": []}
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(content))
    return tmp_path


def test_images_with_one_of_the_20_kinds(root):
    dataset = create_dataset("coco_seg21", root, "val")
    assert dataset.ids == [1, 3]
    assert len(dataset.classes) == 21


def test_overlaps_and_crowds_are_ignored(root):
    dataset = create_dataset("coco_seg21", root, "val")
    car, dog = dataset.classes.index("car"), dataset.classes.index("dog")
    assert dataset[0][1][0, 1].tolist() == [car, car, 255, 255, dog, dog, 0, 0]
    assert dataset[1][1][0, 1].tolist() == [dog, dog, 0, 0, 0, 0, 0, 255]


def test_missing_annotations(root):
    with pytest.raises(FileNotFoundError, match=r"instances_train2017\.json"):
        create_dataset("coco_seg21", root, "train")


def test_nothing_to_learn(root):
    path = root / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][2:3]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="no object of the 20 kinds"):
        create_dataset("coco_seg21", root, "val")
