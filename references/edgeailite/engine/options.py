"""The options that all training scripts share: one frozen dataclass defines them."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import tyro

from edgeailite.quantization import QConfigType, TrainingMethods
from edgeailite.quantization.methods import METHODS, PLAIN, QUALITIES, LearnedRanges, methods_named

Phase = Literal["training", "calibration", "validation"]
Quality = Literal[(*QUALITIES, PLAIN, *METHODS)]  # type: ignore[valid-type]
PresetName = Literal[QConfigType.choices()]  # type: ignore[valid-type]

# Images that --ptq and --max_drop learn from, if --epoch_size does not say; all are in memory.
PTQ_IMAGES = 64
# Options that only one family of wrappers has.
PACT2_OPTIONS = ("bitwidth_weights", "bitwidth_activations", "per_channel_q", "constrain_bias")
# Options that only quantized training has.
METHOD_OPTIONS = ("freeze_midway", "learned_ranges", "damping", "distillation", "reestimate_bn")
METHOD_OPTIONS += ("freeze_oscillations",)
BUDGETS = ("size_budget", "mac_budget", "accuracy_budget")


@dataclasses.dataclass(frozen=True)
class Options:
    """What every training script takes; each script has a subclass with its defaults."""

    step_at: ClassVar[tuple[float, float]] = (1 / 3, 2 / 3)
    """Where the step scheduler's milestones are by default, as shares of the training."""
    step_factor: ClassVar[float] = 0.1
    """What it multiplies by there, by default."""

    phase: Phase = "training"
    """training: with labels and gradients; calibration: without; validation: accuracy alone."""
    quantize: bool | None = None
    """Simulate quantization. Default: True in calibration, False elsewhere."""

    dataset_name: str = ""
    """Name in edgeailite.datasets."""
    data_path: Path = Path("./data/datasets")
    """Folder of the data set."""
    rand_crop: bool = True
    """Train on random crops (False: on centre crops)."""
    rand_flip: bool = True
    """Mirror half of the training images, left to right (False for digits, text, signs)."""
    image_mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    """Subtracted from pixels 0..255, in the channel order that the model sees."""
    image_scale: tuple[float, ...] = (0.017125, 0.017507, 0.017429)
    """Multiplied afterwards."""
    input_channel_reverse: bool = False
    """Feed BGR instead of RGB."""
    epoch_size: float = 0.0
    """Training images per epoch, drawn anew: up to 1 a fraction, above a count, 0 all."""
    epoch_size_val: float = 0.0
    """Validation images, counted the same way; always the same ones, spread over the set."""
    skip_unreadable_images: bool = False
    """Leave out images that can't be decoded, and count them (False: stop at the first)."""
    workers: int = 4
    """Data loading processes per training process."""

    model_name: str = ""
    """Name in edgeailite.models."""
    pretrained: str | None = None
    """Checkpoint to start from: a path or an http(s) URL."""

    epochs: int = 150
    """Passes over the training images (of epoch_size)."""
    batch_size: int = 512
    """Images per step, all GPUs together."""
    optimizer: Literal["sgd", "sgd_nesterov", "adam", "rmsprop"] = "sgd"
    """sgd, sgd_nesterov and rmsprop use momentum 0.9."""
    lr: float = 0.1
    """Learning rate after warm-up."""
    weight_decay: float = 4e-5
    """L2 penalty on all parameters."""
    scheduler: Literal["cosine", "step", "poly", "exponential"] = "cosine"
    """How the learning rate falls after warm-up."""
    milestones: tuple[int, ...] | None = None
    """Epochs at which the step scheduler multiplies by gamma. Default: two, spread over them."""
    gamma: float | None = None
    """Factor of the step scheduler, or per epoch of the exponential one (default 0.97)."""
    warmup_epochs: int | None = None
    """Epochs in which the learning rate rises. Default: 5, at most a tenth of the training."""
    freeze_bn: bool = False
    """Keep the statistics of batch normalization as they are from the first epoch on."""
    evaluate_start: bool = True
    """Validate once before the first epoch."""

    quantize_method: Literal["pact2", "qat_fx", "ptc_fx"] = "pact2"
    """pact2: power-of-two scales; qat_fx trains, ptc_fx calibrates a preset of qconfig_type."""
    qconfig_type: PresetName | None = None
    """Preset of qat_fx and ptc_fx: W weights, A activations. Default: WC8_AT8."""
    bitwidth_weights: int = 8
    """Bits of a weight."""
    bitwidth_activations: int = 8
    """Bits of an activation."""
    per_channel_q: Literal["False", "True", "all"] = "False"
    """Weight scales per channel: False nowhere, True in depthwise convolutions, all everywhere."""
    bias_calibration: bool | None = None
    """Correct biases towards the float model's means. Default: True in calibration only."""
    ptq: tuple[Quality, ...] | None = None
    """Calibrate on 64 images (or epoch_size) at once: fast, best, or methods in their order."""
    max_drop: float | None = None
    """Calibrate until so many percent of decisions at most change: plain, fast, best, 16 bits."""
    constrain_bias: Literal["NONE", "SATURATE", "REDUCE_WEIGHT_SCALE"] | None = None
    """What happens to a bias too large for its accumulator. Default: the wrapper's."""
    bit_widths: Path | None = None
    """Bits of single layers: a bit_widths.json that a budget below wrote."""
    size_budget: float | None = None
    """Calibration: 16, 8 or 4 bits per layer; all weights within this share of their size in 8."""
    mac_budget: float | None = None
    """Likewise: multiply-accumulates times weight bits, as a share of those with 8 bits."""
    accuracy_budget: float | None = None
    """Likewise: the smallest weights with which validation falls by at most so many points."""

    freeze_midway: bool = True
    """Quantized training: freeze batch norm and ranges around its middle (False: never)."""
    learned_ranges: LearnedRanges = "none"
    """Quantized training: ranges that the gradient moves (steps, or power-of-two thresholds)."""
    damping: float = 0.0
    """Quantized training: how strongly weights are drawn to their grid points towards the end."""
    freeze_oscillations: float = 0.0
    """Quantized training: jumps to and fro per step above which weights are frozen, at the end."""
    distillation: float = 0.0
    """Quantized training: share of the gradient from being like the float model, 0 to 1."""
    distillation_temperature: float = TrainingMethods.temperature
    """What the class scores of both are divided by there."""
    weight_averaging: float = 0.0
    """Validate and save an exponential average of the weights: its decay per step; 0: none."""
    reestimate_bn: int = 0
    """Quantized training: batches on which batch norm is measured anew before each validation."""

    save_path: Path | None = None
    """Run folder. Default: data/checkpoints/DATASET/MODEL/TIME_PHASE."""
    resume: Path | None = None
    """Checkpoint or run folder to continue from; the same options give the same final weights."""
    save_onnx: bool = True
    """Export model.onnx at the end (quantized: integers with QuantizeLinear/DequantizeLinear)."""
    verify: bool = False
    """Compare the quantized model, its integer graph and ONNX Runtime on all validation images."""

    gpus: tuple[int, ...] | None = None
    """GPU numbers, one process each. No number: CPU. Default: GPU 0 if there is one."""
    enable_fp16: bool = False
    """Mixed precision: float16 on a GPU, bfloat16 on a CPU."""
    compile: bool = False
    """Compile the training and validation steps with torch.compile."""
    seed: int = 1
    """Seed of initial weights, image order and augmentation."""

    def __post_init__(self) -> None:
        """Fill in what depends on the phase and refuse what can't work."""
        if self.quantize is None:
            object.__setattr__(self, "quantize", self.phase == "calibration")
        if self.warmup_epochs is None:
            object.__setattr__(self, "warmup_epochs", min(5, self.epochs // 10))
        if self.scheduler == "step":
            if self.milestones is None:
                steps = tuple(max(1, int(self.epochs * share)) for share in self.step_at)
                object.__setattr__(self, "milestones", steps)
            if self.gamma is None:
                object.__setattr__(self, "gamma", self.step_factor)
        checks = (_check_numbers, _check_phase, _check_quantization, _check_ptq)
        for check in (*checks, _check_methods, _check_budgets):
            check(self)
        if self.calibrates_at_once:
            object.__setattr__(self, "epochs", 1)
            if not self.epoch_size:
                object.__setattr__(self, "epoch_size", float(PTQ_IMAGES))

    @property
    def calibrates_at_once(self) -> bool:
        """True if calibration works on all its images at once."""
        return self.ptq is not None or self.max_drop is not None

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the model's input, in pixels."""
        raise NotImplementedError

    @property
    def methods(self) -> TrainingMethods:
        """What quantized training does beyond the plain estimator."""
        return TrainingMethods(
            self.learned_ranges,
            self.damping,
            self.distillation,
            self.distillation_temperature,
            self.freeze_oscillations,
        )

    @property
    def budgets(self) -> dict[str, float]:
        """What the bits of single layers are chosen for; empty: nothing is chosen."""
        given = {name: getattr(self, name) for name in BUDGETS}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def model_options(self) -> dict[str, Any]:
        """Further arguments of the model's builder."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Options as plain values: paths are strings, tuples lists."""
        return {
            key: str(value)
            if isinstance(value, Path)
            else list(value)
            if isinstance(value, tuple)
            else value
            for key, value in dataclasses.asdict(self).items()
        }

    def to_json(self) -> str:
        """The resolved options, one per line."""
        lines = (f'  "{name}": {json.dumps(value)}' for name, value in self.to_dict().items())
        return "{\n" + ",\n".join(lines) + "\n}\n"


def _check_numbers(options: Options) -> None:
    at_least = {"epochs": 1, "batch_size": 1, "workers": 0, "warmup_epochs": 0, "lr": 0.0}
    at_least |= {"weight_decay": 0.0, "epoch_size": 0.0, "epoch_size_val": 0.0}
    for name, lowest in at_least.items():
        value = getattr(options, name)
        if value < lowest:
            raise ValueError(f"--{name} must be at least {lowest}, got {value}.")
    if len(options.image_mean) != len(options.image_scale):
        raise ValueError(
            f"--image_mean has {len(options.image_mean)} values and --image_scale "
            f"{len(options.image_scale)}; both take one per channel."
        )


def _check_phase(options: Options) -> None:
    if options.phase == "calibration" and not options.quantize:
        raise ValueError(
            "--phase calibration quantizes a float model; --quantize False leaves nothing to "
            "calibrate. Leave it out, or use --phase validation for the float accuracy."
        )
    if options.phase != "training" and options.pretrained is None and options.resume is None:
        raise ValueError(
            f"--phase {options.phase} needs a trained model: pass --pretrained PATH_OR_URL."
        )
    if options.phase == "validation" and options.resume is not None:
        raise ValueError(
            "--resume continues a training or calibration; "
            "to validate its checkpoint pass --pretrained."
        )
    if options.verify and not options.quantize:
        raise ValueError("--verify compares quantized models: add --quantize True.")


def _check_quantization(options: Options) -> None:
    """Refuse what would have no effect: each method has its own options."""
    method, preset = options.quantize_method, options.qconfig_type
    if method == "pact2":
        if preset is not None:
            raise ValueError(
                f"--qconfig_type {preset} is a preset of --quantize_method qat_fx and ptc_fx: name "
                f"one of them. pact2 has {_listed(PACT2_OPTIONS)}."
            )
        return
    if not options.quantize:
        raise ValueError(f"--quantize_method {method} has no effect in float: add --quantize True.")
    if method == "ptc_fx" and options.phase == "training":
        raise ValueError(
            "--quantize_method ptc_fx calibrates and does not train: use --phase calibration, or "
            "--quantize_method qat_fx to train."
        )
    changed = _changed(options, PACT2_OPTIONS)
    if changed:
        raise ValueError(
            f"{_listed(changed)} of pact2 has no effect with --quantize_method {method}: choose a "
            f"preset with --qconfig_type ({', '.join(QConfigType.choices())})."
        )


def _changed(options: Options, names: Sequence[str]) -> list[str]:
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    return [name for name in names if getattr(options, name) != defaults[name]]


def _check_methods(options: Options) -> None:
    changed = _changed(options, METHOD_OPTIONS)
    if changed and not (options.phase == "training" and options.quantize):
        raise ValueError(
            f"{_listed(changed)} is of quantized training: use --phase training --quantize True."
        )
    if options.weight_averaging and options.phase != "training":
        raise ValueError(
            f"--weight_averaging {options.weight_averaging} is of training: use --phase training."
        )
    if not 0.0 <= options.weight_averaging < 1.0:
        raise ValueError(
            f"--weight_averaging is the part that stays in each step: 0 (none) or up to 1, not 1 "
            f"itself; got {options.weight_averaging}."
        )
    if options.reestimate_bn < 0:
        raise ValueError(f"--reestimate_bn must be at least 0, got {options.reestimate_bn}.")
    _ = options.methods  # refuses what is out of range


def _check_budgets(options: Options) -> None:
    budgets = options.budgets
    if options.bit_widths is not None and not options.quantize:
        raise ValueError("--bit_widths has no effect in float: add --quantize True.")
    if not budgets:
        return
    given = _listed(list(budgets))
    if options.phase != "calibration":
        raise ValueError(f"{given} chooses bits on data: use --phase calibration.")
    if options.bit_widths is not None:
        raise ValueError(f"--bit_widths names the bits and {given} chooses them: give one of them.")
    if "accuracy_budget" in budgets and len(budgets) > 1:
        raise ValueError(f"{given}: --accuracy_budget finds the smallest size, and stands alone.")
    if min(budgets.values()) <= 0:
        raise ValueError(f"{given}: a budget is above 0, got {min(budgets.values())}.")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"--{name}" for name in names)


def _check_ptq(options: Options) -> None:
    if not options.calibrates_at_once:
        return
    names = f"--max_drop {options.max_drop}"
    if options.ptq is not None:
        names = f"--ptq {' '.join(options.ptq)}"
        try:
            methods_named(options.ptq)
        except ValueError as error:
            raise ValueError(f"{names}: {error}") from error
    if options.max_drop is not None:
        given = ["ptq"] * (options.ptq is not None) + list(options.budgets)
        if given:
            raise ValueError(f"--max_drop chooses what {_listed(given)} tells: give one of them.")
        if options.max_drop < 0:
            raise ValueError(f"{names}: it is 0 or above.")
    if options.phase != "calibration":
        raise ValueError(f"{names} is a way to calibrate: add --phase calibration.")
    if options.bias_calibration is not None:
        raise ValueError(
            f"--bias_calibration has no effect with {names}, which corrects biases in its "
            "own way. Leave it out."
        )


def check_size(name: str, value: Sequence[int]) -> None:
    """Refuse what is neither one nor two positive numbers.

    Raises:
        ValueError: With the option's `name`.
    """
    if len(value) not in (1, 2) or min(value) < 1:
        raise ValueError(
            f"--{name} takes one or two positive numbers (height width), got {list(value)}."
        )


def check_share(name: str, value: float) -> None:
    """Refuse what is not between 0 and 1.

    Raises:
        ValueError: With the option's `name`.
    """
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"--{name} is a share between 0 and 1, got {value}.")


Kind = TypeVar("Kind", bound=Options)


def parse_options(kind: type[Kind], arguments: Sequence[str] | None = None) -> Kind:
    """Parse a command line; on a mistake print what is wrong and exit with status 2.

    Args:
        kind: The script's options.
        arguments: Without the program's name; default: those of this process.
    """
    words = {"true": "True", "false": "False"}
    given = [words.get(word, word) for word in (sys.argv[1:] if arguments is None else arguments)]
    return tyro.cli(kind, args=given, config=(tyro.conf.FlagConversionOff,))
