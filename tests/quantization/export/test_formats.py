"""The registry of writers: names, duplicates, choices, and a format from outside the package."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from edgeailite.quantization import (
    ExportFormat,
    GenericTinyMLPTQFxModule,
    PTCFxModule,
    QuantCalibrateModule,
    TINPUTinyMLPTQFxModule,
)
from edgeailite.quantization.export import formats
from edgeailite.quantization.export.formats import OnnxOptions, writer, writers

ROOT = Path(__file__).resolve().parents[3]
CONVERTED = [w.format for w in writers("scale", "converted")]


@pytest.fixture
def toy(monkeypatch):
    """A format that another package registers: one file of its own."""
    monkeypatch.setattr(formats, "_WRITERS", dict(formats._WRITERS))

    @writer("TOY", source="converted", description="kinds of the modules, as text")
    def write_toy(model, example_inputs, path, options):
        kinds = sorted({type(module).__name__ for module in model.modules()})
        Path(path).write_text(f"{len(example_inputs)} {options.opset_version} {' '.join(kinds)}")
        return Path(path)

    return write_toy


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU())


@pytest.mark.parametrize("name", list(ExportFormat))
def test_a_name_and_its_member_are_the_same(name):
    assert ExportFormat.parse(name.value) is ExportFormat.parse(name) is name
    assert name == name.value
    assert getattr(ExportFormat, name.value) is pickle.loads(pickle.dumps(name)) is name


def test_the_enumeration_is_made_from_the_registry():
    assert [f.value for f in ExportFormat] == [w.format for w in writers()]
    assert [f.description for f in ExportFormat] == [w.description for w in writers()]
    assert ExportFormat.choices() == tuple(ExportFormat.__members__)
    assert len(ExportFormat) == 6
    with pytest.raises(AttributeError, match="no export format 'TOY'"):
        _ = ExportFormat.TOY


def test_unknown_name_lists_the_allowed_ones():
    with pytest.raises(
        ValueError, match=r"format is 'tflite'; allowed: 'FLOAT_MODEL', 'FAKEQ_MODEL'"
    ):
        ExportFormat.parse("tflite")


def test_a_format_that_needs_floats_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"'CLIP_MODEL', which needs the wrapper.*'INT_MODEL'\."):
        ExportFormat.parse("CLIP_MODEL", CONVERTED)
    with pytest.raises(ValueError, match=r"'qdq'; allowed: 'QDQ_MODEL', 'INT_MODEL'\."):
        ExportFormat.parse("qdq", CONVERTED)
    with pytest.raises(ValueError, match=r"'CLIP_MODEL'; allowed: .*'TINPU_INT_MODEL'\."):
        ExportFormat.parse("CLIP_MODEL", [w.format for w in writers("fixed_point")])


def test_a_taken_name_and_unknown_words_are_refused():
    def register(name, **options):
        writer(name, description="", **options)(lambda *_: Path())

    with pytest.raises(ValueError, match=r"'QDQ_MODEL' is registered already, by .*export\.qdq"):
        register("QDQ_MODEL", source="converted")
    with pytest.raises(ValueError, match="source is 'float'; allowed: 'prepared', 'converted'"):
        register("OTHER", source="float")
    with pytest.raises(ValueError, match="arithmetic is 'int'; allowed: None, 'scale'"):
        register("OTHER", source="prepared", arithmetic="int")
    assert "OTHER" not in ExportFormat.choices()


def test_defaults_of_a_format_replace_what_was_left_out():
    assert OnnxOptions().with_defaults(17, False) == OnnxOptions(opset_version=17, fuse=False)
    given = OnnxOptions(opset_version=13, fuse=True)
    assert given.with_defaults(17, False) == given


@pytest.mark.parametrize(
    "wrapper_type", [PTCFxModule, GenericTinyMLPTQFxModule, TINPUTinyMLPTQFxModule]
)
def test_a_format_from_outside_is_written_by_name(wrapper_type, toy, tmp_path):
    x = torch.randn(8, 16)
    wrapper = wrapper_type(network()).calibrate([x])
    path = wrapper.export(x[:1], tmp_path / "m.txt", format="TOY", opset_version=15)
    count, opset, *kinds = path.read_text().split()
    assert (count, opset) == ("1", "15")
    assert {"IntegerLayer", "OffsetScaleShiftLayer"} & set(kinds)
    converted = wrapper.convert("TOY")
    assert converted.format == "TOY"
    assert converted.export(x[:1], tmp_path / "c", opset_version=15).read_text() == path.read_text()
    assert "TOY" in wrapper.formats
    assert "TOY" in ExportFormat.choices()
    assert ExportFormat.TOY == ExportFormat.parse("TOY") == ExportFormat("TOY") == "TOY"
    assert pickle.loads(pickle.dumps(ExportFormat.TOY)).name == "TOY"
    assert ExportFormat.TOY.description == "kinds of the modules, as text"


def test_a_format_of_another_arithmetic_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_WRITERS", dict(formats._WRITERS))
    writer("TOY", source="prepared", description="", arithmetic="fixed_point")(lambda *_: Path())
    wrapper = QuantCalibrateModule(network(), torch.randn(1, 16))
    with pytest.raises(ValueError, match="format is 'TOY'; allowed: 'FLOAT_MODEL'"):
        wrapper.export(torch.randn(1, 16), tmp_path / "m", format="TOY")


def test_the_default_format_is_written_with_its_name(tmp_path):
    x = torch.randn(8, 16)
    wrapper = PTCFxModule(network()).calibrate([x])
    path = wrapper.convert("INT_MODEL").export(x, tmp_path / "m.onnx")
    assert onnx.load(path).metadata_props[1].value == "INT_MODEL"


def test_import_of_the_package_imports_no_onnx():
    code = (
        "import sys, edgeailite, edgeailite.quantization.wrappers\n"
        "from edgeailite.quantization.export.argmax import append_argmax\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0].startswith('onnx')"
        " or m.startswith('torch.onnx._internal')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "[]"
