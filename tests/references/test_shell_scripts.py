import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ["run_quantization_example.sh", "run_calibration.sh"]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def _bash(script, *arguments, **environment):
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{script}", "caller", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script):
    done = subprocess.run([ROOT / script, "--help"], capture_output=True, text=True, check=True)
    assert f"./{script} [classification|segmentation] [--runs FOLDER] [OPTIONS]" in done.stdout
    assert "set -e" not in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_unknown_task(script):
    done = subprocess.run([ROOT / script, "detection"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown task 'detection'; there are: classification, segmentation" in done.stderr


def test_read_arguments():
    script = '. tools/run_step.sh; read_arguments "$@"; echo "$TASK|$RUNS|${EXTRA[*]-}"'
    checkpoints = "data/checkpoints"
    assert _bash(script).stdout == f"classification|{checkpoints}/quantization_example|\n"
    done = _bash(script, "segmentation")
    assert done.stdout == f"segmentation|{checkpoints}/segmentation_example|\n"
    done = _bash(script, "classification", "--gpus", "0", "--runs", "a b", "--seed", "2")
    assert done.stdout == "classification|a b|--gpus 0 --seed 2\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--quantize_method qat_fx --seed 2", "DEF_qat_fx|--quantize_method qat_fx|--seed 2"),
        ("--qconfig-type=WC4_AT8 --seed 2", "DEF_WC4_AT8|--qconfig-type=WC4_AT8|--seed 2"),
        ("--runs a --qconfig_type X --seed 2", "a|--qconfig_type X|--seed 2"),
    ],
)
def test_read_arguments_of_steps_that_quantize(words, expected):
    script = '. tools/run_step.sh; read_arguments "$@"; echo "$RUNS|${QUANTIZED[*]}|${EXTRA[*]}"'
    expected = expected.replace("DEF", "data/checkpoints/quantization_example")
    assert _bash(script, *words.split()).stdout == f"{expected}\n"


def test_run_step_gives_quantization_options_to_steps_that_quantize(tmp_path):
    done = _bash(
        '. tools/run_step.sh; PYTHON=echo SCRIPT=script.py RUNS="$1"\n'
        "COMMON=() EXTRA=(--extra 3) QUANTIZED=(--quantize_method qat_fx)\n"
        "run_step a float --epochs 2; run_step b quantized --quantize True",
        str(tmp_path),
    )
    commands = [line for line in done.stdout.splitlines() if "script.py" in line]
    assert commands == [
        f"script.py --epochs 2 --save_path {tmp_path}/a --extra 3",
        f"script.py --quantize True --save_path {tmp_path}/b --quantize_method qat_fx --extra 3",
    ]


def test_post_training_goes_to_the_calibration_alone(tmp_path):
    done = _bash(
        '. tools/run_step.sh; folder="$1"; shift; read_arguments "$@"; echo "$RUNS"\n'
        "PYTHON=echo SCRIPT=script.py RUNS=$folder COMMON=()\n"
        "run_step a calibrate --phase calibration --quantize True\n"
        "run_step b validate --phase validation --quantize True",
        *(str(tmp_path), "--ptq", "best", "--seed", "2"),
    )
    runs, *lines = done.stdout.splitlines()
    assert runs == "data/checkpoints/quantization_example_best"
    calibrate, validate = (line for line in lines if "script.py" in line)
    assert calibrate.endswith(f"--save_path {tmp_path}/a --ptq best --seed 2")
    assert validate.endswith(f"--save_path {tmp_path}/b --seed 2")


def test_several_post_training_methods_and_training_methods_go_where_they_belong(tmp_path):
    done = _bash(
        '. tools/run_step.sh; folder="$1"; shift; read_arguments "$@"; echo "$RUNS"\n'
        "PYTHON=echo SCRIPT=script.py RUNS=$folder COMMON=()\n"
        "run_step a calibrate --phase calibration --quantize True\n"
        "run_step b train --phase training --quantize True\n"
        "run_step c train --phase training",
        *(str(tmp_path), "--ptq", "activation_ranges", "biases", "--seed", "2"),
        *("--learned_ranges", "all", "--distillation=0.5", "--size_budget", "0.5"),
        *("--bit_widths", "a.json"),
    )
    runs, *lines = done.stdout.splitlines()
    assert runs == (
        "data/checkpoints/quantization_example_activation_ranges_biases_learned_ranges_all"
        "_distillation=0.5_size_budget_0.5_bit_widths"
    )
    calibrate, train, in_float = (line for line in lines if "script.py" in line)
    assert calibrate.endswith(
        "/a --bit_widths a.json --ptq activation_ranges biases --size_budget 0.5 --seed 2"
    )
    assert train.endswith("/b --bit_widths a.json --learned_ranges all --distillation=0.5 --seed 2")
    assert in_float.endswith("/c --seed 2")


def test_example_with_a_method_that_does_not_train():
    script = ROOT / "run_quantization_example.sh"
    command = [script, "--quantize_method", "ptc_fx"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "ptc_fx calibrates and does not train: run it with ./run_calibration.sh" in done.stderr


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ((), "script.py --common 1 --own 2 --save_path RUNS/step --extra 3"),
        (("checkpoint.pth",), "--save_path RUNS/step --resume RUNS/step --extra 3"),
        (("checkpoint.pth", "result.json"), "done already"),
    ],
)
def test_run_step_skips_and_resumes(tmp_path, present, expected):
    (tmp_path / "step").mkdir()
    for name in present:
        (tmp_path / "step" / name).touch()
    done = _bash(
        '. tools/run_step.sh; PYTHON=echo SCRIPT=script.py RUNS="$1"\n'
        "COMMON=(--common 1) EXTRA=(--extra 3)\n"
        'run_step step "the step" --own 2',
        str(tmp_path),
    )
    assert done.returncode == 0
    assert expected.replace("RUNS", str(tmp_path)) in done.stdout
    assert ("script.py" in done.stdout) == ("result.json" not in present)


def test_setup_env_without_python(tmp_path):
    (tmp_path / "tools").mkdir()
    for name in ("tools/setup_env.sh", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    done = _bash(f". {tmp_path}/tools/setup_env.sh", EDGEAILITE_PYTHON="no-such-python")
    assert done.returncode != 0
    assert "there is no 'no-such-python'" in done.stderr
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.1 && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = _bash(f". {tmp_path}/tools/setup_env.sh", EDGEAILITE_PYTHON=str(old))
    assert "Python 3.8.1; the pinned packages need Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_setup_env_does_nothing_when_ready(tmp_path):
    (tmp_path / "tools").mkdir()
    for name in ("tools/setup_env.sh", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    stamp = subprocess.run(
        "cat requirements.txt pyproject.toml | cksum",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    (tmp_path / ".venv" / "requirements.stamp").write_text(stamp.stdout)
    done = _bash(f'. {tmp_path}/tools/setup_env.sh; echo "$PYTHON"')
    assert done.stdout == f"{python}\n"


def test_requirements_pin_every_dependency_of_the_package():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {line.split(">")[0] for line in project["dependencies"]}
    pinned = {
        line.split("==")[0]
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if "==" in line
    }
    assert names <= pinned
