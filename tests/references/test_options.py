import dataclasses
import json
import shlex
from functools import partial

import pytest

from edgeailite.quantization import QConfigType
from references.edgeailite.engine import options as options_module
from references.edgeailite.engine.options_classification import ClassificationOptions

parse_options = partial(options_module.parse_options, ClassificationOptions)

SEED_COMMANDS = [
    "--dataset_name image_folder_classification --model_name mobilenetv2_tv_x1 "
    "--data_path ./data/datasets/image_folder_classification "
    "--pretrained https://download.pytorch.org/models/mobilenet_v2-b0353104.pth --batch_size 64 "
    "--quantize True --epochs 50 --epoch_size 0.1 --lr 1e-5 --evaluate_start False",
    "--phase calibration --dataset_name image_folder_classification "
    "--model_name mobilenetv2_tv_x1 --data_path ./data/datasets/image_folder_classification "
    "--pretrained https://download.pytorch.org/models/mobilenet_v2-b0353104.pth --batch_size 64 "
    "--quantize True --epochs 1 --epoch_size 0.1",
    "--phase calibration --dataset_name image_folder_classification "
    "--model_name mobilenetv2_tv_x1 --data_path ./data/datasets/image_folder_classification "
    "--pretrained https://download.pytorch.org/models/resnet50-19c8e357.pth --batch_size 64 "
    "--quantize True --epochs 1 --epoch_size 0.1",
]


@pytest.mark.parametrize("command", SEED_COMMANDS)
def test_documented_commands_parse(command):
    words = shlex.split(command)
    options = parse_options(words)
    given = dict(zip(words[::2], words[1::2], strict=True))
    for name, value in given.items():
        parsed = getattr(options, name.removeprefix("--"))
        if isinstance(parsed, float):
            assert parsed == float(value)
        else:
            assert str(parsed) == value.removeprefix("./")


@pytest.mark.parametrize("words", ["--img_resize 384 768", "--img-resize 384 768"])
def test_underscores_and_dashes(words):
    assert parse_options(words.split()).img_resize == (384, 768)


@pytest.mark.parametrize("name", ["auto_augment", "auto-augment", "auto_augument", "auto-augument"])
def test_auto_augment_spellings(name):
    assert parse_options([f"--{name}", "svhn"]).auto_augment == "svhn"


@pytest.mark.parametrize(("word", "value"), [("True", True), ("false", False), ("true", True)])
def test_switches_take_words(word, value):
    assert parse_options(["--rand_flip", word]).rand_flip is value


def test_lists():
    options = parse_options(
        ["--gpus", "0", "1", "--strides", "1", "1", "1", "2", "2", "--milestones", "3", "5"]
    )
    assert (options.gpus, options.strides) == ((0, 1), (1, 1, 1, 2, 2))
    assert parse_options(["--gpus"]).gpus == ()
    assert parse_options([]).gpus is None


def test_documented_defaults():
    options = ClassificationOptions()
    assert (options.optimizer, options.lr, options.weight_decay) == ("sgd", 0.1, 4e-5)
    assert (options.batch_size, options.epochs, options.warmup_epochs) == (512, 150, 5)
    assert (options.scheduler, options.img_resize, options.img_crop) == ("cosine", (256,), (224,))


@pytest.mark.parametrize(("phase", "expected"), [("training", False), ("calibration", True)])
def test_quantize_by_phase(phase, expected):
    assert ClassificationOptions(phase=phase, pretrained="x").quantize is expected


def test_step_scheduler_default_milestones():
    assert ClassificationOptions(scheduler="step", epochs=30).milestones == (10, 20)
    assert ClassificationOptions(epochs=30).milestones is None


def test_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ClassificationOptions().lr = 1.0


def test_to_json_round_trip():
    options = ClassificationOptions(gpus=(0, 1), pretrained="a.pth", quantize=True)
    content = json.loads(options.to_json())
    assert content == options.to_dict()
    assert content["gpus"] == [0, 1]
    assert set(content) == {field.name for field in dataclasses.fields(options)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, r"--epochs must be at least 1, got 0"),
        ({"batch_size": -1}, r"--batch_size must be at least 1, got -1"),
        ({"epoch_size": -0.5}, r"--epoch_size must be at least 0\.0, got -0\.5"),
        ({"random_erasing": 1.5}, r"--random_erasing is a share between 0 and 1, got 1\.5"),
        ({"label_smoothing": -0.1}, r"--label_smoothing is a share"),
        ({"img_crop": (1, 2, 3)}, r"--img_crop takes one or two positive numbers.*\[1, 2, 3\]"),
        ({"img_resize": (0,)}, r"--img_resize takes one or two positive numbers"),
        ({"rand_scale": (0.9, 0.1)}, r"--rand_scale takes two fractions.*got 0\.9 0\.1"),
        ({"image_mean": (0.0,)}, r"--image_mean has 1 values and --image_scale 3"),
        ({"phase": "calibration"}, r"--phase calibration needs a trained model.*--pretrained"),
        ({"phase": "validation"}, r"--phase validation needs a trained model"),
        ({"phase": "calibration", "quantize": False}, r"leaves nothing to calibrate"),
        ({"phase": "validation", "resume": "x"}, r"--resume continues a training or calibration"),
        ({"learned_ranges": "all"}, r"--learned_ranges is of quantized training"),
        (
            {"distillation": 2.0, "quantize": True},
            r"distillation is 2\.0; allowed: 0 \(none\) to 1",
        ),
        (
            {"weight_averaging": 0.9, "phase": "validation", "pretrained": "x"},
            r"--weight_averaging 0\.9 is of training",
        ),
        ({"weight_averaging": 1.0}, r"--weight_averaging is the part that stays .* got 1\.0"),
        ({"reestimate_bn": -1, "quantize": True}, r"--reestimate_bn must be at least 0, got -1"),
        ({"bit_widths": "x"}, r"--bit_widths has no effect in float: add --quantize True"),
        ({"size_budget": 0.5}, r"--size_budget chooses bits on data: use --phase calibration"),
        (
            {"phase": "calibration", "pretrained": "x", "size_budget": 0.5, "bit_widths": "x"},
            r"--bit_widths names the bits and --size_budget chooses them",
        ),
        (
            {"phase": "calibration", "pretrained": "x", "mac_budget": 1, "accuracy_budget": 1},
            r"--mac_budget, --accuracy_budget: --accuracy_budget finds the smallest size",
        ),
        (
            {"phase": "calibration", "pretrained": "x", "mac_budget": 0.0},
            r"--mac_budget: a budget is above 0, got 0\.0",
        ),
        ({"ptq": ("fast",)}, r"--ptq fast is a way to calibrate: add --phase calibration"),
        ({"ptq": ("fast", "biases")}, r"--ptq fast biases: .* allowed: 'fast', 'best', or methods"),
        ({"ptq": ("equalization", "biases")}, r"without 'activation_ranges'"),
        (
            {"ptq": ("fast",), "phase": "calibration", "pretrained": "x", "bias_calibration": True},
            r"--bias_calibration has no effect with --ptq fast",
        ),
        ({"max_drop": 1.0}, r"--max_drop 1\.0 is a way to calibrate: add --phase calibration"),
        ({"max_drop": -1.0}, r"--max_drop -1\.0: it is 0 or above"),
        ({"max_drop": 1.0, "ptq": ("fast",)}, r"--max_drop chooses what --ptq tells"),
        ({"max_drop": 1.0, "size_budget": 0.5}, r"--max_drop chooses what --size_budget tells"),
        ({"verify": True}, r"--verify compares quantized models: add --quantize True"),
        (
            {"quantize": True, "qconfig_type": "WC4_AT8"},
            r"--qconfig_type WC4_AT8 is a preset of --quantize_method qat_fx and ptc_fx: name one",
        ),
        (
            {"quantize_method": "qat_fx"},
            r"--quantize_method qat_fx has no effect in float: add --quantize True",
        ),
        (
            {"quantize_method": "ptc_fx", "quantize": True},
            r"ptc_fx calibrates and does not train: use --phase calibration, or .* qat_fx to train",
        ),
        (
            {"quantize_method": "qat_fx", "quantize": True, "bitwidth_weights": 4},
            r"--bitwidth_weights of pact2 has no effect with .* qat_fx: .*--qconfig_type \(WC8_AT8",
        ),
    ],
)
def test_options_that_cannot_work(changes, message):
    with pytest.raises(ValueError, match=message):
        ClassificationOptions(**changes)


@pytest.mark.parametrize("preset", QConfigType.choices())
def test_every_preset_is_a_choice(preset):
    words = ["--quantize", "True", "--quantize_method", "qat_fx", "--qconfig-type", preset]
    options = parse_options(words)
    assert (options.quantize_method, options.qconfig_type) == ("qat_fx", preset)


def test_unknown_preset(capsys):
    with pytest.raises(SystemExit):
        parse_options(["--quantize_method", "qat_fx", "--qconfig_type", "WC3_AT8"])
    assert "WC8P2_AT8P2" in capsys.readouterr().err


def test_parse_options_prints_the_mistake(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_options(["--epochs", "0"])
    assert stop.value.code == 2
    assert "--epochs must be at least 1, got 0" in capsys.readouterr().err


def test_parse_options_unknown_name_gives_the_nearest(capsys):
    with pytest.raises(SystemExit):
        parse_options(["--batchsize", "8"])
    assert "--batch-size" in capsys.readouterr().err
