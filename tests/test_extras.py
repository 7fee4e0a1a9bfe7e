import re
import sys
from pathlib import Path

import pytest

from edgeailite._extras import needs_extra

ROOT = Path(__file__).parents[1]


def test_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    message = r"The search needs scipy: pip install 'edgeailite\[search\]'\."
    with pytest.raises(ImportError, match=message) as raised, needs_extra("search", "The search"):
        import scipy.optimize  # noqa: F401
    assert raised.value.name == "scipy"


def test_other_errors_pass():
    with pytest.raises(ValueError, match="mine"), needs_extra("search", "The search"):
        raise ValueError("mine")


@pytest.fixture
def project():
    tomllib = pytest.importorskip("tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_extras_that_the_code_names_exist(project):
    sources = [path.read_text() for path in sorted((ROOT / "edgeailite").rglob("*.py"))]
    named = {extra for text in sources for extra in re.findall(r'needs_extra\("(\w+)"', text)}
    assert named
    assert named <= project["optional-dependencies"].keys()


def test_package_requires_only_what_training_and_export_need(project):
    required = {re.split(r"\W", line.replace("-", "_"))[0] for line in project["dependencies"]}
    needed = "numpy onnx onnxruntime onnxscript pillow torch torchvision tqdm"
    assert required == set(needed.split())


def test_requirements_pin_every_extra(project):
    pinned = {line.split("==")[0] for line in (ROOT / "requirements.txt").read_text().splitlines()}
    extras = project["optional-dependencies"]
    wanted = {line.split(">")[0] for lines in extras.values() for line in lines}
    own = {name for name in wanted if name.startswith("edgeailite[")}
    # Neither a test nor a script of this repository needs these two.
    assert wanted - own - pinned == {"pre-commit", "timm"}
