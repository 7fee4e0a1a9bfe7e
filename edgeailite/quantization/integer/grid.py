"""Integer grids, and the modules that put values on them and take them off again.

Between operators a value is a tensor of integers, carried in float32 (every integer of up to 16
bits is exact there). Under ``torch.export`` each operator presents its ONNX form instead:
DequantizeLinear, the operation, QuantizeLinear, with real int8 tensors in between. A grid without
such a form (half-up rounding, more than 8 bits) exports the float-carried arithmetic that also runs
here.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from edgeailite.quantization.arithmetic.rounding import round_to_integer

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import Rounding


@dataclass(frozen=True)
class Grid:
    """An integer grid in Python numbers.

    Attributes:
        scale: A float32 value.
        zero_point: Integer that stands for 0.0.
        quant_min: Smallest integer, inclusive (after an absorbed activation's bound).
        quant_max: Largest integer, inclusive.
        bit_width: Bits of the stored integer.
        signed: True if the stored integer is signed.
        rounding: Where ties go.
    """

    scale: float
    zero_point: int
    quant_min: int
    quant_max: int
    bit_width: int = 8
    signed: bool = True
    rounding: Rounding = "half_even"

    @property
    def has_onnx_form(self) -> bool:
        """True if ONNX QuantizeLinear computes this grid (8-bit storage, ties to even)."""
        return self.bit_width <= 8 and self.rounding == "half_even"

    @property
    def is_power_of_two(self) -> bool:
        """True if the scale is ``2^k``."""
        return math.frexp(self.scale)[0] == 0.5

    @property
    def dtype(self) -> torch.dtype:
        """Type of the stored integer."""
        if self.bit_width <= 8:
            return torch.int8 if self.signed else torch.uint8
        return torch.int32

    @property
    def integers(self) -> range:
        """All that a value may be: the grid's, and zero, which padding writes beside it."""
        low, high = min(self.quant_min, self.zero_point), max(self.quant_max, self.zero_point)
        return range(low, high + 1)

    @property
    def max_magnitude(self) -> int:
        """Largest ``|q - zero_point|``."""
        return max(abs(self.quant_min - self.zero_point), abs(self.quant_max - self.zero_point))

    @property
    def is_narrow(self) -> bool:
        """True if the stored type reaches beyond the grid: its saturation does not clip then."""
        info = torch.iinfo(self.dtype)
        return (self.quant_min, self.quant_max) != (info.min, info.max)


def has_kernel(*inputs: Grid, output: Grid) -> bool:
    """True if ONNX Runtime runs an integer kernel of its own: one type, no further clipping."""
    grids = (*inputs, output)
    same_type = len({g.dtype for g in grids}) == 1
    return same_type and all(g.has_onnx_form for g in grids) and not output.is_narrow


def quantize_linear(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """ONNX QuantizeLinear, for a graph that is being exported."""
    return torch.onnx.ops.symbolic(
        "QuantizeLinear", (x, scale, zero_point), dtype=zero_point.dtype, shape=x.shape, version=13
    )


def dequantize_linear(
    q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None
) -> Tensor:
    """ONNX DequantizeLinear, for a graph that is being exported."""
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    return torch.onnx.ops.symbolic(
        "DequantizeLinear",
        (q, scale, zero_point),
        attributes,
        dtype=torch.float32,
        shape=q.shape,
        version=13,
    )


class Constants(NamedTuple):
    """Bytes that an operation's constants take on a device.

    Attributes:
        weights: Weights, packed to their bits.
        offsets: Offsets or biases.
        scales: Multipliers and shifts, or float scales.
    """

    weights: int = 0
    offsets: int = 0
    scales: int = 0


OFFSET_BYTES, FLOAT_BYTES = 4, 4


def packed_bytes(count: int, bit_width: int) -> int:
    """Bytes of `count` integers of `bit_width` bits without gaps."""
    return -(-count * bit_width // 8)


class IntegerOperator(nn.Module):
    """Base of all modules whose result are integers on a grid.

    Attributes:
        quantizer_path: Of the simulation's quantizer that has the same values; empty: of none.
        layer_path: Of the layer in the user's model; empty: it is no layer.
        only_clamps: It changes no integer that lies inside of its grid, so its result may take the
            place of its operand in memory.
    """

    quantizer_path = ""
    layer_path = ""
    only_clamps = False

    @property
    def output_grid(self) -> Grid | None:
        """Grid of the result; None: real values."""
        raise NotImplementedError

    def constants(self, input_shape: torch.Size | None) -> Constants:
        """Bytes of the constants, for an input of `input_shape`."""
        return Constants()


class GridModule(nn.Module):
    """Holds one grid; it travels in the state dict."""

    scale: Tensor
    zero_point: Tensor

    @property
    def output_grid(self) -> Grid | None:
        """The grid."""
        return self.grid

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self._set_grid(grid)

    def _set_grid(self, grid: Grid) -> None:
        self.grid = grid
        self.register_buffer(
            "scale", torch.tensor(grid.scale, dtype=torch.float32), persistent=False
        )
        self.register_buffer(
            "zero_point", torch.tensor(grid.zero_point, dtype=grid.dtype), persistent=False
        )

    def get_extra_state(self) -> dict[str, Any]:
        """The grid's numbers."""
        return asdict(self.grid)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the grid of a saved model."""
        device = self.scale.device
        self._set_grid(Grid(**state))
        self.to(device)

    @property
    def exports_onnx_form(self) -> bool:
        """True if this call is traced for an ONNX file in which this grid has a form of its own."""
        return self.grid.has_onnx_form and torch.compiler.is_exporting()

    def clamp(self, q: Tensor) -> Tensor:
        """Clamp integers to the grid's ends."""
        return torch.clamp(q, self.grid.quant_min, self.grid.quant_max)

    def _stored(self, q: Tensor) -> Tensor:
        """Integers carried in float as the graph expects them: int8 in an ONNX file, if it can."""
        return q.to(self.grid.dtype) if self.exports_onnx_form else q

    def _to_onnx_integer(self, x: Tensor, scaled: bool = True) -> Tensor:
        """QuantizeLinear, with a clip in front where the type's saturation is not the grid's.

        Not `scaled` values are multiples of the scale already.
        """
        grid, step = self.grid, self.grid.scale if scaled else 1.0
        if grid.is_narrow:
            low = (grid.quant_min - grid.zero_point) * step
            high = (grid.quant_max - grid.zero_point) * step
            x = torch.clamp(x, low, high)
        scale = self.scale if scaled else torch.ones_like(self.scale)
        return quantize_linear(x, scale, self.zero_point)

    def extra_repr(self) -> str:
        """The grid in short."""
        grid = self.grid
        limits = f"{grid.quant_min}..{grid.quant_max}"
        return f"scale={grid.scale:g}, zero_point={grid.zero_point}, range={limits}"


class Quantize(GridModule, IntegerOperator):
    """Real values to integers: ``clamp(round(x / s) + z, q_min, q_max)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Float in, integers out; any shape."""
        return self._to_onnx_integer(x) if self.exports_onnx_form else self.integers(x)

    def integers(self, x: Tensor) -> Tensor:
        """The arithmetic without an ONNX form."""
        q = round_to_integer(x.float() / self.grid.scale, self.grid.rounding)
        return self.clamp(q + self.grid.zero_point if self.grid.zero_point else q)


class IntegerConstant(GridModule, IntegerOperator):
    """Integers that do not depend on the input.

    Args:
        grid: Their grid.
        value: Real values, of any shape.
    """

    integers: Tensor

    def __init__(self, grid: Grid, value: Tensor) -> None:
        super().__init__(grid)
        self.register_buffer("integers", Quantize(grid)(value.detach()))

    def forward(self) -> Tensor:
        """Integers, of the shape of the value."""
        return self._stored(self.integers)

    def constants(self, input_shape: torch.Size | None) -> Constants:
        """The integers, packed."""
        return Constants(packed_bytes(self.integers.numel(), self.grid.bit_width))


class Dequantize(GridModule):
    """Integers to real values: ``(q - z) * s``.

    Args:
        grid: Of the input.
        scaled: False leaves the scale out, ``q - z``: sums of that are exact, whatever the scale.
    """

    def __init__(self, grid: Grid, scaled: bool = True) -> None:
        super().__init__(grid)
        self.scaled = scaled

    def forward(self, q: Tensor) -> Tensor:
        """Integers in, float32 out; any shape. The ONNX form is in real values always."""
        if self.exports_onnx_form:
            return dequantize_linear(q, self.scale, self.zero_point)
        return self.real(q) if self.scaled else self.centered(q)

    def real(self, q: Tensor) -> Tensor:
        """``(q - z) * s`` in float32, without an ONNX form."""
        return self.centered(q) * self.grid.scale

    def steps(self, q: Tensor) -> Tensor:
        """``q - z`` in float32, in a file too: a DequantizeLinear with scale 1."""
        if self.exports_onnx_form:
            return dequantize_linear(q, torch.ones_like(self.scale), self.zero_point)
        return self.centered(q)

    def centered(self, q: Tensor) -> Tensor:
        """``q - z`` in float32."""
        q = q.float()
        return q - self.grid.zero_point if self.grid.zero_point else q


class ApplyScale(GridModule):
    """Multiples of a grid's scale to real values: times ``s``."""

    def forward(self, u: Tensor) -> Tensor:
        """Float32 in and out; any shape."""
        return u if self.exports_onnx_form else u * self.grid.scale


class Requantize(GridModule):
    """Multiples of this grid's scale back to integers: ``clamp(round(u) + z)``.

    Args:
        grid: Of the result.
        moved: The operation only moved integers of this very grid: nothing to round or clamp.
    """

    def __init__(self, grid: Grid, moved: bool = False) -> None:
        super().__init__(grid)
        self.moved = moved

    def forward(self, u: Tensor) -> Tensor:
        """Multiples of the scale in (real values in the ONNX form), integers out; any shape."""
        if not self.exports_onnx_form:
            return self.integers(u)
        if self.moved:
            return quantize_linear(u, self.scale, self.zero_point)
        return self._to_onnx_integer(u)

    def steps(self, u: Tensor) -> Tensor:
        """From multiples of the scale, in a file too: a QuantizeLinear with scale 1."""
        return self._to_onnx_integer(u, False) if self.exports_onnx_form else self.integers(u)

    def integers(self, u: Tensor) -> Tensor:
        """The arithmetic without an ONNX form: from multiples of the scale."""
        q = u if self.moved else round_to_integer(u, self.grid.rounding)
        q = q + self.grid.zero_point if self.grid.zero_point else q
        return self._stored(q if self.moved else self.clamp(q))
