"""Named configurations, and the registry that holds them."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

from edgeailite.quantization.arithmetic.spec import BiasSpec, QConfig, QuantSpec

PRESETS: dict[str, QConfig | None] = {}


def register_preset(name: str, qconfig: QConfig | None) -> None:
    """Add a named configuration; None leaves the model in float.

    Raises:
        ValueError: The name is taken.
    """
    if name in PRESETS:
        raise ValueError(f"There is a preset {name!r} already; give yours another name.")
    PRESETS[name] = qconfig


def get_preset(name: str) -> QConfig | None:
    """Look a named preset up; None for ``DISABLED``.

    Raises:
        ValueError: No preset has this name; the message lists those there are.
    """
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}; allowed: {', '.join(PRESETS)}.")
    return PRESETS[name]


# Names of presets: W weights, A activations, T per tensor, C per channel, then bits,
# SYM symmetric activations, P2 power-of-two scales, R4 or M4 a range of 4; MSA for attention.
_PER_CHANNEL = QuantSpec(signed=True, granularity="per_channel", power_of_two=False)
_PER_CHANNEL_P2 = replace(_PER_CHANNEL, power_of_two=True)
_AFFINE = QuantSpec(symmetric=False, power_of_two=False, range_rule="percentile")
_AFFINE_P2 = replace(_AFFINE, power_of_two=True)
_SYMMETRIC_P2 = QuantSpec(range_rule="percentile")

register_preset(
    "PACT2",
    QConfig(
        weight=QuantSpec(signed=True, rounding="half_away"),
        activation=_SYMMETRIC_P2,
        bias=BiasSpec(bit_width=16, rule="reduce_weight_scale"),
    ),
)
register_preset("WC8_AT8", QConfig(_PER_CHANNEL, _AFFINE))
# Attention has outliers that carry meaning: nothing is cut off.
register_preset("MSA_WC8_AT8", QConfig(_PER_CHANNEL, replace(_AFFINE, range_rule="min_max")))
register_preset("WT8SYMP2_AT8SYMP2", QConfig(QuantSpec(signed=True), _SYMMETRIC_P2))
register_preset("WC8SYMP2_AT8SYMP2", QConfig(_PER_CHANNEL_P2, _SYMMETRIC_P2))
register_preset(
    "WC8SYMP2_AT8SYMP2R4",
    QConfig(_PER_CHANNEL_P2, replace(_SYMMETRIC_P2, fixed_range=(-4.0, 4.0))),
)
register_preset("WC8P2_AT8P2", QConfig(_PER_CHANNEL_P2, _AFFINE_P2))
register_preset(
    "MSA_WC8P2_AT8P2", QConfig(_PER_CHANNEL_P2, replace(_AFFINE_P2, range_rule="min_max"))
)
register_preset("WC4_AT8", QConfig(replace(_PER_CHANNEL, bit_width=4), _AFFINE))
register_preset("WC4M4_AT8", QConfig(replace(_PER_CHANNEL, bit_width=4, range_max=4.0), _AFFINE))
# Scales of a few significant bits and 24-bit sums: exact, whoever computes it.
register_preset(
    "WC4_AT4",
    QConfig(
        replace(_PER_CHANNEL, bit_width=4, scale_bits=8, range_rule="mse"),
        replace(_SYMMETRIC_P2, bit_width=4, range_rule="mse"),
        BiasSpec(16, "reduce_weight_scale", accumulator_bits=24),
        end_bits=8,
    ),
)
register_preset("DISABLED", None)


class QConfigType(str, Enum):
    """Names of the presets for ``qconfig_type`` of the fx wrappers; a plain string does as well.

    The members are the presets of this package. A preset that is registered later is no member, but
    ``QConfigType("NAME")`` and :meth:`choices` know it.
    """

    _ignore_ = "_names _name"
    _names = vars()
    for _name in PRESETS:
        if _name != "PACT2":  # the scheme of the PACT2 wrappers, which take no qconfig_type
            _names[_name] = _name
    DEFAULT = "WC8_AT8"

    @classmethod
    def _missing_(cls, value: object) -> QConfigType | None:
        """Make an instance for a preset that was registered after this class was made."""
        if value not in PRESETS or value == "PACT2":
            return None
        late = str.__new__(cls, value)
        late._name_ = late._value_ = str(value)
        return late

    @classmethod
    def choices(cls) -> tuple[str, ...]:
        """Names of all presets, for command lines."""
        late = [name for name in PRESETS if name != "PACT2" and name not in cls.__members__]
        return (*cls.__members__, *late)
