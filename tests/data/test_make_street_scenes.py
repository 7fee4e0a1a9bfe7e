import dataclasses

import numpy as np
import pytest

from data import make_street_scenes as scenes
from data.make_street_scenes import Settings, make_street_scenes, render_scene
from edgeailite.datasets import create_dataset

SMALL = Settings(num_train=3, num_val=2, width=96, height=48)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_street_scenes(tmp_path_factory.mktemp("scenes") / "scenes", SMALL)


def _files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.*")}


def test_folder_is_read_as_cityscapes(folder):
    for split, count in (("train", 3), ("val", 2)):
        dataset = create_dataset("cityscapes_segmentation", folder, split)
        assert len(dataset) == count
        image, target = dataset[0]
        assert (image.mode, image.size, tuple(target.shape)) == ("RGB", (96, 48), (1, 48, 96))


def test_all_kinds_of_things_occur_and_nothing_is_unlabeled():
    counts = np.zeros(256, int)
    for index in range(12):
        _, labels = render_scene(Settings(width=192, height=96), "train", index)
        counts += np.bincount(labels.ravel(), minlength=256)
    wanted = [scenes.ROAD, scenes.SIDEWALK, scenes.BUILDING, scenes.POLE, scenes.SIGN]
    wanted += [scenes.VEGETATION, scenes.TERRAIN, scenes.SKY, scenes.PERSON, scenes.CAR]
    assert sorted(np.flatnonzero(counts).tolist()) == sorted(wanted)
    assert counts[scenes.ROAD] > counts[scenes.PERSON] > 0


def test_scene_depends_on_seed_split_and_index_alone():
    image, labels = render_scene(SMALL, "train", 1)
    again = render_scene(SMALL, "train", 1)
    assert np.array_equal(image, again[0])
    assert np.array_equal(labels, again[1])
    others = [
        render_scene(SMALL, "val", 1),
        render_scene(SMALL, "train", 2),
        render_scene(dataclasses.replace(SMALL, seed=1), "train", 1),
    ]
    assert not any(np.array_equal(image, other[0]) for other in others)


def test_same_settings_keep_the_folder_and_others_replace_it(tmp_path):
    output = make_street_scenes(tmp_path / "s", Settings(1, 1, 32, 16))
    before = _files(output)
    time = next(output.rglob("*.png")).stat().st_mtime_ns
    make_street_scenes(output, Settings(1, 1, 32, 16))
    assert next(output.rglob("*.png")).stat().st_mtime_ns == time
    make_street_scenes(output, Settings(2, 1, 32, 16))
    after = _files(output)
    assert len(after) == len(before) + 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]


def test_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "real.png").write_bytes(b"precious")
    with pytest.raises(ValueError, match="holds files that this script did not make"):
        make_street_scenes(tmp_path, SMALL)
    assert _files(tmp_path) == {"real.png": b"precious"}


def test_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(scenes, "render_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_street_scenes(tmp_path / "s", SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"num_val": 0}, {"width": 8}])
def test_nothing_to_render(tmp_path, change):
    with pytest.raises(ValueError, match="Nothing to render"):
        make_street_scenes(tmp_path / "s", dataclasses.replace(SMALL, **change))
