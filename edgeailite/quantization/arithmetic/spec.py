"""Frozen descriptions of grids, validated when made. No tensors or modules."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Rounding = Literal["half_even", "half_up", "half_away", "floor"]
Granularity = Literal["per_tensor", "per_channel"]
RangeRule = Literal["min_max", "percentile", "mse"]
BiasRule = Literal["none", "saturate", "reduce_weight_scale"]

MIN_BIT_WIDTH, MAX_BIT_WIDTH = 2, 16
# Up to so many bits a grid covers what has the least squared error, and not the largest value.
NARROW_BITS = 4


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(repr, choices))}.")


@dataclass(frozen=True)
class QuantSpec:
    """Integer grid of one tensor.

    Args:
        bit_width: Bits of an integer, 2 to 16.
        signed: True: symmetric around zero, or starting below it. False: starts at zero. None:
            decided by the statistics (signed as soon as a negative value was seen).
        granularity: One scale for the tensor, or one for each output channel (weights only).
        symmetric: True: ``zero_point`` stands at the middle (signed) or at the start (unsigned)
            of the grid. False: affine, any zero point.
        power_of_two: The scale is exactly ``2^k``.
        scale_bits: Significant bits of a free weight scale: it is rounded up to ``m * 2^k`` with an
            integer ``m`` of as many bits, so that a fixed-point multiplier holds it exactly. Layers
            with many inputs take fewer, so that every sum is exact in float32. None: any float32.
        rounding: Treatment of ties: ``half_even`` (ONNX), ``half_up`` (``floor(x + 0.5)``: a shift
            with rounding) or ``half_away`` (from zero). ``floor`` rounds everything down: the
            operation before it has added half of the scale.
        range_rule: ``min_max``, ``percentile`` (``range_shrink_percentile`` cut from each side) or
            ``mse`` (the range with the least squared error).
        range_shrink_percentile: Percent of values, per side, that ``percentile`` leaves outside; 0
            to 50.
        fixed_range: ``(low, high)``: no statistics at all.
        range_max: Upper limit of ``max(|low|, |high|)``.
        max_scale_ratio: Per channel: no scale is finer than the coarsest one divided by this.
        quant_range: ``(quant_min, quant_max)`` where the grid does not use all integers of
            `bit_width` (``(-127, 127)``); None: all.
        learned: In training the range is a parameter: it begins where the range rule puts it, and
            the gradient moves it; see :mod:`~edgeailite.quantization.arithmetic.learned_range`.

    Raises:
        ValueError: A field is outside of what it allows; the message names the field.
    """

    bit_width: int = 8
    signed: bool | None = None
    granularity: Granularity = "per_tensor"
    symmetric: bool = True
    power_of_two: bool = True
    scale_bits: int | None = None
    rounding: Rounding = "half_even"
    range_rule: RangeRule = "min_max"
    range_shrink_percentile: float = 0.01
    fixed_range: tuple[float, float] | None = None
    range_max: float | None = None
    max_scale_ratio: float = 256.0
    quant_range: tuple[int, int] | None = None
    learned: bool = False

    def __post_init__(self) -> None:
        if (
            isinstance(self.bit_width, bool)
            or not isinstance(self.bit_width, int)
            or not MIN_BIT_WIDTH <= self.bit_width <= MAX_BIT_WIDTH
        ):
            raise ValueError(
                f"bit_width is {self.bit_width!r}; allowed: a whole number from {MIN_BIT_WIDTH} "
                f"to {MAX_BIT_WIDTH}."
            )
        _check_choice("granularity", self.granularity, get_args(Granularity))
        _check_choice("rounding", self.rounding, get_args(Rounding))
        _check_choice("range_rule", self.range_rule, get_args(RangeRule))
        if not 0 <= self.range_shrink_percentile < 50:
            raise ValueError(
                f"range_shrink_percentile is {self.range_shrink_percentile!r}; it is a percentage "
                "per side: 0 up to (not including) 50."
            )
        if self.fixed_range is not None and not self.fixed_range[0] < self.fixed_range[1]:
            raise ValueError(
                f"fixed_range is {self.fixed_range!r}; it needs (low, high) with low < high."
            )
        if self.range_max is not None and not self.range_max > 0:
            raise ValueError(f"range_max is {self.range_max!r}; it must be positive.")
        if not self.max_scale_ratio >= 1:
            raise ValueError(f"max_scale_ratio is {self.max_scale_ratio!r}; it must be at least 1.")
        if self.scale_bits is not None and (self.power_of_two or not 1 <= self.scale_bits <= 16):
            raise ValueError(
                f"scale_bits is {self.scale_bits!r}; allowed: 1 to 16, with power_of_two=False."
            )
        if self.learned and self.fixed_range is not None:
            raise ValueError(
                f"fixed_range is {self.fixed_range!r} and learned is True; give one of them."
            )
        if self.quant_range is not None:
            self._check_quant_range(*self.quant_range)

    def _check_quant_range(self, low: int, high: int) -> None:
        full = replace(self, quant_range=None)
        if not full.quant_min <= low <= 0 < high <= full.quant_max:
            raise ValueError(
                f"quant_range is {(low, high)}; it needs quant_min <= 0 < quant_max within "
                f"{full.quant_min} to {full.quant_max} of {self.bit_width} bits."
            )
        if self.symmetric and self.signed is None:
            raise ValueError(
                f"quant_range {(low, high)} of a symmetric grid needs signed=True or signed=False."
            )

    def with_bits(self, bits: int) -> QuantSpec:
        """Change the bit width; up to four bits the grid has the least squared error."""
        if bits == self.bit_width:
            return self
        rule, scale_bits = "mse" if bits <= NARROW_BITS else self.range_rule, self.scale_bits
        if scale_bits is not None:
            # The scale loses the bits that the integers gain, so that sums stay exact.
            scale_bits = max(min(scale_bits, scale_bits + self.bit_width - bits), 1)
        return replace(self, bit_width=bits, range_rule=rule, scale_bits=scale_bits)

    @property
    def quant_min(self) -> int:
        """Smallest integer. A grid whose sign the statistics decide is carried as a signed one."""
        if self.quant_range is not None:
            return self.quant_range[0]
        starts_at_zero = self.signed is False or (self.signed is None and not self.symmetric)
        return 0 if starts_at_zero else -(1 << (self.bit_width - 1))

    @property
    def quant_max(self) -> int:
        """Largest integer."""
        if self.quant_range is not None:
            return self.quant_range[1]
        return self.quant_min + (1 << self.bit_width) - 1


@dataclass(frozen=True)
class BiasSpec:
    """Bias as an integer in the accumulator's scale ``s_in * s_w``.

    Args:
        bit_width: Bits the addend may take, 8 to 32.
        rule: Treatment of a bias that does not fit: ``none`` (32 bits; the weight scale is
            floored so that it always fits), ``saturate`` (clamped) or ``reduce_weight_scale`` (the
            weight's scale is made coarser until it fits).
        rounding: As in :class:`QuantSpec`.
        accumulator_bits: The weight's scale is made coarser until no sum of products needs more
            bits; None: no limit.
        is_float: The bias is not rounded; `bit_width` and `rule` then have no effect.

    Raises:
        ValueError: A field is outside of what it allows.
    """

    bit_width: int = 32
    rule: BiasRule = "none"
    rounding: Rounding = "half_even"
    accumulator_bits: int | None = None
    is_float: bool = False

    def __post_init__(self) -> None:
        if not 8 <= self.bit_width <= 32:
            raise ValueError(f"bias bit_width is {self.bit_width!r}; allowed: 8 to 32.")
        _check_choice("bias rule", self.rule, get_args(BiasRule))
        _check_choice("rounding", self.rounding, get_args(Rounding))

    @property
    def limit(self) -> int:
        """One more than the largest integer."""
        return 1 << (self.bit_width - 1)


@dataclass(frozen=True)
class QConfig:
    """Grids of a layer's weight, output and bias; None leaves a tensor in float.

    Args:
        weight: Grid of the weight.
        activation: Grid of the output.
        bias: Grid of the bias.
        per_channel_depthwise_only: Other layers have one scale for their weight.
        soft_weight: Training begins with a weight that is only drawn towards its grid.
        end_bits: Bits of the network's inputs and outputs, which a host reads and writes; None:
            those of `activation`.
    """

    weight: QuantSpec | None = field(default_factory=QuantSpec)
    activation: QuantSpec | None = field(default_factory=QuantSpec)
    bias: BiasSpec = field(default_factory=BiasSpec)
    per_channel_depthwise_only: bool = False
    soft_weight: bool = False
    end_bits: int | None = None

    def with_activation(self, **changes: Any) -> QConfig:
        """Copy with other values in the activation spec."""
        if self.activation is None:
            return self
        return replace(self, activation=replace(self.activation, **changes))
