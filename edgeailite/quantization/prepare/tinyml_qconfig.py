"""Configurations of users of the microcontroller wrappers, made into a policy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from edgeailite.quantization.arithmetic.fixed_point import EXACT_BITS
from edgeailite.quantization.arithmetic.spec import BiasSpec, QConfig, QuantSpec, Rounding
from edgeailite.quantization.graph.operations import LAYERS
from edgeailite.quantization.graph.registry import modules_of
from edgeailite.quantization.prepare.policy import Policy
from edgeailite.quantization.prepare.qconfig import make_policy, read_spec

if TYPE_CHECKING:
    from edgeailite.quantization.prepare.target import Target

BIT_WIDTHS = (8, 4, 2)
FLOAT_BITS = 32
_WEIGHTS = {
    8: QuantSpec(8, True, "per_channel", quant_range=(-127, 127)),
    **{
        bits: QuantSpec(
            bits,
            True,
            "per_channel",
            power_of_two=False,
            scale_bits=8,
            range_rule="mse",
            quant_range=(-largest, largest),
        )
        for bits, largest in ((4, 7), (2, 1))
    },
}
_BIASES = {
    8: BiasSpec(24, "reduce_weight_scale", accumulator_bits=EXACT_BITS),
    4: BiasSpec(16, "reduce_weight_scale", accumulator_bits=EXACT_BITS),
    2: BiasSpec(16, "reduce_weight_scale", accumulator_bits=EXACT_BITS),
}
_OBSERVERS = ("min_max", "percentile", "mse")
_SOFT = {"default": False, "soft_sigmoid": True, "dbq": True, False: False, True: True, None: False}
_SEARCH_KEYS = (
    "auto_quantization",
    "inputs",
    "targets",
    "criterion",
    "calibration_dataloader",
    "eval_dataloader",
    "task_type",
    "float_metric",
    "example_inputs",
    "max_bytes",
    "autoquant_tolerance_classification",
    "autoquant_tolerance_regression",
)


class TinyMLQConfigType:
    """A ``qconfig_type`` of the microcontroller wrappers from a few numbers.

    Args:
        weight_bitwidth: 8, 4 or 2.
        activation_bitwidth: 8, 4 or 2.
        auto_quantization: Find the bits of each layer by its sensitivity; needs
            `calibration_dataloader`.
        weight_mixed_precision: ``{bits: [module names]}``; 32 leaves in float.
        activation_mixed_precision: Likewise for the outputs of modules.
        **search: What the search needs:
            see :func:`~edgeailite.quantization.wrappers.tinyml.run_auto_quantization`.

    Attributes:
        qconfig_type: The dict that a wrapper takes.

    Raises:
        ValueError: A bit width or a keyword is none of those allowed.
    """

    def __init__(
        self,
        weight_bitwidth: int = 8,
        activation_bitwidth: int = 8,
        auto_quantization: bool = False,
        weight_mixed_precision: Mapping[int, list[str]] | None = None,
        activation_mixed_precision: Mapping[int, list[str]] | None = None,
        **search: Any,
    ) -> None:
        unknown = set(search) - set(_SEARCH_KEYS)
        if unknown:
            raise ValueError(
                f"TinyMLQConfigType got {sorted(unknown)}; allowed: {', '.join(_SEARCH_KEYS)}."
            )
        for name, bits in (("weight", weight_bitwidth), ("activation", activation_bitwidth)):
            if bits not in BIT_WIDTHS:
                raise ValueError(f"{name}_bitwidth is {bits!r}; allowed: 8, 4, 2.")
        self.qconfig_type: dict[str, Any] = {
            "weight": {"bitwidth": weight_bitwidth, "mixed_precision": weight_mixed_precision},
            "activation": {
                "bitwidth": activation_bitwidth,
                "mixed_precision": activation_mixed_precision,
            },
            "auto_quantization": auto_quantization,
            **search,
        }


def get_default_qconfig(
    qconfig_dict: Mapping[str, Any] | None = None, target: Target | None = None
) -> QConfig:
    """The configuration of a dict's ``weight`` and ``activation``.

    Args:
        qconfig_dict: None: 8 bits.
        target: The hardware; None: any, with ties to even.

    Raises:
        ValueError: A value is outside of what it allows, or of what the target computes.
    """
    given = dict(qconfig_dict or {})
    weight, soft = _read_weight(dict(given.get("weight") or {}))
    activation = _read_activation(
        dict(given.get("activation") or {}), "half_even" if target is None else target.rounding
    )
    if target is not None:
        target.check_specs(weight, activation)
    return QConfig(weight, activation, _BIASES[min(weight.bit_width, 8)], soft_weight=soft)


def weight_spec(bits: int) -> QuantSpec:
    """The grid of a weight of 8, 4 or 2 bits."""
    return _WEIGHTS[bits]


def _read_weight(given: dict[str, Any]) -> tuple[QuantSpec, bool]:
    given.pop("mixed_precision", None)
    bits = given.pop("bitwidth", 8)
    if bits not in BIT_WIDTHS:
        raise ValueError(f"bitwidth of 'weight' is {bits!r}; allowed: 8, 4, 2.")
    soft = given.pop("soft_quant", bits == 2)
    if soft not in _SOFT:
        names = ", ".join(repr(s) for s in _SOFT)
        raise ValueError(f"soft_quant of 'weight' is {soft!r}; allowed: {names}.")
    spec = _with_observer(_WEIGHTS[bits], given, "weight")
    if (power_of_two := given.pop("power2_scale", None)) is not None:
        bits_of_scale = None if power_of_two else 8
        spec = replace(spec, power_of_two=bool(power_of_two), scale_bits=bits_of_scale)
    made = read_spec(given, "weight", spec)
    assert made is not None
    return made, _SOFT[soft]


def _read_activation(given: dict[str, Any], rounding: Rounding) -> QuantSpec:
    given.pop("mixed_precision", None)
    given.pop("soft_quant", None)
    spec = QuantSpec(range_rule="percentile", rounding=rounding)
    made = read_spec(given, "activation", _with_observer(spec, given, "activation"))
    assert made is not None
    return made


def _with_observer(spec: QuantSpec, given: dict[str, Any], role: str) -> QuantSpec:
    observer = given.pop("observer", None)
    if observer is None:
        return spec
    if observer not in _OBSERVERS:
        raise ValueError(
            f"observer of {role!r} is {observer!r}; allowed: {', '.join(map(repr, _OBSERVERS))}."
        )
    return replace(spec, range_rule=observer)


def make_tinyml_policy(
    model: nn.Module,
    target: Target,
    qconfig_type: Any = None,
    backend: str = "qnnpack",
    float_offset: bool = False,
) -> Policy:
    """Policy that a microcontroller wrapper's arguments ask for.

    Args:
        model: Whose modules ``mixed_precision`` names.
        target: The hardware.
        qconfig_type: None, a :class:`TinyMLQConfigType`, or a dict like its ``qconfig_type``
            (not changed); for a target that takes presets also what the other fx wrappers take.
        backend: As of the other fx wrappers.
        float_offset: Do not round biases to integers.

    Raises:
        ValueError: A value is outside of what it allows, or of what the target computes.
        TypeError: `qconfig_type` is none of the accepted kinds.
    """
    given = getattr(qconfig_type, "qconfig_type", qconfig_type)
    if given is not None and not isinstance(given, Mapping):
        if not target.takes_presets:
            raise TypeError(
                f"qconfig_type is a {type(given).__name__}; TINPU wrappers take None, a dict "
                "{'weight': {...}, 'activation': {...}}, or a TinyMLQConfigType."
            )
        return make_policy(given, backend)
    given = {} if given is None else given
    unknown = set(given) - {"weight", "activation", "mixed_precision", *_SEARCH_KEYS}
    if unknown:
        raise ValueError(
            f"qconfig_type has the keys {sorted(unknown)}; allowed: 'weight', 'activation', "
            "'mixed_precision', and those of the search (see TinyMLQConfigType)."
        )
    make_policy(None, backend)  # refuses an unknown backend
    qconfig = _final(get_default_qconfig(given, target), float_offset)
    return Policy(
        qconfig,
        by_path=_mixed_precision(model, given, target, float_offset),
    )


def _final(qconfig: QConfig, float_offset: bool) -> QConfig:
    return replace(qconfig, bias=replace(qconfig.bias, is_float=float_offset))


def _mixed_precision(
    model: nn.Module,
    given: Mapping[str, Any],
    target: Target,
    float_offset: bool,
) -> dict[str, QConfig | None]:
    """The configuration of each module that ``mixed_precision`` names."""
    weights = _named_bits(model, _part(given, "weight") or given.get("mixed_precision"))
    activations = _named_bits(model, _part(given, "activation"))
    found: dict[str, QConfig | None] = {}
    for name in {**weights, **activations}:
        bits = weights.get(name)
        changed = {role: dict(given.get(role) or {}) for role in ("weight", "activation")}
        if bits in BIT_WIDTHS:
            changed["weight"] = {**_portable(changed["weight"]), "bitwidth": bits}
        if activations.get(name, FLOAT_BITS) != FLOAT_BITS:
            changed["activation"]["bitwidth"] = activations[name]
        qconfig = _final(get_default_qconfig(changed, target), float_offset)
        if bits == FLOAT_BITS:
            qconfig = replace(qconfig, weight=None)
        found[name] = qconfig
    return found


def _part(given: Mapping[str, Any], role: str) -> Mapping[int, list[str]] | None:
    return (given.get(role) or {}).get("mixed_precision")


def _portable(given: dict[str, Any]) -> dict[str, Any]:
    """Settings of a weight that do not depend on its bits."""
    return {k: given[k] for k in ("qscheme", "observer", "range_max") if k in given}


def _named_bits(model: nn.Module, given: Mapping[int, list[str]] | None) -> dict[str, int]:
    layers = [n for n, m in nn.Module.named_modules(model) if isinstance(m, modules_of(*LAYERS))]
    found: dict[str, int] = {}
    for bits, names in (given or {}).items():
        if int(bits) not in (*BIT_WIDTHS, FLOAT_BITS):
            raise ValueError(f"mixed_precision has {bits!r} bits; allowed: 32 (float), 8, 4, 2.")
        for name in names:
            if name not in layers:
                near = difflib.get_close_matches(name, layers, 3, 0.0)
                raise ValueError(
                    f"mixed_precision names '{name}', which is no layer of the model; the nearest "
                    f"are: {', '.join(near)}."
                )
            found[name] = int(bits)
    return found
