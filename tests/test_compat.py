import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgeailite import xnn

WRAPPERS = ["QuantCalibrateModule", "QuantTestModule", "QuantTrainModule"]
XNN = ["edgeailite.xnn", "edgeai_torchmodelopt.xnn", "edgeai_torchmodelopt.v1.xnn"]
COMPAT = Path(__file__).parents[1] / "compat"


@pytest.mark.parametrize("path", XNN)
@pytest.mark.parametrize("part", ["layers", "optim", "utils", "quantize"])
def test_every_name_of_xnn_is_the_same_object_under_each_path(path, part):
    ours = getattr(xnn, part)
    theirs = importlib.import_module(f"{path}.{part}")
    assert getattr(importlib.import_module(path), part) is theirs
    for name in ours.__all__:
        assert getattr(theirs, name) is getattr(ours, name)


@pytest.mark.parametrize("path", XNN)
def test_quantization_is_another_name_of_quantize(path):
    module = importlib.import_module(path)
    for name in WRAPPERS:
        assert getattr(module.quantization, name) is getattr(xnn.quantize, name)


@pytest.mark.parametrize("path", XNN[1:])
def test_quantization_is_importable_by_its_path(path):
    module = importlib.import_module(f"{path}.quantization")
    assert module.QuantTrainModule is xnn.quantize.QuantTrainModule


def test_documented_paths_are_reachable_after_a_bare_import():
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import edgeai_torchmodelopt as e\n"
        "print(e.xmodelopt.quantization.v1.QuantTrainModule is e.v1.xnn.quantize.QuantTrainModule,"
        " e.xnn.utils.load_weights is e.v1.xnn.utils.load_weights)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["True", "True"]


def test_wrappers_of_the_first_version():
    from edgeai_torchmodelopt.xmodelopt.quantization import v1

    assert sorted(v1.__all__) == WRAPPERS


ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (COMPAT.parent / "docs" / "import_paths.md").read_text().splitlines()
    if line.startswith("| `")
]


def resolve(path):
    """The module, or the name in a module, that a dotted path stands for."""
    parent, _, name = path.rpartition(".")
    module = importlib.import_module(parent)
    return getattr(module, name) if hasattr(module, name) else importlib.import_module(path)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_import_table_holds(row):
    """Our side of each row exists; what is said to work as written is the same thing."""
    ours = resolve(row[1].strip("`"))
    if row[2:] == ["works as written"]:
        theirs = resolve(row[0].strip("`"))
        assert set(ours.__all__) <= set(theirs.__all__)
    if row[0].startswith("`tinyml_torchmodelopt."):
        assert resolve(row[0].strip("`")) is ours
    for path in re.findall(r"`XNN\.([\w.]+)`", row[0]):
        for package in XNN:
            assert resolve(f"{package}.{path}") is ours


def test_import_table_is_not_empty():
    assert len(ROWS) > 20


def test_fx_wrappers_are_reachable_by_their_documented_path():
    import edgeai_torchmodelopt
    from edgeailite import quantization

    v2 = edgeai_torchmodelopt.xmodelopt.quantization.v2
    for name in ("QATFxModule", "PTCFxModule", "PTQFxModule", "QConfigType"):
        assert getattr(v2, name) is getattr(quantization, name)
    assert edgeai_torchmodelopt.xnn.utils.load_weights is xnn.utils.load_weights


def test_microcontroller_wrappers_under_their_documented_paths():
    import tinyml_torchmodelopt.quantization as documented
    from edgeailite import quantization

    for name in documented.__all__:
        ours = {"TinyMLModelQConfigFormat": "ExportFormat"}.get(name, name)
        assert getattr(documented, name) is getattr(quantization, ours)
    for folder, name in (("generic", "Generic"), ("tinpu", "TINPU")):
        module = importlib.import_module(f"tinyml_torchmodelopt.quantization.{folder}")
        for kind in ("QAT", "PTQ"):
            wrapper = f"{name}TinyML{kind}FxModule"
            assert getattr(module, wrapper) is getattr(quantization, wrapper)
    base = importlib.import_module("tinyml_torchmodelopt.quantization.base.fx")
    assert base.TinyMLQuantFxBaseModule is quantization.TinyMLQuantFxBaseModule
    types = importlib.import_module("tinyml_torchmodelopt.quantization.base.fx.qconfig_types")
    assert types.TinyMLQConfigType is quantization.TinyMLQConfigType
    search = importlib.import_module("tinyml_torchmodelopt.quantization.base.fx.auto_quantization")
    assert callable(search.run_auto_quantization)
    assert callable(search.apply_mixed_precision)
    assert set(documented.TinyMLModelQConfigFormat.choices()) >= {"FAKEQ_MODEL", "TINPU_INT_MODEL"}
