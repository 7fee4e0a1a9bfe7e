import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from edgeailite.quantization.verify.command import main

MODEL = """
import torch
from torch import nn
from edgeailite.quantization import PTCFxModule

def build():
    torch.manual_seed(0)
    return PTCFxModule(nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 4, 3)),
                       qconfig_type="WT8SYMP2_AT8SYMP2")

def number():
    return 8
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a model's code, its checkpoint, and its ONNX file."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "mine.py").write_text(MODEL)
    scope: dict = {}
    exec(MODEL, scope)
    wrapper = scope["build"]().calibrate([torch.randn(4, 3, 16, 16)])
    torch.save(wrapper.module.state_dict(), folder / "model.pth")
    wrapper.export(torch.randn(1, 3, 16, 16), folder / "model.onnx")
    return folder


@pytest.fixture
def place(files, tmp_path, monkeypatch):
    """A copy of the files, as the working directory."""
    monkeypatch.chdir(shutil.copytree(files, tmp_path, dirs_exist_ok=True))
    return tmp_path


WITH_MODEL = ["--model", "mine.py:build", "--checkpoint", "model.pth"]


def test_random_data_and_the_model(place, capsys):
    assert main(["model.onnx", "--data", "random", *WITH_MODEL, "--json_path", "out.json"]) == 0
    printed = capsys.readouterr().out
    assert "of 64 inputs" in printed
    assert printed.count(": 0 differ") == 3
    found = json.loads((place / "out.json").read_text())
    assert found["num_inputs"] == 64
    assert set(found["mismatches"].values()) == {0}


def test_another_checkpoint_differs(place, capsys):
    state = torch.load("model.pth", weights_only=True)
    state["0.weight"] = -state["0.weight"]
    torch.save(state, "other.pth")
    arguments = ["model.onnx", "--data", "random", "--model", "mine.py:build"]
    assert main([*arguments, "--checkpoint", "other.pth", "--num_inputs", "4"]) == 1
    assert "first difference between integer graph and ONNX Runtime" in capsys.readouterr().out


def test_without_a_model_the_levels_are_compared(place, capsys):
    assert main(["model.onnx", "--data", "random", "--num_inputs", "5", "--batch_size", "2"]) == 0
    printed = capsys.readouterr().out
    assert "of 5 inputs" in printed
    assert "optimizations off vs extended: 0 differ" in printed
    assert "PyTorch was not compared" in printed


@pytest.mark.parametrize("kind", ["npy", "npz", "pt", "images"])
def test_each_kind_of_data(place, kind):
    inputs = torch.randn(3, 3, 16, 16)
    if kind == "npy":
        np.save("data.npy", inputs.numpy())
    elif kind == "npz":
        np.savez("data.npz", inputs.numpy())
    elif kind == "pt":
        torch.save([inputs], "data.pt")
    else:
        (place / "data.images" / "a").mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "data.images" / "a" / f"{i}.png")
    assert main(["model.onnx", "--data", f"data.{kind}", *WITH_MODEL]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.onnx", "--data", "random"], "There is no ONNX file at 'none.onnx'"),
        (["model.onnx", "--data", "none"], "there is no file or folder none"),
        (["model.onnx", "--data", "mine.py"], "a folder of images, .npy, .npz, .pt or 'random'"),
        (["model.onnx", "--data", "."], "no image"),
        (["model.onnx", "--data", "wrong.npy"], r"has shape \(2, 3, 8, 8\), model.onnx takes"),
        (["model.onnx", "--data", "random", "--num_inputs", "0"], "are 1 or more"),
        (["model.onnx", "--data", "random", "--checkpoint", "model.pth"], "give --model as well"),
        (["model.onnx", "--data", "random", "--model", "mine"], "package.module:function or file"),
        (
            ["model.onnx", "--data", "random", "--model", "no.py:build"],
            "loaded: there is no file",
        ),
        (["model.onnx", "--data", "random", "--model", "mine.py:none"], "cannot be loaded"),
        (["model.onnx", "--data", "random", "--model", "mine.py:number"], "gives a int; it must"),
    ],
)
def test_input_that_cannot_be_used_is_named(place, capsys, arguments, message):
    np.save("wrong.npy", np.zeros((2, 3, 8, 8), np.float32))
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert re.search(message, captured.err)
    assert "Traceback" not in captured.err


def test_checkpoint_of_another_network_is_named(place, capsys):
    torch.save({"other.weight": torch.zeros(3)}, "other.pth")
    arguments = ["model.onnx", "--data", "random", "--model", "mine.py:build"]
    assert main([*arguments, "--checkpoint", "other.pth"]) == 2
    assert "other.pth does not fit the model" in capsys.readouterr().err
    assert main([*arguments, "--checkpoint", "none.pth"]) == 2
    assert "There is no checkpoint none.pth" in capsys.readouterr().err


@pytest.mark.slow
def test_the_program(place):
    command = [
        sys.executable,
        "-W",
        "error::RuntimeWarning",
        "-m",
        "edgeailite.quantization.verify",
    ]
    done = subprocess.run(
        [*command, "model.onnx", "--data", "random", *WITH_MODEL], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": 0 differ") == 3
