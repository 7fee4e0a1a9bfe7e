import importlib.util
import subprocess
import sys

import pytest
import torch

from edgeailite import _torchvision

MISSING = ["nms", "qnms"]


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


@pytest.mark.parametrize("package", ["torchvision", "torchmetrics"])
def test_packages_that_use_torchvision_import_after_edgeailite(package):
    out = run(
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        f"import edgeailite, {package}, torchvision.transforms.v2\n"
        f"print(torchvision.transforms.v2.functional.__name__)"
    )
    assert out.stdout.strip() == "torchvision.transforms.v2.functional"


@pytest.fixture
def definitions(monkeypatch):
    """As in a fresh process: torchvision not imported, its operators absent. Lists definitions."""
    defined = []
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(torch.library, "define", lambda name, schema: defined.append(name))
    monkeypatch.setattr(torch.ops, "torchvision", object())
    return defined


def test_operators_are_defined_where_the_library_does_not_load(definitions, monkeypatch):
    def fail(path):
        raise OSError(f"{path}: undefined symbol")

    monkeypatch.setattr(torch.ops, "load_library", fail)
    assert _torchvision.define_missing_operators()
    assert definitions == [f"torchvision::{name}" for name in MISSING]


def test_nothing_is_defined_where_the_library_loads(definitions, monkeypatch):
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    assert not _torchvision.define_missing_operators()
    assert definitions == []
    assert [path.rpartition("/")[2].split(".")[0] for path in loaded] == ["_C"]


def test_nothing_is_defined_without_torchvision(definitions, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not _torchvision.define_missing_operators()
    assert definitions == []


def test_nothing_is_defined_after_torchvision_was_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", object())
    assert not _torchvision.define_missing_operators()
