from collections import OrderedDict

import pytest
import torch
from torch import nn

from edgeailite.files.checkpoint import read_state_dict


def model():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def equal(a, b):
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s}])
@pytest.mark.parametrize("from_file", [True, False])
def test_state_dict_is_found_in_every_form(wrap, from_file, tmp_path):
    state = model().state_dict()
    source = wrap(state)
    if from_file:
        torch.save({**source, "epoch": 3} if source is not state else source, tmp_path / "c.pth")
        source = str(tmp_path / "c.pth")
    assert equal(read_state_dict(source), state)


def test_prefix_of_data_parallel_training_is_removed_also_from_the_versions():
    plain = model()
    state = nn.DataParallel(plain).state_dict()
    read = read_state_dict(state)
    assert equal(read, plain.state_dict())
    assert read._metadata["1"]["version"] == 2
    assert all(name.startswith("module.") for name in state), "the source is not changed"


def test_prefix_stays_where_it_is_a_name_of_the_model():
    state = OrderedDict({"module.a": torch.ones(1), "b": torch.ones(1)})
    assert list(read_state_dict(state)) == ["module.a", "b"]


def test_missing_file_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint file .*none\.pth"):
        read_state_dict(tmp_path / "none.pth")


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_truncated_file_raises(keep, tmp_path):
    path = tmp_path / "cut.pth"
    torch.save(model().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"cut\.pth.*(truncated or not a|not a checkpoint)"):
        read_state_dict(path)


def test_file_that_is_no_checkpoint_raises(tmp_path):
    path = tmp_path / "page.pth"
    path.write_text("<html>404: not found</html>")
    with pytest.raises(ValueError, match=r"page\.pth is not a checkpoint"):
        read_state_dict(path)


def test_file_with_python_objects_raises_and_runs_nothing(tmp_path):
    path = tmp_path / "whole_model.pth"
    torch.save(model(), path)
    with pytest.raises(ValueError, match=r"holds Python objects.*torch\.save\(model\.state_dict"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list; expected a state dict"),
        ({}, "holds nothing; expected a state dict"),
        ({"epoch": 3, "weight": torch.ones(1)}, "is no state dict: epoch hold"),
    ],
)
def test_content_that_is_no_state_dict_raises(content, message, tmp_path):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(ValueError, match=message):
        read_state_dict(tmp_path / "c.pth")
