import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from edgeailite.quantization.methods.mixed_precision import MixedPrecision
from references.edgeailite.engine import train_classification
from references.edgeailite.engine.run_folder import load_checkpoint
from references.edgeailite.scripts import train_classification_main
from tests.references.helpers import (
    assert_same_run,
    equal,
    forks,
    read_result,
    run_in_two_processes,
    start,
)

SCRIPT = Path(train_classification_main.__file__)
IN_TWO_PROCESSES = [
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
]


@pytest.fixture(scope="module")
def trained(image_folder, tmp_path_factory):
    """A float run of the tiny model, made once."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def float_run(trained, run_script):
    """Checkpoint of the float run."""
    folder = trained / "float"
    if not folder.exists():
        run_script(folder, "--epochs", "8")
    return folder / "checkpoint.pth"


def test_training_learns_and_writes_a_run_folder(run_script):
    folder = run_script("run", "--epochs", "8", "--save_onnx", "True", "--evaluate_start", "True")
    result = read_result(folder)
    assert result["start"]["top1"] < 60 < result["val"]["top1"]
    assert result["best_top1"] == max(row["val_top1"] for row in result["history"])
    assert len(result["history"]) == result["epochs"] == 8
    assert result["onnx_bytes"] == (folder / "model.onnx").stat().st_size
    assert json.loads((folder / "options.json").read_text())["epochs"] == 8
    assert "epoch 8/8" in (folder / "run.log").read_text()
    assert list((folder / "tensorboard").glob("events.*"))
    assert torch.load(folder / "model_best.pth", weights_only=True)["top1"] == result["best_top1"]


def test_float_onnx_equals_the_model(run_script, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr("torch.fx.config.do_not_emit_stack_traces", False)
    folder = run_script("run", "--save_onnx", "True")
    content = (folder / "model.onnx").read_bytes()
    # The exporter notes where each line of code lies.
    assert str(Path(__file__).parents[2]).encode() not in content
    session = onnxruntime.InferenceSession(content)
    assert [i.name for i in session.get_inputs()] == ["input"]
    x = torch.randn(3, 3, 16, 16)
    from edgeailite.models import create_model

    model = create_model("tiny", num_classes=3).eval()
    model.load_state_dict(load_checkpoint(folder)["model"])
    with torch.no_grad():
        expected = model(x)
    actual = torch.from_numpy(session.run(["output"], {"input": x.numpy()})[0])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "more",
    [
        ("--optimizer", "adam", "--lr", "0.01"),
        ("--optimizer", "rmsprop", "--lr", "0.001"),
        ("--optimizer", "sgd_nesterov"),
        ("--scheduler", "step", "--milestones", "1", "3"),
        ("--scheduler", "poly", "--warmup_epochs", "1"),
        ("--scheduler", "exponential", "--gamma", "0.5"),
        ("--label_smoothing", "0.1", "--weight_decay", "0.1"),
        ("--strides", "1"),
        ("--enable_fp16", "True"),
        ("--epoch_size", "0.5", "--epoch_size_val", "6"),
        ("--random_erasing", "1.0", "--auto_augument", "trivialaugment"),
        ("--rand_crop", "False", "--img_resize", "20"),
        ("--input_channel_reverse", "True"),
        ("--image_mean", "0", "0", "0", "--image_scale", "0.01", "0.01", "0.01"),
        ("--freeze_bn", "True"),
        ("--seed", "2"),
    ],
)
def test_every_option_changes_the_weights(run_script, float_reference, more):
    changed = load_checkpoint(run_script("changed", *more))["model"]
    assert not equal(changed, load_checkpoint(float_reference)["model"])
    assert all(bool(value.isfinite().all()) for value in changed.values())


@pytest.fixture
def float_reference(trained, run_script):
    folder = trained / "reference"
    return folder if folder.exists() else run_script(folder)


def test_same_options_give_the_same_weights_with_any_number_of_workers(run_script, float_reference):
    assert_same_run(run_script("again", "--workers", "1"), float_reference)


def test_freeze_bn_keeps_the_statistics(run_script):
    model = load_checkpoint(run_script("frozen", "--freeze_bn", "True"))["model"]
    assert torch.equal(model["features.1.running_mean"], torch.zeros(8))
    assert not torch.equal(model["features.1.weight"], torch.ones(8))


def _interrupt_at(monkeypatch, batch):
    """Cut off the run at a batch (training and validation counted), as a kill would."""
    original = train_classification.ClassificationMetrics.update
    batches = []

    def interrupt(*arguments):
        batches.append(arguments)
        if len(batches) == batch:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(train_classification.ClassificationMetrics, "update", interrupt)


@pytest.mark.parametrize(
    "more",
    [
        ("--random_erasing", "0.5"),
        ("--quantize", "True", "--lr", "0.01"),
        ("--phase", "calibration", "--bitwidth_weights", "4"),
        ("--quantize", "True", "--quantize_method", "qat_fx", "--lr", "0.01"),
        ("--phase", "calibration", "--quantize_method", "ptc_fx"),
        (
            *("--quantize", "True", "--lr", "0.01", "--learned_ranges", "all", "--damping", "0.1"),
            *("--distillation", "0.5", "--weight_averaging", "0.8", "--reestimate_bn", "2"),
        ),
    ],
    ids=["float", "quantized training", "calibration", "qat_fx", "ptc_fx", "methods"],
)
def test_resumed_run_equals_an_uninterrupted_one(run_script, float_run, monkeypatch, more):
    more = ["--epochs", "6", "--evaluate_start", "True", "--pretrained", str(float_run), *more]
    whole = run_script("whole", *more)
    with monkeypatch.context() as patch:
        # 2 batches of the first validation, then 4 + 2 per epoch: in the middle of the fourth.
        _interrupt_at(patch, 2 + 3 * 6 + 2)
        with pytest.raises(KeyboardInterrupt):
            run_script("cut", *more)
    cut = whole.parent / "cut"
    assert load_checkpoint(cut)["epoch"] == 3
    assert not (cut / "result.json").exists()
    run_script("cut", *more, "--resume", str(cut))
    assert_same_run(whole, cut)
    assert (cut / "model_best.pth").exists()


@forks
@pytest.mark.slow
def test_killed_process_resumes_to_the_same_numbers(arguments, run_script, tmp_path):
    more = ["--model_name", "mobilenetv1_x0p25", "--epochs", "3"]
    command = [*arguments, *more, "--save_path", str(tmp_path / "killed")]
    killed = start(train_classification_main.main, command)
    while not (tmp_path / "killed" / "checkpoint.pth").exists():
        assert killed.is_alive()
        time.sleep(0.01)
    killed.kill()
    killed.join()
    run_script("killed", *more, "--resume", str(tmp_path / "killed"))
    assert_same_run(run_script("whole", *more), tmp_path / "killed")


def test_calibration_then_validation(run_script, float_run):
    calibrated = run_script(
        "calibrated", "--phase", "calibration", "--pretrained", str(float_run), "--epochs", "1"
    )
    report = json.loads((calibrated / "report.json").read_text())
    assert report["num_inputs"] == 15
    assert all(entry["sqnr"] is not None for entry in report["activations"])
    assert "features.0" in (calibrated / "report.txt").read_text()
    assert "features.0" in (calibrated / "report.html").read_text()
    events = EventAccumulator(str(calibrated / "tensorboard")).Reload()
    assert "sqnr_output/features.0" in events.Tags()["scalars"]
    validated = run_script(
        *("validated", "--phase", "validation", "--quantize", "True", "--verify", "True"),
        *("--pretrained", str(calibrated / "checkpoint.pth")),
    )
    result = read_result(validated)
    assert result["val"] == read_result(calibrated)["val"]
    assert result["verify"]["num_values"] == 15 * 3
    assert len(result["verify"]["mismatches"]) == 3
    assert set(result["verify"]["mismatches"].values()) == {0}
    assert result["onnx"]["top1"] == result["val"]["top1"]
    assert not (validated / "checkpoint.pth").exists()


@pytest.mark.parametrize(
    ("phase", "method"),
    [("calibration", "ptc_fx"), ("calibration", "qat_fx"), ("training", "qat_fx")],
)
def test_fx_run_then_validation(run_script, float_run, phase, method):
    fx = ("--quantize", "True", "--quantize_method", method, "--qconfig_type", "WT8SYMP2_AT8SYMP2")
    folder = run_script(
        "run", *fx, "--phase", phase, "--pretrained", str(float_run), "--lr", "0.001",
        "--save_onnx", "True",
    )  # fmt: skip
    assert (folder / "model.onnx").stat().st_size == read_result(folder)["onnx_bytes"]
    assert "int8 per-tensor power-of-two" in (folder / "report.txt").read_text()
    assert read_result(folder)["quantize_method"] == method
    before = read_result(float_run.parent)["val"]["top1"]
    assert read_result(folder)["val"]["top1"] >= before - 10
    validated = run_script(
        *("validated", *fx, "--phase", "validation", "--verify", "True"),
        *("--pretrained", str(folder / "checkpoint.pth")),
    )
    result = read_result(validated)
    assert result["val"] == read_result(folder)["val"]
    assert result["verify"]["num_values"] == 15 * 3
    assert set(result["verify"]["mismatches"].values()) == {0}
    assert result["onnx"]["top1"] == result["val"]["top1"]


def test_fx_training_follows_the_schedule_of_its_epochs(run_script, float_run, capsys):
    fx = ("--quantize", "True", "--quantize_method", "qat_fx", "--pretrained", str(float_run))
    run_script("qat", *fx, "--epochs", "4", "--lr", "0.001")
    printed = capsys.readouterr().out
    assert "epoch 1: batch norm statistics are frozen" in printed
    assert "epoch 3: activation ranges are frozen" in printed


@pytest.mark.parametrize(
    "more",
    [
        ("--qconfig_type", "WC4_AT8"),
        ("--qconfig_type", "WC8SYMP2_AT8SYMP2R4"),
        ("--bias_calibration", "False"),
    ],
)
def test_fx_options_have_an_effect(run_script, float_run, more):
    common = ("--phase", "calibration", "--pretrained", str(float_run), "--epochs", "1")
    common += ("--quantize_method", "ptc_fx")
    plain, changed = run_script("plain", *common), run_script("changed", *common, *more)
    assert read_result(plain)["val"]["loss"] != read_result(changed)["val"]["loss"]


def test_resuming_with_another_method_or_preset(run_script, float_run):
    common = ("--phase", "calibration", "--pretrained", str(float_run), "--epochs", "1")
    folder = run_script("run", *common)
    resume = (*common, "--resume", str(folder))
    with pytest.raises(SystemExit, match=r"another run \(--quantize_method pact2 -> ptc_fx\)"):
        run_script("run", *resume, "--quantize_method", "ptc_fx")


def test_checkpoint_from_before_an_option_existed_resumes(run_script, float_run):
    folder = run_script("run", "--epochs", "1")
    content = load_checkpoint(folder)
    del content["options"]["quantize_method"], content["options"]["qconfig_type"]
    torch.save(content, folder / "checkpoint.pth")
    run_script("run", "--epochs", "2", "--resume", str(folder))
    assert load_checkpoint(folder)["epoch"] == 2


@pytest.mark.parametrize(
    "more",
    [
        ("--learned_ranges", "all"),
        ("--damping", "10"),
        ("--distillation", "1"),
        ("--distillation", "1", "--distillation_temperature", "1"),
        ("--weight_averaging", "0.5"),
        ("--reestimate_bn", "1"),
        ("--freeze_midway", "False"),
    ],
)
def test_each_training_method_has_an_effect(trained, run_script, float_run, more):
    common = ("--quantize", "True", "--pretrained", str(float_run), "--lr", "0.01")
    base = more[:2] if len(more) > 2 else ()
    plain = trained / f"plain{len(base)}"
    if not plain.exists():
        run_script(plain, *common, *base)
    changed = run_script("changed", *common, *more)
    plain, changed = load_checkpoint(plain)["model"], load_checkpoint(changed)["model"]
    assert not equal({k: v for k, v in changed.items() if k in plain}, plain)


def test_the_averaged_weights_are_saved_and_exported(run_script, float_run):
    options = ("--pretrained", str(float_run), "--lr", "0.1", "--weight_averaging", "0.9")
    folder = run_script("averaged", *options)
    content = load_checkpoint(folder)
    averaged = {k.removeprefix("module."): v for k, v in content["average"].items()}
    assert all(torch.equal(value, averaged[name]) for name, value in content["model"].items())
    assert not equal(content["model"], content["module"])
    validated = run_script(
        *("validated", "--phase", "validation"), *("--pretrained", str(folder / "checkpoint.pth"))
    )
    assert read_result(validated)["val"] == read_result(folder)["val"]


@pytest.mark.parametrize(
    ("method", "budget"),
    [
        ("pact2", ("--size_budget", "0.7", "--mac_budget", "0.9")),
        ("pact2", ("--size_budget", "0.7", "--mac_budget", "0.9", "--ptq", "fast")),
        ("ptc_fx", ("--accuracy_budget", "50")),
    ],
)
def test_bits_are_chosen_for_a_budget_then_validated(run_script, float_run, method, budget):
    common = ("--quantize", "True", "--quantize_method", method)
    folder = run_script(
        *("bits", *common, "--phase", "calibration", *budget), *("--pretrained", str(float_run))
    )
    found = MixedPrecision.load(folder / "bit_widths.json")
    assert set(found.chosen) == {"features.0", "features.3", "classifier"}
    weights, macs = (
        sum(getattr(layer, name) for layer in found.sensitivities)
        for name in ("num_weights", "num_macs")
    )
    if budget[0] == "--size_budget":
        assert found.num_bytes <= 0.7 * weights
        assert found.mac_bits <= 0.9 * 8 * macs
    else:
        assert set(found.chosen.values()) == {4}  # anything goes
    assert "bits on average" in (folder / "run.log").read_text()
    validated = run_script(
        *("validated", *common, "--phase", "validation", "--verify", "True"),
        *("--pretrained", str(folder / "checkpoint.pth")),
    )
    result = read_result(validated)
    assert result["val"] == read_result(folder)["val"]
    assert set(result["verify"]["mismatches"].values()) == {0}


@pytest.mark.parametrize("method", ["pact2", "ptc_fx"])
def test_post_training_methods_then_validation(run_script, float_run, method):
    common = ("--quantize", "True", "--quantize_method", method)
    folder = run_script(
        "ptq", *common, "--phase", "calibration", "--ptq", "fast", "--pretrained", str(float_run)
    )
    result = read_result(folder)
    assert result["epochs"] == 1
    plain, *tried = [gain["method"] for gain in result["post_training"]]
    assert tried[:2] == ["activation_ranges + biases", "equalization + activation_ranges + biases"]
    assert all(name.endswith(" + least_squares") for name in tried[2:])
    assert len(tried) > 2
    assert plain == "plain"
    assert "activation_ranges" in (folder / "run.log").read_text()
    assert result["val"]["top1"] >= read_result(float_run.parent)["val"]["top1"] - 10
    validated = run_script(
        *("validated", *common, "--phase", "validation"),
        *("--pretrained", str(folder / "checkpoint.pth")),
    )
    assert read_result(validated)["val"] == result["val"]


def test_max_drop_calibrates_as_far_as_it_takes(run_script, float_run):
    common = ("--quantize", "True", "--phase", "calibration", "--pretrained", str(float_run))
    folder = run_script("drop", *common, "--max_drop", "100")
    result = read_result(folder)
    assert list(result["drops"]) == ["plain"]
    assert "'plain' suffices" in (folder / "run.log").read_text()
    validated = run_script(
        *("validated", "--quantize", "True", "--phase", "validation"),
        *("--pretrained", str(folder / "checkpoint.pth")),
    )
    assert read_result(validated)["val"] == result["val"]


def test_calibration_does_not_touch_labels_or_batch_norm(run_script, float_run):
    folder = run_script("c", "--phase", "calibration", "--pretrained", str(float_run))
    before, after = load_checkpoint(float_run)["model"], load_checkpoint(folder)["model"]
    for name in ("running_mean", "running_var"):
        assert torch.equal(before[f"features.1.{name}"], after[f"features.1.{name}"])
    assert not load_checkpoint(folder)["optimizer"]["state"]


@pytest.mark.parametrize(
    "more",
    [
        ("--bitwidth_weights", "3"),
        ("--bitwidth_activations", "4"),
        ("--per_channel_q", "all"),
        ("--constrain_bias", "REDUCE_WEIGHT_SCALE", "--bitwidth_weights", "12"),
        ("--bias_calibration", "False", "--bitwidth_weights", "3"),
    ],
)
def test_quantization_options_have_an_effect(run_script, float_run, more):
    common = ("--phase", "calibration", "--pretrained", str(float_run), "--epochs", "1")
    plain = run_script("plain", *common, *(more[2:] if more[0] == "--bias_calibration" else ()))
    changed = run_script("changed", *common, *more)
    assert read_result(plain)["val"]["loss"] != read_result(changed)["val"]["loss"]


def test_float_validation_of_a_checkpoint(run_script, float_run):
    validated = run_script("v", "--phase", "validation", "--pretrained", str(float_run))
    assert read_result(validated)["val"] == read_result(float_run.parent)["val"]


def test_quantized_training_starts_from_the_float_weights(run_script, float_run):
    folder = run_script(
        *("qat", "--quantize", "True", "--pretrained", str(float_run), "--lr", "1e-4"),
        *("--evaluate_start", "True"),
    )
    result = read_result(folder)
    assert result["start"]["loss"] == pytest.approx(read_result(float_run.parent)["val"]["loss"])
    assert result["val"]["top1"] >= read_result(float_run.parent)["val"]["top1"] - 10
    assert (folder / "report.txt").exists()


def test_skipped_images_are_counted(arguments, image_folder, tmp_path):
    copy = tmp_path / "images"
    subprocess.run(["cp", "-r", str(image_folder), str(copy)], check=True)
    for split in ("train", "val"):
        (copy / split / "red" / "1.png").write_bytes(b"no image")
    common = [*arguments, "--data_path", str(copy), "--epochs", "1", "--batch_size", "12"]
    with pytest.raises(SystemExit, match=r"error: Can't read image '.*red/1\.png'"):
        train_classification_main.main([*common, "--save_path", str(tmp_path / "stopped")])
    folder = tmp_path / "skipped"
    train_classification_main.main(
        [*common, "--save_path", str(folder), "--skip_unreadable_images", "True"]
    )
    log = (folder / "run.log").read_text()
    assert "1 unreadable images skipped of 36" in log
    assert "1 unreadable images skipped of 15" in log
    assert str(copy / "val" / "red" / "1.png") in log


def test_errors_come_as_one_line(run_script, float_run, tmp_path, image_folder):
    cases = {
        r"error: Data folder .*nowhere' does not exist": ("--data_path", str(tmp_path / "nowhere")),
        r"error: There is no model 'tinny'": ("--model_name", "tinny"),
        r"error: Unknown data set 'image_folder'": ("--dataset_name", "image_folder"),
        r"error: There is no checkpoint file": ("--pretrained", str(tmp_path / "none.pth")),
        r"error: No checkpoint '.*checkpoint.pth' to resume": ("--resume", str(tmp_path)),
        r"error: Unknown augmentation 'best'": ("--auto_augment", "best"),
        r"error: warmup_epochs is 9": ("--warmup_epochs", "9"),
        r"error: .*already holds a run": ("--save_path", str(float_run.parent)),
        r"error: .*is another run \(--strides None -> \[1\]\)": (
            *("--resume", str(float_run), "--epochs", "8", "--strides", "1"),
        ),
    }
    for message, more in cases.items():
        with pytest.raises(SystemExit, match=message):
            run_script("run", *more)


def test_gpu_that_is_not_there(run_script):
    missing = str(torch.cuda.device_count() + 3)
    with pytest.raises(SystemExit, match=rf"error: --gpus {missing}: there is no GPU {missing}"):
        run_script("run", "--gpus", missing)


def test_strides_of_a_model_without(run_script):
    with pytest.raises(SystemExit, match=r"error: --strides: model 'torchvision/alexnet' has none"):
        run_script("run", "--model_name", "torchvision/alexnet", "--strides", "1", "2")


def test_pretrained_of_another_model(run_script, tmp_path):
    """The mistake in a documented command: ResNet-50 weights for MobileNetV2."""
    from edgeailite.models import create_model

    path = tmp_path / "resnet.pth"
    torch.save(create_model("resnet18_x1", num_classes=3).state_dict(), path)
    more = ("--model_name", "mobilenetv2_tv_x1", "--phase", "calibration")
    with pytest.raises(SystemExit, match=r"does not give weights for --model_name mobilenetv2_tv"):
        run_script("run", *more, "--pretrained", str(path))


def test_pretrained_that_hardly_fits(run_script, float_run, tmp_path):
    weights = load_checkpoint(float_run)["model"]
    path = tmp_path / "part.pth"
    torch.save({"classifier.bias": weights["classifier.bias"]}, path)
    with pytest.raises(SystemExit, match=r"looks like the checkpoint of another model: only 1"):
        run_script("run", "--pretrained", str(path))


def test_pretrained_of_other_classes(run_script, float_run, tmp_path):
    weights = load_checkpoint(float_run)["model"]
    weights["classifier.weight"] = torch.zeros(5, 16)
    weights["classifier.bias"] = torch.zeros(5)
    path = tmp_path / "five.pth"
    torch.save(weights, path)
    with pytest.raises(SystemExit, match=r"leaves 2 tensors of 'tiny' at random.*data set's cl"):
        run_script("v", "--phase", "validation", "--pretrained", str(path))
    folder = run_script("t", "--pretrained", str(path), "--epochs", "1")
    assert "2 of another shape" in (folder / "run.log").read_text()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "truncated"])
def test_pretrained_unreadable(run_script, float_run, tmp_path, content):
    path = tmp_path / "broken.pth"
    path.write_bytes(float_run.read_bytes()[:2000] if content == "truncated" else content)
    with pytest.raises(SystemExit, match=r"error: --pretrained .*broken\.pth does not give"):
        run_script("run", "--pretrained", str(path))


def test_diverged_training_stops(run_script):
    with pytest.raises(SystemExit, match=r"error: The loss became .* training diverged.*--lr"):
        run_script("run", "--lr", "1e38", "--epochs", "3")


@pytest.mark.slow
def test_two_processes_train_as_one(arguments, run_script, tmp_path):
    """Both start from the same weights and see the same images; BN statistics stay frozen."""
    more = ["--model_name", "mobilenetv1_x0p25", "--freeze_bn", "True", "--epochs", "1"]
    more += ["--batch_size", "12", "--rand_crop", "False", "--rand_flip", "False"]
    one, two = run_script("one", *more), tmp_path / "two"
    double = [*IN_TWO_PROCESSES, str(SCRIPT), *arguments, *more, "--save_path", str(two)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(double, check=True, capture_output=True, env=environment)
    a, b = load_checkpoint(one), load_checkpoint(two)
    for name, value in a["model"].items():
        torch.testing.assert_close(b["model"][name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert a["history"][0]["val_loss"] == pytest.approx(b["history"][0]["val_loss"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_run_computes_what_an_eager_one_does(run_script, float_run):
    """Training differs by the draws of dropout, validation by rounding alone."""
    validation = ("--phase", "validation", "--pretrained", str(float_run), "--compile", "True")
    expected = read_result(float_run.parent)["val"]["loss"]
    assert read_result(run_script("v", *validation))["val"]["loss"] == pytest.approx(
        expected, rel=1e-3
    )
    eager = read_result(run_script("eager", "--epochs", "1"))["history"][0]
    compiled = read_result(run_script("compiled", "--epochs", "1", "--compile", "True"))["history"][
        0
    ]
    assert compiled["train_loss"] == pytest.approx(eager["train_loss"], rel=0.1)


@forks
@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "method"),
    [("training", "pact2"), ("calibration", "pact2"), ("training", "qat_fx")],
)
def test_two_processes_quantize(arguments, float_run, tmp_path, phase, method):
    more = ["--phase", phase, "--quantize", "True", "--pretrained", str(float_run)]
    more += ["--quantize_method", method]
    if method == "qat_fx":
        more += ["--learned_ranges", "all", "--damping", "0.1", "--distillation", "0.5"]
        more += ["--freeze_oscillations", "0.01"]
        more += ["--weight_averaging", "0.5", "--reestimate_bn", "1"]
    command = [*arguments, *more, "--epochs", "2", "--lr", "0.001"]
    command += ["--save_path", str(tmp_path / "run")]
    run_in_two_processes(train_classification_main.main, command)
    before = read_result(float_run.parent)["val"]["top1"]
    assert read_result(tmp_path / "run")["val"]["top1"] >= before - 10
