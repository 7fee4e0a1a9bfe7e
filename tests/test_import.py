import subprocess
import sys
import time

import pytest

import edgeailite
import edgeailite.quantization
from edgeailite.xnn import quantize

HEAVY = {
    "cv2",
    "jinja2",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "PIL",
    "scipy",
    "sklearn",
    "tensorboard",
    "timm",
    "torchmetrics",
    "torchvision",
    "tyro",
}


def run(code):
    code = f"import sys; sys.path[:0] = {sys.path!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_loads_no_optional_and_no_export_packages():
    out = run(
        "import torch; before = set(sys.modules)\n"
        "import edgeailite\n"
        f"print(*sorted((set(sys.modules) - before) & {HEAVY!r}))"
    )
    assert out == ""


@pytest.mark.slow
def test_import_costs_at_most_half_a_second_more_than_torch():
    best = {"import torch": float("inf"), "import edgeailite": float("inf")}
    for _ in range(5):
        for code in best:
            started = time.perf_counter()
            run(code)
            best[code] = min(best[code], time.perf_counter() - started)
    assert best["import edgeailite"] <= best["import torch"] + 0.5


@pytest.mark.parametrize("module", [edgeailite.quantization, quantize])
def test_lazy_names_are_the_public_ones(module):
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name).__name__
    with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'Qat'"):
        _ = module.Qat


def test_star_import_and_rooms_work_in_a_fresh_process():
    code = "from edgeailite.quantization import *; print(QATFxModule.__name__)"
    assert run(code) == "QATFxModule"
    code = "from edgeailite import quantization as q; print(q.report, q.export, q.verify)"
    assert run(code).count("<module ") == 3
    assert run("import edgeailite; print(edgeailite.xnn.quantization.QuantTrainModule)")
