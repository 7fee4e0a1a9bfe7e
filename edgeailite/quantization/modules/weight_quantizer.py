"""Weight quantizer: the grid of a layer's weight, and the way training takes to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgeailite.quantization.arithmetic.learned_range import follow_range, simulate_learned
from edgeailite.quantization.arithmetic.qparams import weight_scale
from edgeailite.quantization.arithmetic.ranges import weight_max_abs
from edgeailite.quantization.arithmetic.rounding import round_to_integer
from edgeailite.quantization.arithmetic.weights import (
    damped,
    fake_quantize_weight,
    soft_quantize_weight,
)
from edgeailite.quantization.modules.oscillation import Oscillations

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import QuantSpec


@dataclass
class WeightQuantizer:
    """Quantizer of one layer's weight.

    No module: the range is registered by the layer, where the state dict and the optimizer know
    it, and is given to each method. So copies, replicas on other devices and pickles need no care.

    Attributes:
        spec: Grid of the (folded) weight.
        has_own_bits: True if the bit width was chosen for this layer.
        range_was_given: True if a checkpoint or a search set the range: a training that learns it
            then goes on from there.
        starts_soft: True if the training's schedule sets the softness.
        softness: Distance of the weight from its grid in training: 0 on it, 1 nearly as in float
            (see :func:`~edgeailite.quantization.arithmetic.weights.soft_quantize_weight`).
        damping: Strength that draws weights to their grid points in training (see
            :func:`~edgeailite.quantization.arithmetic.weights.damped`).
        freeze_above: Frequency of oscillations above which weights are frozen in training; 0:
            they are not even tracked.
        oscillations: Those of this weight, and its frozen values.
    """

    spec: QuantSpec
    has_own_bits: bool = False
    range_was_given: bool = False
    starts_soft: bool = False
    softness: float = 0.0
    damping: float = 0.0
    freeze_above: float = 0.0
    oscillations: Oscillations = field(default_factory=Oscillations)

    def choose_bits(self, bits: int) -> None:
        """Give the weight a bit width of its own."""
        if bits != self.spec.bit_width:
            self.oscillations.forget()
        self.has_own_bits, self.spec = True, self.spec.with_bits(bits)

    @torch.no_grad()
    def scale(
        self,
        rows: Tensor,
        gain: Tensor | None,
        weight_range: Tensor | None,
        min_scale: Tensor | None,
    ) -> Tensor:
        """Scale of each output channel, float32, shape ``(C_out,)``.

        Args:
            rows: Weights of one output channel a row, shape ``(C_out, n)``.
            gain: Factor of each row, which is folded into it later, or None.
            weight_range: Magnitudes to cover, shape ``(C_out,)``; None: those of the weights.
            min_scale: Coarsen to at least this scale, shape ``(C_out,)``.
        """
        max_abs = self._max_abs(rows, gain) if weight_range is None else weight_range
        return weight_scale(max_abs, self.spec, min_scale)

    def _max_abs(self, rows: Tensor, gain: Tensor | None) -> Tensor:
        if gain is None:
            return weight_max_abs(rows, self.spec)
        if self.spec.range_rule == "min_max":
            return weight_max_abs(rows, self.spec) * gain.abs()
        return weight_max_abs(rows * gain[:, None], self.spec)

    def with_range_gradient(self, scale: Tensor, weight_range: Tensor | None) -> Tensor:
        """Return `scale`; where the range is learned, its gradient reaches the range."""
        if weight_range is None or not self.spec.learned:
            return scale
        return follow_range(scale, weight_range, self.spec)

    def fake_quantize(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Put `weight` on its grid; `scale` is broadcastable to it and may be negative."""
        spec = self.spec
        return fake_quantize_weight(weight, scale, spec.quant_min, spec.quant_max, spec.rounding)

    @property
    def freezes(self) -> bool:
        """True if oscillations are tracked: the schedule asks for it, and the weight is hard."""
        return self.freeze_above > 0 and self.softness == 0

    def freeze_oscillating(
        self, weight: Tensor, scale: Tensor, parameter: Tensor, gain: Tensor | None
    ) -> Tensor:
        """Return `weight` with its frozen values at their grid points, where no gradient passes.

        They are written into the parameter too, which an optimizer step or another scale has moved.

        Args:
            weight: Weight of this iteration, ``parameter * gain``.
            scale: Broadcastable to it.
            parameter: Changed in place, past autograd: the values that change have no gradient.
            gain: Broadcastable to `weight`; None: 1.
        """
        spec, scale = self.spec, scale.detach()
        held = self.oscillations.frozen(weight.device)
        if held is not None:
            frozen, points = held[0], (held[1] * scale).type_as(weight)
            if gain is not None:
                frozen &= gain != 0  # a dead channel is 0 on every grid
                parameter.data.copy_(torch.where(frozen, points / gain, parameter.data))
            weight = torch.where(frozen, points, weight)
            if gain is None:
                parameter.data.copy_(weight.detach())
        q = round_to_integer(weight.detach() / scale, spec.rounding)
        q = q.clamp_(spec.quant_min, spec.quant_max)
        self.oscillations.follow(q.float(), self.freeze_above)
        return weight

    def fake_quantize_in_training(
        self, weight: Tensor, scale: Tensor, weight_range: Tensor | None
    ) -> Tensor:
        """:meth:`fake_quantize`, softened or damped, or with a gradient for the scale."""
        spec = self.spec
        limits = spec.quant_min, spec.quant_max
        if self.softness > 0:
            return soft_quantize_weight(weight, scale, *limits, self.softness)
        if spec.learned and weight_range is not None:
            count = weight_range.numel() if spec.granularity == "per_channel" else 1
            zero = torch.zeros((), device=weight.device)
            quantized = simulate_learned(weight, scale, zero, spec, weight.numel() // count)
        else:
            quantized = self.fake_quantize(weight, scale)
        if self.damping > 0:
            return damped(quantized, weight, scale, *limits, self.damping)
        return quantized
