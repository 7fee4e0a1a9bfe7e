import logging
import shutil

import pytest
from PIL import Image

from edgeailite.datasets import UnreadableImageError, create_dataset

NAME = "image_folder_classification"


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "val"):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(2):
                colour = (100 * number, index, 7)
                Image.new("RGB", (5, 4), colour).save(tmp_path / split / name / f"{index}.png")
    return tmp_path


def test_image_folder_lists_images_by_class(folder):
    dataset = create_dataset(NAME, folder, "train")
    assert dataset.classes == ["cat", "dog"]
    assert [target for _, target in (dataset[i] for i in range(len(dataset)))] == [0, 0, 1, 1]
    assert dataset[3][0].getpixel((0, 0)) == (100, 1, 7)


def test_image_folder_applies_the_transform(folder):
    dataset = create_dataset(NAME, folder, "val", lambda image: image.size)
    assert dataset[2] == ((5, 4), 1)


def test_image_folder_finds_validation(folder):
    (folder / "val").rename(folder / "validation")
    assert len(create_dataset(NAME, folder, "val")) == 4


def test_image_folder_turns_grey_into_rgb(folder):
    Image.new("L", (5, 4), 9).save(folder / "train" / "cat" / "0.png")
    assert create_dataset(NAME, folder, "train")[0][0].getpixel((0, 0)) == (9, 9, 9)


def test_image_folder_ignores_files_that_are_no_images(folder):
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    (folder / "train" / ".hidden").mkdir()
    assert len(create_dataset(NAME, folder, "train")) == 4


def test_image_folder_missing_root(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere' does not exist.*--data_path"):
        create_dataset(NAME, tmp_path / "nowhere", "train")


def test_image_folder_no_validation_set(folder):
    shutil.rmtree(folder / "val")
    with pytest.raises(FileNotFoundError, match=r"No validation set: looked for .*val.*, found t"):
        create_dataset(NAME, folder, "val")


def test_image_folder_no_training_set(folder):
    shutil.rmtree(folder / "train")
    with pytest.raises(FileNotFoundError, match=r"No training set"):
        create_dataset(NAME, folder, "train")


def test_image_folder_no_class_folders(folder):
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    with pytest.raises(ValueError, match=r"holds no class folders"):
        create_dataset(NAME, folder, "train")


def test_image_folder_empty_class_folder(folder):
    for path in (folder / "train" / "dog").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"Class folder '.*dog' holds no images"):
        create_dataset(NAME, folder, "train")


@pytest.mark.parametrize("split", ["train", "val"])
def test_image_folder_classes_differ(folder, split):
    (folder / "val" / "dog").rename(folder / "val" / "bird")
    with pytest.raises(ValueError, match=r"different classes: 2 are only in one.*\(bird, dog\)"):
        create_dataset(NAME, folder, split)


@pytest.mark.parametrize("content", [b"", b"no image at all", "truncated"])
def test_image_folder_unreadable_image_is_named(folder, content):
    path = folder / "train" / "cat" / "1.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "truncated" else content)
    dataset = create_dataset(NAME, folder, "train")
    with pytest.raises(UnreadableImageError, match=r"1\.png.*--skip_unreadable_images True"):
        dataset[1]


def test_image_folder_unreadable_image_is_skipped_on_request(folder, caplog):
    (folder / "train" / "cat" / "1.png").write_bytes(b"no image")
    dataset = create_dataset(NAME, folder, "train", skip_unreadable_images=True)
    with caplog.at_level(logging.WARNING):
        assert dataset[1] is None
    assert "1.png" in caplog.text
    assert dataset[2] is not None


def test_imagenet_needs_1000_classes(folder):
    with pytest.raises(ValueError, match=r"1000 classes, '.*' holds 2 class folders"):
        create_dataset("imagenet_classification", folder, "train")


def test_imagenet_with_1000_classes(tmp_path):
    for split in ("train", "val"):
        for number in range(1000):
            (tmp_path / split / f"n{number:04d}").mkdir(parents=True)
            (tmp_path / split / f"n{number:04d}" / "0.png").write_bytes(b"")
    assert len(create_dataset("imagenet_classification", tmp_path, "val").classes) == 1000
