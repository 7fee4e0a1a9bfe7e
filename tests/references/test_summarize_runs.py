import json
import sys

import pytest
from PIL import Image

from references.edgeailite.scripts import summarize_runs


def _history(epochs):
    keys = ("train_loss", "val_loss", "train_top1", "val_top1")
    return [{"epoch": n + 1, "lr": 0.1} | dict.fromkeys(keys, 90.0 + n) for n in range(epochs)]


@pytest.fixture
def runs(tmp_path):
    def validation(top1, differing):
        verify = {"num_values": 3600, "mismatches": {"a": 0, "b": differing}}
        accuracy = {"top1": top1, "loss": 0.1}
        base = {"phase": "validation", "val": accuracy, "onnx_bytes": 1234567}
        return base if differing is None else base | {"verify": verify, "onnx": {"top1": top1}}

    results = {
        "qat_validation": validation(99.0, 0),
        "calibrated_validation": validation(98.5, 2),
        "float_validation": validation(99.25, None),
        "float": {"phase": "training", "val": {"top1": 99.25}, "history": _history(3)},
    }
    for name, result in results.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    (tmp_path / "float" / "checkpoint.pth").write_bytes(b"")
    (tmp_path / "unfinished").mkdir()
    return tmp_path


def test_render_orders_and_aligns_the_rows(runs):
    text = summarize_runs.render(runs, summarize_runs.read_results(runs))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in table}) == 1
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    assert rows == [
        ["float", "99.25", "-", "1,234,567", "-", "-"],
        ["calibrated", "98.50", "98.50", "1,234,567", "3,600", "2"],
        ["quantization-aware trained", "99.00", "99.00", "1,234,567", "3,600", "0"],
    ]
    assert f"{runs / 'float'}: checkpoint.pth" in text


def test_main_writes_table_and_plot(runs, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["summarize_runs.py", str(runs)])
    summarize_runs.main()
    assert (runs / "summary.txt").read_text().strip() == capsys.readouterr().out.strip()
    with Image.open(runs / "summary.png") as image:
        assert image.width > 1000
        assert image.convert("L").getextrema() == (0, 255)


def test_main_without_finished_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["summarize_runs.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"error: No finished run in"):
        summarize_runs.main()
