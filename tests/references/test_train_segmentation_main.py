import itertools
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from edgeailite.models import create_model
from references.edgeailite.engine.run_folder import load_checkpoint
from references.edgeailite.scripts import train_segmentation_main
from tests.references.helpers import (
    assert_same_run,
    forks,
    read_result,
    run_in_two_processes,
    start,
)

SCRIPT = Path(train_segmentation_main.__file__)
# As printed in the documents of the project, but for --gpus and the line breaks.
QAT_COMMAND = (
    "--dataset_name cityscapes_segmentation --model_name deeplabv3plus_mobilenetv2_tv_edgeailite "
    "--data_path ./data/datasets/cityscapes/data --img_resize 384 768 --output_size 1024 2048 "
    "--pretrained ./data/modelzoo/pytorch/semantic_segmentation/cityscapes/jacinto_ai/"
    "deeplabv3plus_edgeailite_mobilenetv2_tv_resize768x384_best.pth.tar "
    "--batch_size 6 --quantize True --epochs 50 --lr 1e-5 --evaluate_start False"
)
CALIBRATION_COMMAND = (
    "--phase calibration --dataset_name cityscapes_segmentation "
    "--model_name deeplabv3plus_edgeailite_mobilenetv2_tv "
    "--data_path ./data/datasets/cityscapes/data --img_resize 384 768 --output_size 1024 2048 "
    "--pretrained ./data/modelzoo/pytorch/semantic_segmentation/cityscapes/jacinto_ai/"
    "deeplabv3plus_edgeailite_mobilenetv2_tv_resize768x384_best.pth "
    "--batch_size 12 --quantize True --epochs 1"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def float_run(trained, run_segmentation):
    """Checkpoint of a float run, made once."""
    folder = trained / "float"
    if not folder.exists():
        shutil.copytree(run_segmentation("float", "--epochs", "16"), folder)
    return folder / "checkpoint.pth"


def test_training_learns_and_writes_a_run_folder(run_segmentation):
    folder = run_segmentation(
        "run", "--epochs", "16", "--save_onnx", "True", "--evaluate_start", "True"
    )
    result = read_result(folder)
    assert result["start"]["miou"] + 10 < result["val"]["miou"]
    assert result["best_miou"] == max(row["val_miou"] for row in result["history"])
    assert result["val"]["iou"]["train"] is None
    assert result["val"]["iou"]["road"] > 40
    log = (folder / "run.log").read_text()
    assert "epoch 16/16" in log
    assert "- (does not occur)" in log
    assert "mean of those that occur" in log
    assert result["onnx_bytes"] == (folder / "model.onnx").stat().st_size
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert "val/miou" in events.Tags()["scalars"]
    picture = events.Images("val/input_target_prediction")[-1]
    assert (picture.width, picture.height) == (3 * 32, 4 * 16)


@pytest.mark.parametrize(
    "more",
    [
        ("--class_weights", "True"),
        ("--rand_scale", "0.5", "1.0"),
        ("--rand_rotation", "20"),
        ("--rand_crop", "False"),
        ("--rand_flip", "False"),
        ("--img_crop", "8", "16"),
        ("--optimizer", "sgd"),
        ("--scheduler", "poly"),
        ("--milestones", "1", "2"),
        ("--gamma", "0.9"),
        ("--input_channel_reverse", "True"),
        ("--epoch_size", "4"),
        ("--enable_fp16", "True"),
        ("--freeze_bn", "True"),
    ],
)
def test_every_option_changes_the_weights(run_segmentation, trained, more):
    reference = trained / "reference"
    if not reference.exists():
        shutil.copytree(run_segmentation("reference"), reference)
    changed = load_checkpoint(run_segmentation("changed", *more))["model"]
    weights = load_checkpoint(reference)["model"]
    assert any(not torch.equal(changed[name], weights[name]) for name in weights)
    assert all(bool(value.isfinite().all()) for value in changed.values())


def test_validation_at_another_size(run_segmentation, float_run):
    common = ("--phase", "validation", "--pretrained", str(float_run))
    at_targets = read_result(run_segmentation("targets", *common))["val"]
    at_32 = read_result(run_segmentation("32", *common, "--output_size", "32", "64"))["val"]
    at_16 = read_result(run_segmentation("16", *common, "--output_size", "16", "32"))["val"]
    assert at_targets == at_32 == read_result(float_run.parent)["val"]
    assert at_16["miou"] != at_targets["miou"]


@pytest.mark.parametrize(
    "more",
    [
        ("--phase", "calibration", "--epochs", "1"),
        ("--quantize", "True", "--lr", "1e-4", "--epochs", "2"),
        ("--phase", "calibration", "--quantize_method", "ptc_fx", "--epochs", "1",
         "--qconfig_type", "WC8SYMP2_AT8SYMP2"),
        ("--quantize", "True", "--quantize_method", "qat_fx", "--lr", "1e-4", "--epochs", "2",
         "--qconfig_type", "WC8SYMP2_AT8SYMP2"),
    ],
    ids=["pact2 calibration", "pact2 training", "ptc_fx", "qat_fx"],
)  # fmt: skip
def test_quantized_run_then_validation(run_segmentation, float_run, more):
    folder = run_segmentation("quantized", *more, "--pretrained", str(float_run))
    before, after = read_result(float_run.parent)["val"], read_result(folder)["val"]
    assert after["miou"] > before["miou"] - 5
    assert (folder / "report.html").exists()
    with Image.open(folder / "predictions.png") as picture:
        assert picture.width > picture.height > 100
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert "val/float_and_quantized" in events.Tags()["images"]
    fx = {"--quantize_method", "--qconfig_type"}
    method = [word for pair in itertools.pairwise(more) if pair[0] in fx for word in pair]
    validated = run_segmentation(
        *("validated", "--phase", "validation", "--quantize", "True", "--verify", "True", *method),
        *("--save_onnx", "True", "--export_argmax", "True"),
        *("--pretrained", str(folder / "checkpoint.pth")),
    )
    result = read_result(validated)
    assert result["val"] == after
    assert result["verify"]["num_values"] == 5 * 19 * 16 * 32
    assert set(result["verify"]["mismatches"].values()) == {0}
    assert result["verify_argmax"] == {"num_pixels": 5 * 16 * 32, "mismatches": 0}
    assert result["onnx"] == result["val"]


def test_weights_of_a_classifier_start_the_encoder(run_segmentation, tmp_path):
    from edgeailite.models import registry

    encoder = registry._BUILDERS["tiny_segmentation"]().encoder
    with torch.no_grad():
        encoder[0].weight.fill_(0.25)
    torch.save(encoder.state_dict(), tmp_path / "weights.pth")
    folder = run_segmentation(
        "run", "--pretrained", str(tmp_path / "weights.pth"), "--lr", "1e-9", "--epochs", "1"
    )
    weights = load_checkpoint(folder)["model"]["encoder.0.weight"]
    assert torch.allclose(weights, torch.tensor(0.25))
    assert "their names changed to the model's" in (folder / "run.log").read_text()
    with pytest.raises(SystemExit, match=r"leaves 2 tensors of 'tiny_segmentation' at random"):
        run_segmentation(
            "c", "--phase", "calibration", "--pretrained", str(tmp_path / "weights.pth")
        )


@forks
@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.15, 0.85])
def test_killed_process_resumes_to_the_same_weights(
    segmentation_arguments, run_segmentation, tmp_path, trained, moment
):
    """SIGKILL at several points of the run, within an epoch and between two."""
    model = ("--model_name", "unet_aspp_mobilenetv2_tv_edgeailite", "--img_resize", "32", "64")
    more = [*model, "--epochs", "3"]
    whole, cut = trained / "whole", tmp_path / "cut"
    if not whole.exists():
        started = time.monotonic()
        run_segmentation(whole, *more)
        (trained / "seconds").write_text(str(time.monotonic() - started))
    command = [*segmentation_arguments, *more, "--save_path", str(cut)]
    killed = start(train_segmentation_main.main, command)
    while not (cut / "checkpoint.pth").exists():
        assert killed.is_alive()
        time.sleep(0.01)
    # The first of three epochs is done; of what is left, wait for a share.
    time.sleep(moment * float((trained / "seconds").read_text()) * 2 / 3)
    killed.kill()
    killed.join()
    if not (cut / "result.json").exists():
        run_segmentation(cut, *more, "--resume", str(cut))
    assert_same_run(whole, cut)


def test_the_script_is_a_program(tmp_path):
    command = [sys.executable, str(SCRIPT), "--help"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "--output-size" in done.stdout


@forks
@pytest.mark.slow
def test_two_processes_compute_what_one_does(segmentation_arguments, run_segmentation, tmp_path):
    model = ("--model_name", "deeplabv3plus_mobilenetv2_tv_edgeailite", "--img_resize", "32", "64")
    more = [*model, "--epochs", "1", "--freeze_bn", "True", "--rand_flip", "False"]
    more += ["--rand_crop", "False", "--rand_scale", "1", "1", "--lr", "1e-3"]
    one, two = run_segmentation("one", *more), tmp_path / "two"
    command = [*segmentation_arguments, *more, "--save_path", str(two)]
    run_in_two_processes(train_segmentation_main.main, command)
    alone, together = read_result(one)["val"], read_result(two)["val"]
    for name in ("loss", "miou", "accuracy"):
        assert together[name] == pytest.approx(alone[name], rel=1e-3)
    weights = load_checkpoint(two)["model"]
    for name, value in load_checkpoint(one)["model"].items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("command", [QAT_COMMAND, CALIBRATION_COMMAND], ids=["qat", "calibration"])
def test_printed_commands_run_in_a_folder_laid_out_as_they_say(
    street_scenes, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    shutil.copytree(street_scenes, tmp_path / words[words.index("--data_path") + 1])
    weights = tmp_path / words[words.index("--pretrained") + 1]
    weights.parent.mkdir(parents=True)
    state = create_model("deeplabv3plus_mobilenetv2_tv_edgeailite", num_classes=19).state_dict()
    torch.save({"state_dict": state}, weights)
    small = ("--epochs", "1", "--epoch_size", "2", "--epoch_size_val", "1", "--batch_size", "2")
    small += ("--img_resize", "32", "64", "--output_size", "32", "64", "--workers", "0", "--gpus")
    train_segmentation_main.main([*words, *small])
    (result,) = (tmp_path / "data/checkpoints/cityscapes_segmentation").rglob("result.json")
    assert json.loads(result.read_text())["val"]["miou"] >= 0.0
    assert (result.parent / "model.onnx").exists()


def test_errors_come_as_one_line(run_segmentation, tmp_path, street_scenes, image_folder):
    lacking = tmp_path / "lacking"
    shutil.copytree(street_scenes, lacking)
    targets = sorted((lacking / "gtFine/train/synthetic").iterdir())
    targets[3].unlink()
    wrong = tmp_path / "wrong"
    shutil.copytree(street_scenes, wrong)
    path = sorted((wrong / "gtFine/val/synthetic").iterdir())[0]
    Image.fromarray(np.full((32, 64), 77, np.uint8)).save(path)
    smaller = tmp_path / "smaller"
    shutil.copytree(street_scenes, smaller)
    path = sorted((smaller / "gtFine/val/synthetic").iterdir())[0]
    Image.fromarray(np.full((16, 64), 7, np.uint8)).save(path)
    deeplab = ("--model_name", "deeplabv3plus_mobilenetv2_tv_edgeailite")
    cases = {
        r"error: No folder '.*nowhere/leftImg8bit/val'": ("--data_path", str(tmp_path / "nowhere")),
        r"error: 1 of 12 images have no target": ("--data_path", str(lacking)),
        r"error: Target .* has labels .* does not know: 77": ("--data_path", str(wrong)),
        r"error: Image .* is 32x64 .*, its target .* 16x64": ("--data_path", str(smaller)),
        r"error: Unknown data set 'cityscape'.* cityscapes_segm": ("--dataset_name", "cityscape"),
        r"error: There is no model 'deeplabv3_mobil.* deeplabv3plus_mobilenetv2_tv_edgeailite": (
            *("--model_name", "deeplabv3_mobilenetv2_edgeailite"),
        ),
        r"error: --img_resize: .*100x200 .*multiples of 16. The nearest: 96x192": (
            *deeplab, "--img_resize", "100", "200",
        ),
        r"error: --img_crop: .*multiples of 16": (*deeplab, "--img_crop", "20"),
        r"error: Model 'tiny' gives \(1, 19\), not logits \(1, 19, 16, 32\)": (
            *("--model_name", "tiny"),
        ),
        r"error: Data set 'image_folder_classification' has one class per image": (
            *("--dataset_name", "image_folder_classification", "--data_path", str(image_folder)),
        ),
    }  # fmt: skip
    for message, more in cases.items():
        with pytest.raises(SystemExit, match=message):
            run_segmentation("run", *more)


def test_data_set_without_historical_weights(run_segmentation, tmp_path):
    voc = tmp_path / "voc"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / name).mkdir(parents=True)
    Image.new("RGB", (32, 16)).save(voc / "JPEGImages" / "a.jpg")
    Image.fromarray(np.zeros((16, 32), np.uint8)).save(voc / "SegmentationClass" / "a.png")
    for split in ("train", "val"):
        (voc / "ImageSets/Segmentation" / f"{split}.txt").write_text("a\n")
    common = ("--dataset_name", "voc_segmentation", "--data_path", str(voc), "--batch_size", "1")
    with pytest.raises(SystemExit, match=r"error: --class_weights True: data set 'voc_segment"):
        run_segmentation("run", *common, "--class_weights", "True")
    folder = run_segmentation("plain", *common, "--epochs", "1")
    assert next(iter(read_result(folder)["val"]["iou"])) == "background"
