import os
import stat

import pytest

from edgeailite.files.atomic import write_atomically


def test_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "result.json"
    with write_atomically(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".json"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "name_without_suffix"
    with write_atomically(str(path)) as temporary:
        temporary.write_bytes(b"x")
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_error_keeps_the_former_file_and_leaves_nothing_beside_it(tmp_path, error):
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(error), write_atomically(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), write_atomically(tmp_path / "result.json"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "result.json"
    with write_atomically(path) as first, write_atomically(path) as second:
        first.write_text("1")
        second.write_text("2")
    assert path.read_text() == "1"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    with write_atomically(tmp_path / "atomic") as temporary:
        temporary.write_text("")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1
