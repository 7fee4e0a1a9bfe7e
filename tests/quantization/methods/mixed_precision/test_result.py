import pytest

from edgeailite.quantization.methods.mixed_precision.result import MixedPrecision
from tests.quantization.methods.mixed_precision.network import search


def test_the_result_is_saved_and_read(tmp_path):
    found = search(max_bytes=900)
    path = found.save(tmp_path / "folder" / "bits.json")
    assert MixedPrecision.load(path) == found
    assert [p.name for p in path.parent.iterdir()] == ["bits.json"]
    assert sorted(found.bits) == sorted(set(found.chosen.values()))
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds no mixed precision .* MixedPrecision.save"):
        MixedPrecision.load(tmp_path / "other.json")


def test_the_table_names_every_layer():
    lines = str(search(max_bytes=900)).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["0", "3", "6"]
    assert "bits on average" in lines[-1]
