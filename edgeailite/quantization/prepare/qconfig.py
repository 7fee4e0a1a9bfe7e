"""Configurations of users: the argument ``qconfig_type``, made into specs and a policy.

A preset's name, a dict, our own :class:`QConfig`, or a ``QConfig`` or ``QConfigMapping`` of
``torch.ao.quantization``. The latter two are read by their attributes: torch.ao is never imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from edgeailite.quantization.arithmetic.presets import PRESETS, QConfigType, get_preset
from edgeailite.quantization.arithmetic.spec import MIN_BIT_WIDTH, QConfig, QuantSpec
from edgeailite.quantization.prepare.policy import Policy

# Bits of an activation that each backend's kernels take without overflow: where pairs of u8 * s8
# products are summed in 16 bits, 8 would saturate.
BACKENDS = {"qnnpack": 8, "onednn": 8, "x86": 7, "fbgemm": 7}

_UNSIGNED = (torch.quint8, torch.uint8)
_SIGNED = (torch.qint8, torch.int8)
_SCHEMES: dict[torch.qscheme, dict[str, Any]] = {
    torch.per_tensor_symmetric: {"granularity": "per_tensor", "symmetric": True},
    torch.per_tensor_affine: {"granularity": "per_tensor", "symmetric": False},
    torch.per_channel_symmetric: {"granularity": "per_channel", "symmetric": True},
}


def _accepted() -> str:
    """Kinds of configuration, for messages; presets that were registered late among them."""
    return (
        f"a preset's name ({', '.join(PRESETS)}), a dict "
        "{'weight': {...}, 'activation': {...}}, "
        "edgeailite.quantization.QConfig, or a QConfig or QConfigMapping of torch.ao.quantization"
    )


def make_policy(
    qconfig_type: Any = None, backend: str = "qnnpack", residual_bits: int | None = None
) -> Policy:
    """Policy that a wrapper's arguments ask for.

    Args:
        qconfig_type: See :mod:`edgeailite.quantization.prepare.qconfig`; None is ``WC8_AT8``.
        backend: ``qnnpack``, ``onednn``, ``x86`` or ``fbgemm``: the last two limit the activations
            of a preset to 7 bits.
        residual_bits: Of residual streams, 9 to 16; None: as all activations.

    Raises:
        ValueError: Unknown preset, backend, key or value; the message lists what is accepted.
        TypeError: `qconfig_type` is none of the accepted kinds.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; allowed: {', '.join(BACKENDS)}.")
    if residual_bits not in (None, *range(9, 17)):
        raise ValueError(
            f"residual_bits is {residual_bits!r}; allowed: 9 to 16, or None for the bits of all "
            "activations."
        )
    return replace(_policy_of(qconfig_type, backend), residual_bits=residual_bits)


def _policy_of(qconfig_type: Any, backend: str) -> Policy:
    if qconfig_type is None:
        qconfig_type = QConfigType.DEFAULT
    if isinstance(qconfig_type, str):
        return Policy(_limited(get_preset(_preset_name(qconfig_type)), BACKENDS[backend]))
    if hasattr(qconfig_type, "global_qconfig"):
        return _mapping_policy(qconfig_type)
    return Policy(read_qconfig(qconfig_type))


def _preset_name(given: str) -> str:
    name = given.value if isinstance(given, QConfigType) else given
    if name in QConfigType.__members__:
        return QConfigType[name].value
    if name not in PRESETS:
        raise ValueError(f"qconfig_type is {name!r}; accepted: {_accepted()}.")
    return name


def _limited(qconfig: QConfig | None, bits: int) -> QConfig | None:
    if qconfig is None or qconfig.activation is None:
        return qconfig
    limited = qconfig.with_activation(bit_width=min(qconfig.activation.bit_width, bits))
    if limited.end_bits is None:
        return limited
    return replace(limited, end_bits=min(limited.end_bits, bits))


def read_qconfig(given: Any) -> QConfig | None:
    """One configuration: our own, a dict, or a ``QConfig`` of torch.ao; None leaves in float.

    Raises:
        TypeError: It is none of these.
        ValueError: It holds what cannot be quantized to.
    """
    if given is None or isinstance(given, QConfig):
        return given
    if isinstance(given, Mapping):
        return _read_dict(given)
    if callable(getattr(given, "activation", None)) and callable(getattr(given, "weight", None)):
        return QConfig(
            weight=_read_observer(given.weight, "weight"),
            activation=_read_observer(given.activation, "activation"),
        )
    raise TypeError(f"qconfig_type is a {type(given).__name__}; accepted: {_accepted()}.")


def _read_dict(given: Mapping[str, Any]) -> QConfig:
    unknown = set(given) - {"weight", "activation"}
    if unknown:
        raise ValueError(
            f"qconfig_type has the keys {sorted(unknown)}; allowed: 'weight', 'activation'."
        )
    default = get_preset(QConfigType.DEFAULT.value)
    assert default is not None
    specs: dict[str, QuantSpec | None] = {}
    for role in ("weight", "activation"):
        spec = getattr(default, role)
        specs[role] = read_spec(given[role], role, spec) if role in given else spec
    return QConfig(weight=specs["weight"], activation=specs["activation"])


_KEYS = (
    "bitwidth",
    "qscheme",
    "dtype",
    "quant_min",
    "quant_max",
    "power2_scale",
    "range_max",
    "fixed_range",
    "range_shrink_percentile",
)


def read_spec(given: Any, role: str, spec: QuantSpec) -> QuantSpec | None:
    """One tensor's part of a dict, as changes to `spec`; None for float.

    Args:
        given: Keys ``bitwidth``, ``qscheme``, ``dtype``, ``quant_min``, ``quant_max``,
            ``power2_scale``, ``range_max``, ``fixed_range``, ``range_shrink_percentile``.
        role: ``'weight'`` or ``'activation'``.
        spec: What counts where nothing is given.

    Raises:
        TypeError: It is no dict.
        ValueError: It holds what cannot be quantized to.
    """
    if given is None or isinstance(given, QuantSpec):
        return given
    if not isinstance(given, Mapping):
        raise TypeError(
            f"'{role}' of qconfig_type is a {type(given).__name__}; allowed: a dict with any of "
            f"{', '.join(_KEYS)}, or None for float."
        )
    unknown = set(given) - set(_KEYS)
    if unknown:
        raise ValueError(
            f"'{role}' of qconfig_type has the keys {sorted(unknown)}; allowed: {', '.join(_KEYS)}."
        )
    changes: dict[str, Any] = _scheme(given.get("qscheme"), role)
    if "dtype" in given:
        changes["signed"] = _sign(given["dtype"], role)
    if "power2_scale" in given:
        changes["power_of_two"] = bool(given["power2_scale"])
    changes |= _ranges(given, role)
    spec = replace(spec, **changes)
    bits = given.get("bitwidth")
    return _with_integers(spec, bits, given.get("quant_min"), given.get("quant_max"))


def _scheme(qscheme: Any, role: str) -> dict[str, Any]:
    if qscheme is None:
        return {}
    if qscheme not in _SCHEMES:
        raise ValueError(
            f"qscheme of '{role}' is {qscheme}; allowed: {', '.join(map(str, _SCHEMES))}."
        )
    changes = _SCHEMES[qscheme]
    if role == "weight" and not changes["symmetric"]:
        raise ValueError(
            f"qscheme of 'weight' is {qscheme}: an integer convolution needs weights without zero "
            "point. Use torch.per_channel_symmetric or torch.per_tensor_symmetric."
        )
    if role == "activation" and changes["granularity"] != "per_tensor":
        raise ValueError(
            f"qscheme of 'activation' is {qscheme}: activations have one scale. "
            "Use torch.per_tensor_affine or torch.per_tensor_symmetric."
        )
    return dict(changes)


def _sign(dtype: Any, role: str) -> bool | None:
    """Signed integers are asked for; unsigned ones leave the sign to the statistics."""
    if dtype in _SIGNED:
        return True
    if dtype in _UNSIGNED and role == "activation":
        return None
    allowed = _SIGNED if role == "weight" else (*_UNSIGNED, *_SIGNED)
    raise ValueError(f"dtype of '{role}' is {dtype}; allowed: {', '.join(map(str, allowed))}.")


def _ranges(given: Mapping[str, Any], role: str) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    limit, fixed = given.get("range_max"), given.get("fixed_range")
    if fixed is True:
        if limit is None:
            raise ValueError(f"fixed_range of '{role}' is True: it needs a range_max.")
        changes["fixed_range"] = (-float(limit), float(limit))
    elif fixed:
        changes["fixed_range"] = (float(fixed[0]), float(fixed[1]))
    elif limit is not None:
        changes["range_max"] = float(limit)
    if "range_shrink_percentile" in given:
        percent = given["range_shrink_percentile"]
        changes |= {"range_rule": "percentile", "range_shrink_percentile": percent or 0.0}
    return changes


def _with_integers(
    spec: QuantSpec, bits: int | None, quant_min: int | None, quant_max: int | None
) -> QuantSpec:
    """The spec with these integers: as a bit width where they are all of one, else as a range."""
    if bits is not None:
        spec = replace(spec, bit_width=bits)
    if quant_min is None and quant_max is None:
        return spec
    low = spec.quant_min if quant_min is None else int(quant_min)
    high = spec.quant_max if quant_max is None else int(quant_max)
    count = high - low + 1
    if low in (0, -(count // 2)) and count.bit_length() - 1 >= MIN_BIT_WIDTH:
        whole = replace(spec, bit_width=count.bit_length() - 1)
        starts_alike = spec.symmetric and spec.signed is None and low == 0
        if count == 1 << whole.bit_width and (starts_alike or whole.quant_min == low):
            return whole
    signed = low < 0 if spec.symmetric and spec.signed is None else spec.signed
    return replace(spec, signed=signed, quant_range=(low, high))


def _read_observer(make: Callable[[], Any], role: str) -> QuantSpec | None:
    """A spec from the observer (or fake quantizer) that a torch.ao ``QConfig`` makes."""
    made = make()
    observer = getattr(made, "activation_post_process", made)
    dtype = getattr(observer, "dtype", None)
    if getattr(observer, "is_dynamic", False):
        raise ValueError(
            f"The {role} of the given QConfig is quantized dynamically "
            f"({type(observer).__name__}): its range would depend on the input. "
            "Use a static observer."
        )
    if dtype is None or dtype.is_floating_point:
        return None
    spec = replace(
        QuantSpec(power_of_two=False, signed=_sign(dtype, role)),
        **_scheme(observer.qscheme, role),
        range_rule="mse" if "Histogram" in type(observer).__name__ else "min_max",
    )
    quant_min = getattr(made, "quant_min", None)
    spec = _with_integers(spec, None, quant_min, getattr(made, "quant_max", None))
    if "FixedQParams" not in type(observer).__name__:
        return spec
    scale, zero_point = float(observer.scale), int(observer.zero_point)
    limits = ((q - zero_point) * scale for q in (spec.quant_min, spec.quant_max))
    low, high = limits
    return replace(spec, fixed_range=(low, high))


def _mapping_policy(mapping: Any) -> Policy:
    """A ``QConfigMapping``: global, by type, by name pattern, by name."""
    if getattr(mapping, "module_name_object_type_order_qconfigs", None):
        raise ValueError(
            "The QConfigMapping names modules by object type and order; accepted: set_global, "
            "set_object_type, set_module_name_regex, set_module_name."
        )

    def read_all(name: str) -> dict[Any, QConfig | None]:
        return {key: read_qconfig(value) for key, value in getattr(mapping, name, {}).items()}

    return Policy(
        read_qconfig(mapping.global_qconfig),
        by_type=read_all("object_type_qconfigs"),
        by_pattern=read_all("module_name_regex_qconfigs"),
        by_path=read_all("module_name_qconfigs"),
    )
