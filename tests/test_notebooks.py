"""The notebooks run as they are, and are stored with the outputs of such a run.

Their code cells run in a Python of their own, in the folder of a fresh user: no kernel is needed.
After a change, store new outputs with Jupyter (``pip install nbclient ipykernel``)::

    TQDM_DISABLE=1 jupyter execute --inplace example_notebooks/*.ipynb
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "example_notebooks").glob("*.ipynb"))
EXPECTED = [
    r"1437 digits to train with, 360 held out",
    r"float: 9[5-9]\.\d\d %",
    r"the loaded model computes the same numbers: True",
    r"integer graph: 9[5-9]\.\d\d %",
    r"digits\.onnx: 0 of 3600 output values differ",
    r"digits_torch_onnx\.onnx: 0 of 3600 output values differ",
    r"integer graph vs ONNX Runtime, optimizations on: 0 of 3600 values differ",
    r"classifier\.activation_q +uint8 per-tensor affine",
]


def _code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def _outputs(path):
    return [output for cell in _code_cells(path) for output in cell.outputs]


def test_documented_names():
    assert [path.name for path in NOTEBOOKS] == ["quantization_ptc.ipynb", "quantization_qat.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_those_of_a_clean_run(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    counts = [cell.execution_count for cell in _code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = _outputs(path)
    assert [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert [line for line in EXPECTED if not re.search(line, printed)] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_small_and_without_machine_paths(path):
    assert path.stat().st_size < 150_000
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text(encoding="utf-8"))
    assert re.findall(r"(?<![\w.:/<])/(?:home|root|tmp|usr|opt|Users)/[^\s\"]*", text) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_runs(path, tmp_path):
    folder = tmp_path / "example_notebooks"
    folder.mkdir()
    script = folder / "cells.py"
    script.write_text("\n\n".join(cell.source for cell in _code_cells(path)), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(script)],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in EXPECTED if not re.search(line, done.stdout)] == []
    written = {file.name for file in (tmp_path / "data" / "checkpoints").glob("*/*")}
    assert {"checkpoint.pth", "digits.onnx", "digits_torch_onnx.onnx"} <= written
