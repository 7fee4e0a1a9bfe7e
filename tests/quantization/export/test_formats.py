"""Format names: members, strings, and what is refused."""

import pytest

from edgeailite.quantization.export.formats import CONVERTED_FORMATS, ExportFormat


@pytest.mark.parametrize("name", list(ExportFormat))
def test_a_name_and_its_member_are_the_same(name):
    assert ExportFormat.parse(name.value) is ExportFormat.parse(name) is name
    assert name == name.value


def test_unknown_name_lists_the_allowed_ones():
    with pytest.raises(
        ValueError, match=r"format is 'tflite'; allowed: 'FLOAT_MODEL', 'FAKEQ_MODEL'"
    ):
        ExportFormat.parse("tflite")


def test_a_format_that_needs_floats_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"'CLIP_MODEL', which needs the wrapper.*'INT_MODEL'\."):
        ExportFormat.parse("CLIP_MODEL", CONVERTED_FORMATS)
    with pytest.raises(ValueError, match=r"'qdq'; allowed: 'QDQ_MODEL', 'INT_MODEL'\."):
        ExportFormat.parse("qdq", CONVERTED_FORMATS)
