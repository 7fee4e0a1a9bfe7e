import numpy as np
import pytest
import torch
from PIL import Image

from edgeailite.datasets import IGNORED, Labels, PairedFiles, UnreadableImageError
from edgeailite.datasets.segmentation import voc_palette

LABELS = Labels(["a", "b"], [(1, 2, 3), (4, 5, 6)], {0: IGNORED, 7: 0, 9: 1})


def _write(folder, name, target, size=(4, 3)):
    Image.new("RGB", size, (10, 20, 30)).save(folder / f"{name}.png")
    Image.fromarray(np.asarray(target, np.uint8)).save(folder / f"{name}_target.png")
    return folder / f"{name}.png", folder / f"{name}_target.png"


@pytest.fixture
def pair(tmp_path):
    return _write(tmp_path, "x", [[0, 7, 9, 9], [0, 0, 0, 7], [9, 9, 9, 9]])


def test_labels_become_class_indices(pair):
    dataset = PairedFiles("set", [pair], LABELS)
    image, target = dataset[0]
    assert (len(dataset), dataset.classes, image.size) == (1, ["a", "b"], (4, 3))
    assert target.dtype == torch.uint8
    assert target.tolist() == [[[255, 0, 1, 1], [255, 255, 255, 0], [1, 1, 1, 1]]]


def test_transform_gets_image_and_target_together(pair):
    dataset = PairedFiles("set", [pair], LABELS, lambda image, target: (image.size, target.shape))
    assert dataset[0] == ((4, 3), (1, 3, 4))


def test_image_without_target(pair, tmp_path):
    other = (pair[0], tmp_path / "missing.png")
    with pytest.raises(
        FileNotFoundError, match=r"1 of 2 images have no target; .*x\.png' needs .*missing\.png'"
    ):
        PairedFiles("set", [pair, other], LABELS)


def test_unknown_label_at_the_start(tmp_path):
    wrong = _write(tmp_path, "wrong", [[7, 8, 8, 200], [7] * 4, [7] * 4])
    message = r"wrong_target\.png' has labels that set does not know: 8 \(2 pixels\), 200 \(1 pixel"
    with pytest.raises(ValueError, match=message):
        PairedFiles("set", [wrong], LABELS)
    with pytest.raises(ValueError, match="It knows 0, 7, 9"):
        PairedFiles("set", [wrong], LABELS)


def test_unknown_label_that_the_start_did_not_look_at(pair, tmp_path):
    wrong = _write(tmp_path, "wrong", np.full((3, 4), 8))
    pairs = [pair] * 40
    pairs[1] = wrong
    dataset = PairedFiles("set", pairs, LABELS)
    with pytest.raises(ValueError, match="labels that set does not know: 8"):
        dataset[1]


def test_image_and_target_of_different_sizes(tmp_path):
    wrong = _write(tmp_path, "w", np.full((3, 5), 7))
    message = r"w\.png' is 3x4 \(height x width\), its target '.*w_target\.png' 3x5"
    with pytest.raises(ValueError, match=message):
        PairedFiles("set", [wrong], LABELS)


def test_colours_instead_of_labels(tmp_path):
    image, target = _write(tmp_path, "c", np.full((3, 4), 7))
    Image.new("RGB", (4, 3)).save(target)
    with pytest.raises(ValueError, match="picture of mode RGB, not one byte per pixel"):
        PairedFiles("set", [(image, target)], LABELS)


def test_palette_files_give_their_indices(tmp_path):
    image, target = _write(tmp_path, "p", np.full((3, 4), 7))
    palette = Image.fromarray(np.full((3, 4), 9, np.uint8), mode="L").convert("P")
    palette.putpalette(list(range(256)) * 3)
    palette.putdata([9] * 12)
    palette.save(target)
    _, labels = PairedFiles("set", [(image, target)], LABELS)[0]
    assert labels.unique().tolist() == [1]


@pytest.mark.parametrize("broken", [0, 1])
def test_unreadable_files(pair, broken, caplog):
    pair[broken].write_bytes(b"no picture")
    with pytest.raises(UnreadableImageError, match=pair[broken].name):
        PairedFiles("set", [pair], LABELS)
    dataset = PairedFiles("set", [pair], LABELS, skip_unreadable_images=True)
    assert dataset[0] is None
    assert pair[broken].name in caplog.text


def test_voc_palette_has_distinct_colours_beginning_with_black():
    palette = voc_palette(151)
    assert palette[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert palette[20] == (0, 64, 128)
    assert len(set(palette)) == 151
