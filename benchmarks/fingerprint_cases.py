"""Cases of ``fingerprints.py``: configurations, and which networks run in which of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from fingerprint_networks import LARGE, NETWORKS, PAIR, SMALL, TINY, Network
from torch import Tensor, nn

from edgeailite.quantization import (
    QConfig,
    QuantSpec,
    TinyMLQConfigType,
    TrainingMethods,
)

Batches = list[tuple[Tensor, ...]]
EPOCHS = 4
NETWORKS_PER_CONFIG, CONFIGS_PER_LARGE = 3, 4
# In an order of their own: it decides which networks a preset runs with, in both recordings.
PRESETS = (
    *("WC8_AT8", "DEFAULT", "MSA_WC8_AT8", "WT8SYMP2_AT8SYMP2", "WC8SYMP2_AT8SYMP2"),
    *("WC8SYMP2_AT8SYMP2R4", "WC8P2_AT8P2", "MSA_WC8P2_AT8P2", "WC4_AT8", "WC4M4_AT8", "WC4_AT4"),
    "DISABLED",
)
SCORES = ["chain", "functional", "residual", "transformer", "dense", "shuffle", "series"]
POOLS = {
    "small": list(SMALL),
    "scores": SCORES,
    "tiny": list(TINY),
    "long": [*PAIR, "perceptron"],
}


@dataclass(frozen=True)
class Config:
    """A wrapper and its arguments.

    Attributes:
        wrapper: Name of the class in edgeailite.quantization.
        mode: ``train``, ``loop`` (``train()`` and batches, without gradients), ``calibrate``,
            ``test`` (loads a calibrated state), ``resume`` (a checkpoint in the middle) or
            ``norms`` (batch norms measured anew after the training).
        options: Arguments of the wrapper; what is callable is called with the float model and
            batches of inputs.
        quality: Of ``calibrate``.
        pool: Name of the networks it runs with.
        real_outputs: The converted model is asked for real values.
    """

    wrapper: str
    mode: str = "train"
    options: dict[str, Any] = field(default_factory=dict)
    quality: Any = None
    pool: str = "small"
    real_outputs: bool = False


@dataclass(frozen=True)
class Case:
    """A network in a configuration; `formats` are those of the ONNX files to write."""

    name: str
    network: Network
    config: Config
    formats: tuple[str, ...] = ()


def _train(_mode: str = "train", _pool: str = "small", **options: Any) -> Config:
    return Config("QuantTrainModule", _mode, {"total_epochs": EPOCHS, **options}, pool=_pool)


def _calibrate(_quality: Any = None, _mode: str = "loop", **options: Any) -> Config:
    return Config("QuantCalibrateModule", _mode, options, _quality)


def _qat(_mode: str = "train", _pool: str = "small", **options: Any) -> Config:
    return Config("QATFxModule", _mode, {"total_epochs": EPOCHS, **options}, pool=_pool)


def _ptc(_quality: Any = None, _pool: str = "small", **options: Any) -> Config:
    return Config("PTCFxModule", "calibrate", options, _quality, _pool)


def _tiny(
    wrapper: str,
    bits: int = 8,
    activation: int = 8,
    weight: Any = None,
    real: bool = False,
    quality: Any = None,
    pool: str = "tiny",
    **options: Any,
) -> Config:
    calibrates = "PTQ" in wrapper
    given = {"weight": {"bitwidth": bits, **(weight or {})}, "activation": {"bitwidth": activation}}
    options = {"qconfig_type": given, "total_epochs": 1 if calibrates else EPOCHS, **options}
    mode = "calibrate" if calibrates else "train"
    return Config(f"{wrapper}FxModule", mode, options, quality, pool, real)


def _inner_layers(model: nn.Module) -> list[str]:
    """Second and third of the layers with a weight."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    return [name for name, module in model.named_modules() if type(module) in kinds][1:3]


def _narrow(bits: int) -> Callable[[nn.Module, Batches], dict[int, list[str]]]:
    return lambda model, _: {bits: _inner_layers(model)}


def _mixed(model: nn.Module, _: Batches) -> dict[str, Any]:
    return {
        "weight": {"bitwidth": 8, "mixed_precision": {4: _inner_layers(model)}},
        "activation": {"mixed_precision": {4: _inner_layers(model)[:1]}},
    }


def _searched(model: nn.Module, batches: Batches) -> Any:
    """Bits that a search finds, for half of the bytes."""
    size = sum(p.numel() for p in model.parameters() if p.dim() > 1) // 2
    search = {"calibration_dataloader": batches, "max_bytes": size}
    return TinyMLQConfigType(8, 8, True, **search)


def _searched_for_accuracy(model: nn.Module, batches: Batches) -> Any:
    """Bits that a search finds, for most of the float model's classes."""
    with torch.no_grad():
        pairs = [(x, model.eval()(x).argmax(1)) for (x,) in batches]
    model.train()
    return {
        "auto_quantization": True,
        "calibration_dataloader": batches,
        "eval_dataloader": pairs,
        "task_type": "classification",
        "autoquant_tolerance_classification": 30.0,
    }


def _torch_mapping(_model: nn.Module, _batches: Batches) -> Any:
    from torch.ao.quantization import QConfigMapping, get_default_qat_qconfig, get_default_qconfig

    mapping = QConfigMapping().set_global(get_default_qat_qconfig("qnnpack"))
    return mapping.set_object_type(nn.Linear, get_default_qconfig("onednn"))


ALL_METHODS = TrainingMethods(learned_ranges="all", damping=0.02, distillation=0.5)
EVERY_RANGE = ["equalization", "activation_ranges", "weight_ranges", "biases"]
WITHOUT_DATA = ["bias_absorption", "equalization", "activation_ranges", "analytic_biases"]
FITTED = ["activation_ranges", "weight_ranges", "least_squares"]
BLOCKS = ["equalization", "activation_ranges", "block_tuning"]


def pact2_configs() -> dict[str, Config]:
    """The power-of-two scheme: training, with the arguments of its grids."""
    return {
        "default": _train(),
        "per_channel": _train(per_channel_q="all"),
        "depthwise": _train(per_channel_q=True),
        **{f"bias_{rule}": _train(constrain_bias=rule) for rule in ("NONE", "SATURATE")},
        "bias_REDUCE": _train(constrain_bias="REDUCE_WEIGHT_SCALE"),
        "saturate_per_channel": _train(per_channel_q="all", constrain_bias="SATURATE"),
        "half_up": _train(rounding="half_up"),
        "half_up_per_channel": _train(rounding="half_up", per_channel_q="all"),
        "mse": _train(range_rule="mse"),
        "min_max": _train(histogram_range=False, range_shrink_weights=0.1),
        "shrink": _train(range_shrink_activations=1.0, range_shrink_weights=1.0),
        "w4": _train(bitwidth_weights=4),
        "w4a4": _train(bitwidth_weights=4, bitwidth_activations=4, per_channel_q="all"),
        "w16a16": _train(bitwidth_weights=16, bitwidth_activations=16),
        "free_scales": _train(power2_weight_range=False, power2_activation_range=False),
        "free_weights": _train(power2_weight_range=False, per_channel_q="all"),
    }


def pact2_method_configs() -> dict[str, Config]:
    """The power-of-two scheme: methods of training, calibration, evaluation."""
    return {
        "bias_calibration": _train(bias_calibration=True),
        "inside_only": _train(quantize_in=False, quantize_out=False),
        "unclipped": _train(constrain_weights=False),
        "clipped_per_channel": _train(constrain_weights=True, per_channel_q="all"),
        "resumed": _train("resume"),
        "new_norms": _train("norms"),
        "leaves": _train(leaf_modules=(nn.Hardtanh, nn.LayerNorm, nn.Linear)),
        "learned": _train(methods=TrainingMethods(learned_ranges="all")),
        "learned_w4": _train(bitwidth_weights=4, methods=TrainingMethods("weights")),
        "learned_free": _train(
            power2_weight_range=False,
            power2_activation_range=False,
            methods=TrainingMethods(learned_ranges="all"),
        ),
        "damping": _train(methods=TrainingMethods(damping=0.05)),
        "distilled": _train(_pool="scores", methods=TrainingMethods(distillation=0.7)),
        "all_methods": _train(_pool="scores", methods=ALL_METHODS),
        "inner_4_bits": _train(bit_widths=_narrow(4)),
        "inner_3_bits_per_channel": _train(per_channel_q="all", bit_widths=_narrow(3)),
        "calibrated": _calibrate(),
        "calibrated_at_once": _calibrate(_mode="calibrate"),
        "calibrated_per_channel": _calibrate(per_channel_q="all", lr_calib=0.2),
        "calibrated_ranges": _calibrate(bias_calibration=False, range_rule="mse"),
        "calibrated_fast": _calibrate("fast", "calibrate"),
        "calibrated_w4": _calibrate(EVERY_RANGE, "calibrate", bitwidth_weights=4),
        "test": Config("QuantTestModule", "test"),
        "test_per_channel": Config("QuantTestModule", "test", {"per_channel_q": "all"}),
    }


_DICT = {
    "weight": {"bitwidth": 6, "qscheme": torch.per_channel_symmetric, "power2_scale": True},
    "activation": {"bitwidth": 7, "qscheme": torch.per_tensor_symmetric, "range_max": 3.0},
}
_DICT_AFFINE = {
    "weight": {"quant_min": -127, "quant_max": 127, "qscheme": torch.per_tensor_symmetric},
    "activation": {"dtype": torch.quint8, "range_shrink_percentile": 0.5},
}
_WEIGHTS_ONLY = QConfig(QuantSpec(4, True, "per_channel", power_of_two=False), None)


def fx_configs() -> dict[str, Config]:
    """Every preset, trained and calibrated, and configurations of other kinds."""
    found = {f"qat {name}": _qat(qconfig_type=name) for name in PRESETS}
    found |= {f"ptc {name}": _ptc(qconfig_type=name) for name in PRESETS}
    with_bias = {"bias_calibration_factor": 0.05}
    return found | {
        "qat dict": _qat(qconfig_type=_DICT),
        "qat affine_dict": _qat(qconfig_type=_DICT_AFFINE),
        "qat weights_only": _qat(qconfig_type=_WEIGHTS_ONLY),
        "qat torch_mapping": _qat(qconfig_type=_torch_mapping),
        "qat x86": _qat(backend="x86"),
        "qat no_freeze": _qat(num_batch_norm_update_epochs=False, num_observer_update_epochs=False),
        "qat biases": _qat(qconfig_type="WC8SYMP2_AT8SYMP2", **with_bias),
        "qat resumed": _qat("resume", qconfig_type="WC4_AT4"),
        "qat new_norms": _qat("norms", qconfig_type="WC4_AT8"),
        "qat learned": _qat(methods=TrainingMethods(learned_ranges="all")),
        "qat learned_activations": _qat(
            qconfig_type="WC4_AT4", methods=TrainingMethods("activations")
        ),
        "qat all_methods": _qat("train", "scores", qconfig_type="WC4_AT8", methods=ALL_METHODS),
        "qat inner_4_bits": _qat(bit_widths=_narrow(4)),
        "qat is_qat_false": Config(
            "QATFxModule", "calibrate", {"is_qat": False, "total_epochs": 2, **with_bias}
        ),
        "ptc dict": _ptc(qconfig_type=_DICT),
        "ptc inner_4_bits": _ptc(qconfig_type="WT8SYMP2_AT8SYMP2", bit_widths=_narrow(4)),
        "ptc biases": _ptc(bias_calibration_factor=0.3),
        "ptc fast": _ptc("fast", qconfig_type="WT8SYMP2_AT8SYMP2"),
        "ptc ranges": _ptc(EVERY_RANGE, qconfig_type="WC4_AT8"),
        "ptc without_data": _ptc(WITHOUT_DATA, qconfig_type="WT8SYMP2_AT8SYMP2"),
        "ptc least_squares": _ptc(FITTED, "long", qconfig_type="WC4_AT8"),
        "ptc block_tuning": _ptc(BLOCKS, "long", qconfig_type="WC8SYMP2_AT8SYMP2"),
    }


def tinyml_configs() -> dict[str, Config]:
    """Both targets for microcontrollers."""
    found: dict[str, Config] = {}
    for target in ("Generic", "TINPU"):
        qat, ptq = partial(_tiny, f"{target}TinyMLQAT"), partial(_tiny, f"{target}TinyMLPTQ")
        made = {f"qat w{bits}": qat(bits) for bits in (8, 4, 2)}
        made |= {f"ptq w{bits}": ptq(bits) for bits in (8, 4, 2)}
        made |= {
            "qat w4a4": qat(4, 4),
            "qat w4 soft": qat(4, weight={"soft_quant": "soft_sigmoid"}),
            "qat w2 hard": qat(2, weight={"soft_quant": "default"}),
            "qat mse": qat(weight={"observer": "mse"}),
            "qat qdq": qat(float_ops=["qdq"]),
            "ptq fb": ptq(float_ops=["fb"]),
            "qat float_ops": qat(4, float_ops=True),
            "qat mixed": qat(qconfig_type=_mixed),
            "qat searched": qat(qconfig_type=_searched),
            "ptq searched": ptq(qconfig_type=_searched_for_accuracy),
            "qat unprepared": qat(prepare_qdq=False),
            "qat all_methods": qat(4, methods=ALL_METHODS),
            "ptq fast": ptq(8, quality="fast"),
            "ptq biases": ptq(4, bias_calibration_factor=0.1),
            "qat of images": qat(pool="small"),
        }
        found |= {f"{target.lower()} {name}": config for name, config in made.items()}
    qat, ptq = partial(_tiny, "TINPUTinyMLQAT"), partial(_tiny, "TINPUTinyMLPTQ")
    found["tinpu qat real outputs"] = qat(4, output_int=False)
    found["tinpu ptq real when converted"] = ptq(8, real=True)
    found["generic qat free"] = _tiny("GenericTinyMLQAT", weight={"power2_scale": False})
    return found


# ---- cases --------------------------------------------------------------------------------------

WRAPPER_FORMATS = ("FLOAT_MODEL", "FAKEQ_MODEL", "CLIP_MODEL", "QDQ_MODEL", "INT_MODEL")
TINPU_FORMATS = ("FLOAT_MODEL", "FAKEQ_MODEL", "TINPU_INT_MODEL")
# Pairs beyond those that the rotation finds. After "@" the opset, where it is not the default.
EXTRA: dict[str, tuple[str, ...]] = {
    "chain / pact2 default": WRAPPER_FORMATS,
    "decoder / pact2 per_channel": ("FAKEQ_MODEL", "CLIP_MODEL", "QDQ_MODEL", "INT_MODEL"),
    "chain / pact2 w16a16": ("QDQ_MODEL",),
    "functional / qat WC8_AT8": (*WRAPPER_FORMATS, "QDQ_MODEL@13"),
    "dense / ptc WC8SYMP2_AT8SYMP2": ("INT_MODEL", "FLOAT_MODEL@13"),
    "quantizers / qat WC8SYMP2_AT8SYMP2": ("FLOAT_MODEL@15", "QDQ_MODEL", "INT_MODEL"),
    "residual / qat WC4_AT4": ("QDQ_MODEL@13", "INT_MODEL@13", "QDQ_MODEL@21"),
    "transformer / ptc MSA_WC8_AT8": ("FAKEQ_MODEL@13", "QDQ_MODEL", "INT_MODEL"),
    "transformer / qat MSA_WC8P2_AT8P2": (),
    "pair / pact2 default": (),
    "pair / qat WC8_AT8": (),
    "lifted / ptc without_data": ("QDQ_MODEL",),
    "lifted / pact2 default": (),
    "lifted / qat WT8SYMP2_AT8SYMP2": (),
    "lifted / ptc ranges": (),
    "swin / ptc MSA_WC8P2_AT8P2": ("QDQ_MODEL",),
    "swin / qat MSA_WC8_AT8": (),
    "two_inputs / ptc WC8P2_AT8P2": ("QDQ_MODEL", "INT_MODEL"),
    "shared / pact2 calibrated": ("CLIP_MODEL", "QDQ_MODEL"),
    "mobilenetv2 / pact2 default": ("QDQ_MODEL",),
    "branches / generic qat w4": ("FLOAT_MODEL", "FAKEQ_MODEL", "CLIP_MODEL", "QDQ_MODEL"),
    "series / generic ptq w8": ("QDQ_MODEL", "INT_MODEL"),
    "tiny / tinpu qat w8": TINPU_FORMATS,
    "branches / tinpu qat w4": TINPU_FORMATS,
    "turned_series / tinpu ptq w8": ("TINPU_INT_MODEL@17",),
    "float_between / tinpu qat qdq": ("TINPU_INT_MODEL",),
    "series / tinpu qat real outputs": ("TINPU_INT_MODEL",),
    "mobilenetv1 / tinpu ptq w8": ("TINPU_INT_MODEL",),
}


def _pairs(configs: dict[str, Config]) -> Iterator[str]:
    """Names of cases: a rotation, in which every network meets every kind of configuration."""
    for position, (name, config) in enumerate(configs.items()):
        pool = POOLS[config.pool]
        for step in range(min(NETWORKS_PER_CONFIG, len(pool))):
            yield f"{pool[(position + 5 * step) % len(pool)]} / {name}"
    rotated = [name for name, config in configs.items() if config.pool == "small"]
    for position, network in enumerate(LARGE):
        yield f"{network} / pact2 default"
        for step in range(CONFIGS_PER_LARGE - 1):
            index = 4 * position + step + len(rotated) // 4 * step
            yield f"{network} / {rotated[index % len(rotated)]}"
    yield from EXTRA


def make_cases() -> list[Case]:
    """All of them, in order."""
    pact2 = {**pact2_configs(), **pact2_method_configs()}
    configs = {f"pact2 {name}": config for name, config in pact2.items()}
    configs |= fx_configs() | tinyml_configs()
    cases = []
    for pair in dict.fromkeys(_pairs(configs)):
        network, config = pair.split(" / ")
        cases.append(Case(pair, NETWORKS[network], configs[config], EXTRA.get(pair, ())))
    return cases
