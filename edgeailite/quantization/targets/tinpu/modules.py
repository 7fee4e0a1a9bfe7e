"""Batch norms and averages with offset, multiplier and shift, in the simulation.

An integer device computes ``floor((x_q + offset) * multiplier * 2^-shift)``. The layers here
simulate just that in evaluation mode: the quantizer behind them rounds down, they have added
half of its scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from edgeailite.quantization.arithmetic.fixed_point import (
    EXACT_BITS,
    Requantization,
    average_requantization,
    batch_norm_requantization,
)
from edgeailite.quantization.arithmetic.rounding import straight_through
from edgeailite.quantization.graph.operations import BATCH_NORM_MODULES
from edgeailite.quantization.graph.twins import make_twin, twin_types
from edgeailite.quantization.graph.window_sums import WindowSum
from edgeailite.quantization.modules.normalization import (
    channel_affine,
    gain_and_offset,
    plain_strides,
)

if TYPE_CHECKING:
    from edgeailite.quantization.modules.activation import FakeQuantize


_BITS = 8  # of a value on this target, at most


def average_constants(
    sums: WindowSum, shape: Sequence[int], input_scale: float, output_scale: float
) -> tuple[Any, Any, Requantization]:
    """Requantization of an average in numbers, for a graph that is being exported as well.

    Returns:
        Offset (in multiples of the input scale) and factor, numbers or, where places differ,
        tensors; and the whole numbers.
    """
    with _disable_current_modes():
        scales = torch.tensor(input_scale), torch.tensor(output_scale)
        found = average_requantization(_areas(sums, shape), *scales)
        offset, factor = found.offset.tolist(), found.factor.tolist()
    if isinstance(offset, float):
        return offset, factor, found
    return torch.tensor(offset), torch.tensor(factor), found


def _areas(sums: WindowSum, shape: Sequence[int]) -> Tensor:
    """Divisor of each sum, which needs no more bits than float32 holds."""
    areas, count = sums.areas(shape), sums.count(shape)
    if count is not None and count << _BITS > 1 << EXACT_BITS:
        raise ValueError(
            f"it sums {count} values of {_BITS} bits, which may need more than {EXACT_BITS} bits. "
            "Pool in two steps, smaller windows first."
        )
    return areas


class OffsetScaleShiftBatchNorm(nn.Module):
    """Mixin over torch's batch norms that no layer folds; at the network's input: normalisation.

    Attributes:
        multiplier_bits: Of the multiplier; None: it is not rounded.
    """

    multiplier_bits: int | None

    @classmethod
    def from_float(
        cls, batch_norm: nn.Module, multiplier_bits: int | None
    ) -> OffsetScaleShiftBatchNorm:
        """Make the twin of one of torch's batch norms; a twin is returned with the new bits."""
        twin = (
            batch_norm
            if isinstance(batch_norm, OffsetScaleShiftBatchNorm)
            else make_twin(batch_norm, OFFSET_SCALE_SHIFT_BATCH_NORMS[type(batch_norm)])
        )
        twin.multiplier_bits = multiplier_bits
        return twin

    def forward(
        self, x: Tensor, output_quantizer: FakeQuantize, input_quantizer: FakeQuantize | None = None
    ) -> Tensor:
        """Shape ``(N, C, ...)``, as the batch norm; half of the output's scale is added.

        Args:
            x: Values to normalise.
            output_quantizer: The one behind, which rounds down.
            input_quantizer: Whose grid `x` lies on; None: raw values.
        """
        if not output_quantizer.fake_quant_enabled:
            return super().forward(x)
        scale = output_quantizer.qparams().scale
        if self.training:
            return super().forward(x) + scale / 2
        gain, offset = gain_and_offset(self)
        with torch.no_grad():
            exact = self.frozen(output_quantizer, input_quantizer)(x)
        if not torch.is_grad_enabled():
            return exact
        return straight_through(channel_affine(x, gain, offset), exact)

    def frozen(
        self, output_quantizer: FakeQuantize, input_quantizer: FakeQuantize | None = None
    ) -> AddMultiply:
        """Make the module that computes what evaluation mode does, on the grids as they are now."""
        found, input_scale = self.requantization(output_quantizer, input_quantizer)
        factor = found.factor * (output_quantizer.qparams().scale / input_scale)
        return AddMultiply(found.offset * input_scale, factor)

    def requantization(
        self, output_quantizer: FakeQuantize, input_quantizer: FakeQuantize | None
    ) -> tuple[Requantization, Tensor]:
        """Return offset, multiplier and shift, and the input's scale (1 for raw values)."""
        gain, offset = gain_and_offset(self)
        scale = output_quantizer.qparams().scale
        source = None if input_quantizer is None else input_quantizer.qparams().scale
        input_scale = torch.ones_like(scale) if source is None else source
        return batch_norm_requantization(
            gain, offset, source, scale, self.multiplier_bits
        ), input_scale


class AddMultiply(nn.Module):
    """``(x + offset) * factor`` along axis 1: a batch norm in fixed point, in real values.

    Args:
        offset: Shape ``(C,)``.
        factor: Shape ``(C,)``.
    """

    offset: Tensor
    factor: Tensor

    def __init__(self, offset: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("offset", offset.detach().clone())
        self.register_buffer("factor", factor.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(N, C, ...)``."""
        x, tail = plain_strides(x), [1] * (x.dim() - 2)
        return (x + self.offset.reshape(-1, *tail)) * self.factor.reshape(-1, *tail)


OFFSET_SCALE_SHIFT_BATCH_NORMS = twin_types(
    OffsetScaleShiftBatchNorm, BATCH_NORM_MODULES, "OffsetScaleShift"
)


class OffsetScaleShiftAverage(nn.Module):
    """An average as a sum, an offset, a multiplier and a shift.

    Args:
        average: A pooling, or :class:`~edgeailite.quantization.graph.window_sums.Mean`.
        name: Of the call, for messages.
    """

    def __init__(self, average: nn.Module, name: str = "") -> None:
        super().__init__()
        self.sums, self.name = WindowSum(average), name

    def forward(
        self, x: Tensor, output_quantizer: FakeQuantize, input_quantizer: FakeQuantize
    ) -> Tensor:
        """Shapes as the average's; half of the output's scale is added.

        Args:
            x: On the grid of `input_quantizer`.
            output_quantizer: The one behind, which rounds down.
            input_quantizer: Whose grid `x` lies on.

        Raises:
            ValueError: The windows have no fixed-point form; the message names the call.
        """
        if not output_quantizer.fake_quant_enabled:
            return self.sums.average(x)
        try:
            areas = _areas(self.sums, x.shape)
        except ValueError as error:
            raise ValueError(f"'{self.name}': {error}") from error
        input_scale, scale = input_quantizer.qparams().scale, output_quantizer.qparams().scale
        found = average_requantization(areas, input_scale, scale)
        return (self.sums(x) + found.offset * input_scale) * (found.factor * (scale / input_scale))

    def frozen(
        self, output_quantizer: FakeQuantize, input_quantizer: FakeQuantize
    ) -> AverageOnGrids:
        """Make the module that computes the same on the grids as they are now."""
        scales = (float(q.qparams().scale) for q in (input_quantizer, output_quantizer))
        return AverageOnGrids(self.sums, *scales)


class AverageOnGrids(nn.Module):
    """:class:`OffsetScaleShiftAverage` between two constant power-of-two scales.

    Args:
        sums: Of the windows.
        input_scale: Scale of the summed values.
        output_scale: Scale of the average.
    """

    def __init__(self, sums: WindowSum, input_scale: float, output_scale: float) -> None:
        super().__init__()
        self.sums, self.input_scale, self.output_scale = sums, input_scale, output_scale

    def forward(self, x: Tensor) -> Tensor:
        """Real values in and out, shapes as the average's."""
        input_scale, scale = self.input_scale, self.output_scale
        offset, factor, _ = average_constants(self.sums, x.shape, input_scale, scale)
        return (self.sums(x) + offset * input_scale) * (factor * (scale / input_scale))
