"""Integer operators with offset, multiplier and shift: ``floor((acc + offset) * m * 2^-shift)``.

Integers are carried in float32, in PyTorch and in the ONNX file: ``Conv`` or ``Gemm``, ``Add``,
``Mul``, ``Floor``, ``Clip``. All sums stay below 2^24, where that is exact.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgeailite.quantization.arithmetic.fixed_point import (
    EXACT_BITS,
    MAX_SHIFT,
    MULTIPLIER_BITS,
    Requantization,
    multiplier_and_shift,
)
from edgeailite.quantization.integer.grid import (
    FLOAT_BYTES,
    OFFSET_BYTES,
    Constants,
    Grid,
    GridModule,
    IntegerOperator,
    packed_bytes,
)
from edgeailite.quantization.integer.normalizations import IntegerSoftmax
from edgeailite.quantization.modules.normalization import plain_strides
from edgeailite.quantization.targets.tinpu.modules import average_constants

if TYPE_CHECKING:
    from edgeailite.quantization.graph.window_sums import WindowSum
    from edgeailite.quantization.modules.layer import OutputSize, QuantLayer

# Operator of the exported file, and the name of the constant that it reads.
_CONSTANT_NAMES = {"Add": "offset", "Mul": "factor"}
_SHIFT_BYTES = 1


class OffsetScaleShift(GridModule, IntegerOperator):
    """``clip(floor((x + offset) * multiplier * 2^-shift), q_min, q_max)``.

    Args:
        requantization: Offset, multiplier and shift, each of shape ``()`` or ``(C,)``.
        grid: Of the result.
        multiplier_bits: Of the multiplier, without its sign; None: the factor is a float.
        channels_last: Channels lie along the last axis, not the second.

    Attributes:
        offset: In multiples of the input's scale, float32.
        factor: ``multiplier * 2^-shift``, float32.
    """

    constant_names = _CONSTANT_NAMES
    offset: Tensor
    factor: Tensor

    def __init__(
        self,
        requantization: Requantization,
        grid: Grid,
        multiplier_bits: int | None = MULTIPLIER_BITS,
        channels_last: bool = False,
    ) -> None:
        super().__init__(grid)
        self.multiplier_bits, self.channels_last = multiplier_bits, channels_last
        self.register_buffer("offset", requantization.offset.detach().clone())
        self.register_buffer("factor", requantization.factor.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """An accumulator, or raw input, in; integers out; any shape."""
        x = plain_strides(x)
        offset, factor = (self._along_channels(v, x) for v in (self.offset, self.factor))
        return self.clamp(torch.floor((x + offset) * factor))

    def _along_channels(self, vector: Tensor, x: Tensor) -> Tensor:
        if vector.dim() == 0 or self.channels_last:
            return vector
        return vector.reshape(-1, *[1] * (x.dim() - 2))

    def constants(self, input_shape: torch.Size | None) -> Constants:
        """Offsets, and multipliers with their shifts, or float factors."""
        bits = self.multiplier_bits
        size = FLOAT_BYTES if bits is None else _SHIFT_BYTES + (1 if bits <= 8 else 2)
        return Constants(0, self.offset.numel() * OFFSET_BYTES, self.factor.numel() * size)

    def multiplier_and_shift(self) -> tuple[Tensor, Tensor]:
        """The factor's whole numbers, in float64.

        Raises:
            ValueError: The factor is a float.
        """
        if self.multiplier_bits is None:
            raise ValueError(
                f"'{self.quantizer_path}' multiplies with a float (float_ops has 'qdq'): it has no "
                "multiplier and shift."
            )
        return multiplier_and_shift(self.factor, self.multiplier_bits, min_shift=-MAX_SHIFT)


class OffsetScaleShiftProduct(IntegerOperator):
    """Product of two tensors of integers, then offset, multiplier and shift.

    Args:
        output: What follows the products of up to 16 bits.
    """

    def __init__(self, output: OffsetScaleShift) -> None:
        super().__init__()
        self.output = output

    @property
    def output_grid(self) -> Grid:
        """Grid of the result."""
        return self.output.grid

    def constants(self, input_shape: torch.Size | None) -> Constants:
        """An offset, a multiplier and a shift."""
        return self.output.constants(None)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Integers in and out; shapes broadcast."""
        return self.output(a * b)


class ExactSoftmax(IntegerSoftmax):
    """Softmax whose rounded quotients are those of integers: ``floor((2 e / s_y + S) / (2 S))``.

    ``e`` are exponentials from a table, ``S`` their sum, at most 2^23. So a quotient lies at least
    2^-24 from where it would round to another integer, or just there; float64 is far more exact.
    """

    def _divided(self, e: Tensor, total: Tensor) -> Tensor:
        multiplier = 1.0 / self.output.grid.scale  # a power of two
        return self.steps(e.double() * multiplier / total.double()).float()


class Saturate(GridModule, IntegerOperator):
    """Integers that are multiples of this grid's scale already, clamped to its ends."""

    only_clamps = True

    def forward(self, q: Tensor) -> Tensor:
        """Integers in and out; any shape."""
        return self.clamp(q)


class WindowAverage(GridModule, IntegerOperator):
    """Sums over windows, then offset, multiplier and shift by one over the area.

    Args:
        sums: Of the windows.
        source: Grid of the input.
        grid: Of the averages.
    """

    constant_names = _CONSTANT_NAMES

    def __init__(self, sums: WindowSum, source: Grid, grid: Grid) -> None:
        super().__init__(grid)
        self.sums, self.source = sums, source

    def forward(self, x: Tensor) -> Tensor:
        """Integers in and out, shapes as the average's."""
        offset, factor, _ = self.requantization(x.shape)
        return self.clamp(torch.floor((self.sums(x) + offset) * factor))

    def constants(self, input_shape: torch.Size | None) -> Constants:
        """An offset, a multiplier and a shift for each place that differs."""
        assert input_shape is not None
        places = self.requantization(input_shape)[2].factor.numel()
        return Constants(0, places * OFFSET_BYTES, places * (1 + _SHIFT_BYTES))

    def requantization(self, shape: torch.Size) -> tuple[Any, Any, Requantization]:
        """Offset and factor (numbers, or tensors where places differ), and the whole numbers."""
        return average_constants(self.sums, shape, self.source.scale, self.grid.scale)

    def get_extra_state(self) -> dict[str, Any]:
        """Both grids."""
        source = asdict(self.source)
        return {**super().get_extra_state(), "source": source}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the grids of a saved model."""
        state = dict(state)
        self.source = Grid(**state.pop("source"))
        super().set_extra_state(state)


class OffsetScaleShiftLayer(IntegerOperator):
    """Integer convolution or linear without bias, then offset, multiplier and shift.

    Args:
        layer: Says which operation; its own parameters are not used.
        weight: Integers, shape of the layer's weight.
        output: What follows the sums, its offset of shape ``(C_out,)``.
        source: Grid of the input.

    Raises:
        ValueError: A sum does not fit 24 bits.
    """

    weight: Tensor

    def __init__(
        self, layer: QuantLayer, weight: Tensor, output: OffsetScaleShift, source: Grid
    ) -> None:
        super().__init__()
        self.operation, self.output, self.source = layer, output, source
        self.register_buffer("weight", weight.detach().float().clone())
        sums = layer.rows(self.weight).abs().sum(1) * source.max_magnitude
        largest = float((sums + output.offset.abs()).max())
        if largest >= 1 << EXACT_BITS:
            raise ValueError(
                f"The sums reach {largest:.3g}, more than {EXACT_BITS} bits hold. Use fewer inputs "
                "(a smaller kernel, fewer channels, more groups), or fewer bits for its weights."
            )

    @property
    def output_grid(self) -> Grid:
        """Grid of the result."""
        return self.output.grid

    def constants(self, input_shape: torch.Size | None) -> Constants:
        """Packed weights, and the constants of what follows the sums."""
        weights = packed_bytes(self.weight.numel(), self.weight_bits)
        return self.output.constants(None)._replace(weights=weights)

    @property
    def weight_bits(self) -> int:
        """Bits of a weight."""
        return self.operation.weight_quantizer.spec.bit_width

    def forward(self, x: Tensor, output_size: OutputSize = None) -> Tensor:
        """Integers in and out, shapes as the layer's; see :meth:`QuantLayer.forward`."""
        return self.output(self.accumulate(x, output_size))

    def accumulate(self, x: Tensor, output_size: OutputSize = None) -> Tensor:
        """``sum x_q * w_q``, exactly."""
        if self.weight.dim() == 2 and x.dim() == 2 and torch.compiler.is_exporting():
            shape = (x.shape[0], self.weight.shape[0])
            return torch.onnx.ops.symbolic(
                "Gemm", (x, self.weight), {"transB": 1}, dtype=x.dtype, shape=shape, version=13
            )
        return self.operation.operate(x, self.weight, None, output_size)
