import numpy as np
import pytest
from PIL import Image

from data.make_digits import is_complete, make_digits, to_rgb_image


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return make_digits(tmp_path_factory.mktemp("digits") / "digits")


def _files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def test_to_rgb_image_covers_the_full_range():
    grey = np.zeros((8, 8))
    grey[:, 4:] = 16
    levels = np.asarray(to_rgb_image(grey))
    assert levels.shape == (32, 32, 3)
    assert levels[0, 0].tolist() == [0, 0, 0]
    assert levels[0, -1].tolist() == [255, 255, 255]


def test_make_digits_splits_every_class(digits):
    assert is_complete(digits)
    for split, share in (("train", 1437), ("val", 360)):
        classes = sorted((digits / split).iterdir())
        assert [folder.name for folder in classes] == [str(digit) for digit in range(10)]
        counts = [len(list(folder.glob("*.png"))) for folder in classes]
        assert sum(counts) == share
        assert max(counts) - min(counts) <= 0.06 * share / 10 + 2


def test_make_digits_writes_rgb_images_of_32_pixels(digits):
    with Image.open(next((digits / "val" / "3").iterdir())) as image:
        assert (image.mode, image.size) == ("RGB", (32, 32))


def test_make_digits_no_image_is_in_both_splits(digits):
    train = {path.name for path in (digits / "train").rglob("*.png")}
    val = {path.name for path in (digits / "val").rglob("*.png")}
    assert not train & val
    assert len(train | val) == 1797


def test_make_digits_is_deterministic_and_replaces_an_incomplete_folder(digits, tmp_path):
    output = tmp_path / "digits"
    (output / "train" / "0").mkdir(parents=True)
    (output / "train" / "0" / "stray.png").write_bytes(b"")
    make_digits(output)
    assert _files(output) == _files(digits)
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_make_digits_keeps_a_complete_folder(digits):
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    make_digits(digits)
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before


def test_make_digits_interrupted_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(grey):
        raise KeyboardInterrupt

    monkeypatch.setattr("data.make_digits.to_rgb_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_digits(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []
