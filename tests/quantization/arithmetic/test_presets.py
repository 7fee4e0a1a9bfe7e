import pickle

import pytest

from edgeailite.quantization.arithmetic import presets
from edgeailite.quantization.arithmetic.presets import (
    PRESETS,
    QConfigType,
    get_preset,
    register_preset,
)
from edgeailite.quantization.arithmetic.spec import QConfig, QuantSpec


def test_unknown_preset_lists_those_there_are():
    with pytest.raises(ValueError, match=r"no preset 'WC9'; allowed: PACT2"):
        get_preset("WC9")
    assert get_preset("PACT2") is PRESETS["PACT2"]


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="There is a preset 'WC8_AT8' already"):
        register_preset("WC8_AT8", None)


def test_a_preset_from_outside_is_found_by_its_name(monkeypatch):
    monkeypatch.setattr(presets, "PRESETS", dict(PRESETS))
    mine = QConfig(QuantSpec(bit_width=6, signed=True))
    register_preset("MINE", mine)
    assert get_preset("MINE") is mine
    assert "MINE" in QConfigType.choices()
    assert "MINE" not in QConfigType.__members__


def test_the_enum_has_the_presets_of_the_fx_wrappers():
    assert {*QConfigType.choices()} == {*PRESETS, "DEFAULT"} - {"PACT2"}
    assert QConfigType.DEFAULT is QConfigType.WC8_AT8
    assert [t.value for t in QConfigType] == [name for name in PRESETS if name != "PACT2"]
    assert pickle.loads(pickle.dumps(QConfigType.WC4_AT4)) is QConfigType.WC4_AT4
