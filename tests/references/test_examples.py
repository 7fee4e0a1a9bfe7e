import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgeailite.models import create_model

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "references" / "edgeailite" / "scripts" / "quantize_classification_example.py"


def test_copied_example_is_short():
    assert len(EXAMPLE.read_text().splitlines()) < 150


def test_quantize_classification_example(image_folder, tmp_path, monkeypatch, capsys):
    model = create_model("mobilenetv1_x0p25", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "float.pth")
    monkeypatch.chdir(tmp_path)
    arguments = [
        *("--data_path", str(image_folder), "--pretrained", "float.pth"),
        *("--model_name", "mobilenetv1_x0p25", "--epochs", "3", "--batch_size", "8"),
        *("--save_path", "out"),
    ]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr().out
    assert len(re.findall(r"epoch \d/3: quantized [\d.]+ %", printed)) == 3
    saved = torch.load(tmp_path / "out" / "model.pth", weights_only=True)
    assert model.state_dict().keys() <= saved.keys()
    assert (tmp_path / "out" / "model.onnx").stat().st_size > 0


@pytest.mark.slow
def test_quantization_example(tmp_path):
    script = str(ROOT / "examples" / "quantization_example.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    accuracy = re.search(r"([\d.]+) %", done.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) > 80
    assert (tmp_path / "data" / "checkpoints" / "example" / "digits.onnx").exists()
