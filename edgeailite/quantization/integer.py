"""Integer operators: what a converted graph is made of. Exact arithmetic.

Between operators a value is a tensor of integers, carried in float32 (every integer of up to 16
bits is exact there). Under ``torch.export`` each operator presents its ONNX form instead:
DequantizeLinear, the operation, QuantizeLinear, with real int8 tensors in between. What has no such
form (half-up rounding, more than 8 bits) exports the float-carried arithmetic that also runs here;
how a value is stored follows from its grid alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeailite.quantization.layers import QuantLayer
from edgeailite.quantization.ops import round_to_integer
from edgeailite.quantization.spec import Rounding

EXACT_IN_FLOAT32 = float(1 << 24)
_X_DIGIT = 256


@dataclass(frozen=True)
class Grid:
    """An integer grid in Python numbers.

    Attributes:
        scale: Step; a float32 value.
        zero_point: Integer that stands for 0.0.
        quant_min: Smallest integer, inclusive (after an absorbed activation's bound).
        quant_max: Largest integer, inclusive.
        bit_width: Bits of the stored integer.
        signed: Whether the stored integer is signed.
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
        """Whether ONNX QuantizeLinear computes this grid (8-bit storage, ties to even)."""
        return self.bit_width <= 8 and self.rounding == "half_even"

    @property
    def dtype(self) -> torch.dtype:
        """Type of the stored integer."""
        if self.bit_width <= 8:
            return torch.int8 if self.signed else torch.uint8
        return torch.int32

    @property
    def max_magnitude(self) -> int:
        """Largest ``|q - zero_point|``."""
        return max(abs(self.quant_min - self.zero_point), abs(self.quant_max - self.zero_point))

    @property
    def is_narrow(self) -> bool:
        """Whether the stored type reaches beyond the grid: its saturation does not clip then."""
        info = torch.iinfo(self.dtype)
        return (self.quant_min, self.quant_max) != (info.min, info.max)


def _quantize_linear(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.onnx.ops.symbolic(
        "QuantizeLinear", (x, scale, zero_point), dtype=zero_point.dtype, shape=x.shape, version=13
    )


def _dequantize_linear(
    q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None
) -> Tensor:
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    return torch.onnx.ops.symbolic(
        "DequantizeLinear",
        (q, scale, zero_point),
        attributes,
        dtype=torch.float32,
        shape=q.shape,
        version=13,
    )


class _GridModule(nn.Module):
    """Holds one grid; it travels in the state dict."""

    scale: Tensor
    zero_point: Tensor
    quantizer_path = ""  # of the simulation's quantizer that has the same values

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
        """Whether this call is traced for an ONNX file in which this grid has a form of its own."""
        return self.grid.has_onnx_form and torch.compiler.is_exporting()

    def _clip(self, q: Tensor) -> Tensor:
        return torch.clamp(q, self.grid.quant_min, self.grid.quant_max)

    def _stored(self, q: Tensor) -> Tensor:
        """Integers carried in float as the graph expects them: int8 in an ONNX file, if it can."""
        return q.to(self.grid.dtype) if self.exports_onnx_form else q

    def _to_onnx_integer(self, x: Tensor) -> Tensor:
        """QuantizeLinear, with a clip in front where the type's saturation is not the grid's."""
        grid = self.grid
        if grid.is_narrow:
            low = (grid.quant_min - grid.zero_point) * grid.scale
            high = (grid.quant_max - grid.zero_point) * grid.scale
            x = torch.clamp(x, low, high)
        return _quantize_linear(x, self.scale, self.zero_point)

    def extra_repr(self) -> str:
        """The grid in short."""
        grid = self.grid
        limits = f"{grid.quant_min}..{grid.quant_max}"
        return f"scale={grid.scale:g}, zero_point={grid.zero_point}, range={limits}"


class Quantize(_GridModule):
    """Real values to integers: ``clamp(round(x / s) + z, q_min, q_max)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Float in, integers out; any shape."""
        if self.exports_onnx_form:
            return self._to_onnx_integer(x)
        q = round_to_integer(x.float() / self.grid.scale, self.grid.rounding)
        return self._clip(q + self.grid.zero_point if self.grid.zero_point else q)


class Rescale(_GridModule):
    """Integers to multiples of another step: ``(q - z) * (s / s_target)``.

    Args:
        grid: Of the input.
        target_scale: Step in whose units the result is; 1.0: the real value.
        plain: Exported too as multiples of the target: what reads them has no ONNX form.
    """

    def __init__(self, grid: Grid, target_scale: float = 1.0, plain: bool = False) -> None:
        super().__init__(grid)
        self.target_scale, self.plain = target_scale, plain

    def get_extra_state(self) -> dict[str, Any]:
        """The grid's numbers and the target."""
        return {"grid": super().get_extra_state(), "target_scale": self.target_scale}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take those of a saved model."""
        super().set_extra_state(state["grid"])
        self.target_scale = state["target_scale"]

    def forward(self, q: Tensor) -> Tensor:
        """Integers in, float32 out; any shape."""
        if self.exports_onnx_form and not self.plain:
            return _dequantize_linear(q, self.scale, self.zero_point)
        return self.multiples(q)

    def multiples(self, q: Tensor) -> Tensor:
        """The arithmetic without an ONNX form: multiples of the target step, float32."""
        grid, q = self.grid, q.float()
        u = q - grid.zero_point if grid.zero_point else q
        return u if grid.scale == self.target_scale else u * _float32(grid.scale, self.target_scale)


def _float32(numerator: float, denominator: float) -> float:
    """The quotient as float32 computes it."""
    return float(torch.tensor(numerator) / torch.tensor(denominator))


class Requantize(_GridModule):
    """Results in units of this grid's step back to integers: ``clamp(round(u) + z)``.

    Args:
        grid: Of the result.
        moved: The operation only moved integers of this very grid: nothing to round or clamp.
        plain: Exported too from multiples of the step: what made them has no ONNX form.
    """

    def __init__(self, grid: Grid, moved: bool = False, plain: bool = False) -> None:
        super().__init__(grid)
        self.moved, self.plain = moved, plain

    def forward(self, u: Tensor) -> Tensor:
        """Multiples of the step in (real values in the ONNX form), integers out; any shape."""
        if not self.exports_onnx_form or self.plain:
            return self.integers(u)
        if self.moved:
            return _quantize_linear(u, self.scale, self.zero_point)
        return self._to_onnx_integer(u)

    def integers(self, u: Tensor) -> Tensor:
        """The arithmetic without an ONNX form: from multiples of the step."""
        q = u if self.moved else round_to_integer(u, self.grid.rounding)
        q = q + self.grid.zero_point if self.grid.zero_point else q
        return self._stored(q if self.moved else self._clip(q))


class IntegerMatMul(nn.Module):
    """Product of two matrices of integers: ``round(sum (a_q - z_a) (b_q - z_b) * M) + z_y``.

    ``M = s_a * s_b / s_y``, computed and applied in float32. The sum is exact in float32 up to 512
    products of 8-bit integers.

    Args:
        left: Grid of the first operand.
        right: Grid of the second operand.
        output: Grid of the product.
        equation: Of ``torch.einsum``; None: ``torch.matmul``.
    """

    quantizer_path = ""

    def __init__(self, left: Grid, right: Grid, output: Grid, equation: str | None = None) -> None:
        super().__init__()
        self.equation = equation
        plain = not all(g.has_onnx_form for g in (left, right, output))
        self.left = Rescale(left, left.scale if plain else 1.0)
        self.right = Rescale(right, right.scale if plain else 1.0)
        self.output = Requantize(output, plain=plain)
        self.plain = plain

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Integers in and out, shapes as ``torch.matmul``."""
        if torch.compiler.is_exporting() and not self.plain:
            return self.output(self._multiply(self.left(a), self.right(b)))
        left, right = self.left.grid, self.right.grid
        a, b = (q - g.zero_point if g.zero_point else q for q, g in ((a, left), (b, right)))
        scale = self.left.scale * self.right.scale / self.output.scale
        return self.output.integers(self._multiply(a, b) * scale)

    def _multiply(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.matmul(a, b) if self.equation is None else torch.einsum(self.equation, a, b)


class IntegerLayer(nn.Module):
    """Convolution or linear in integers: ``round((sum (x_q - z_x) * w_q + b_q) * M) + z_y``.

    ``M = s_x * s_w / s_y`` per output channel, computed and applied in float32, as ONNX Runtime's
    integer kernels do. The sum runs in float32 where ``sum |w_q| * max |x_q - z_x| + |b_q| < 2^24``
    for every output channel, which makes it exact; else in float64.

    Args:
        layer: Says which operation; its own parameters are not used.
        weight: Integers, shape of the layer's weight.
        bias: Integers, shape ``(C_out,)``, or None.
        weight_scale: Steps of the output channels, float32, shape ``(C_out,)``.
        input_grid: Of the input.
        output_grid: Of the output; None: the accumulator is returned in real units, ``acc * s_x *
            s_w``.
    """

    weight: Tensor
    bias: Tensor | None
    weight_scale: Tensor
    weight_digits: Tensor | None
    quantizer_path = ""
    layer_path = ""  # of the layer in the user's model

    def __init__(
        self, layer: QuantLayer, weight: Tensor, bias: Tensor | None, weight_scale: Tensor,
        input_grid: Grid, output_grid: Grid | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.operation = layer
        self.input = Rescale(input_grid, input_grid.scale)
        self.output = None if output_grid is None else Requantize(output_grid)
        narrow = layer.weight_spec.bit_width <= 8
        self.register_buffer("weight", weight.to(torch.int8 if narrow else torch.int32))
        self.register_buffer("bias", None if bias is None else bias.to(torch.int32))
        uniform = bool((weight_scale == weight_scale[0]).all())
        self.register_buffer(
            "weight_scale", weight_scale[0].clone() if uniform else weight_scale.clone()
        )
        self._set_bound(self._accumulator_bound())

    def _accumulator_bound(self) -> float:
        """Largest magnitude that any partial sum can have."""
        magnitude = self.input.grid.max_magnitude
        rows = self.operation.rows(self.weight.float())
        sums = torch.linalg.vector_norm(rows, ord=1, dim=1, dtype=torch.float64) * magnitude
        return float((sums if self.bias is None else sums + self.bias.double().abs()).max())

    def _set_bound(self, bound: float) -> None:
        self.bound = bound
        needs_digits = bound >= EXACT_IN_FLOAT32 and not self.has_onnx_form
        digits = self._weight_digits() if needs_digits else None
        self.register_buffer("weight_digits", digits, persistent=False)

    @property
    def _axis(self) -> int:
        return 1 if self.operation.is_transposed and self.operation.num_groups == 1 else 0

    @property
    def has_onnx_form(self) -> bool:
        """Whether input, weight and output all have an ONNX form."""
        output = self.output is None or self.output.grid.has_onnx_form
        return self.weight.dtype == torch.int8 and output and self.input.grid.has_onnx_form

    @property
    def exports_onnx_form(self) -> bool:
        """Whether this call is traced for an ONNX file in which the layer has a form of its own."""
        return self.has_onnx_form and torch.compiler.is_exporting()

    def forward(self, x: Tensor) -> Tensor:
        """Integers in; integers out, or real values if there is no output grid."""
        if self.exports_onnx_form:
            return self._onnx_form(x)
        acc = self.accumulate(self.input.multiples(x))
        if self.output is None:
            return acc * self._per_channel(self.input.scale * self.weight_scale)
        multiplier = self.input.scale * self.weight_scale / self.output.scale
        return self.output.integers(acc * self._per_channel(multiplier))

    def accumulate(self, x: Tensor) -> Tensor:
        """``sum x * w_q + b_q``, exactly; `x` has its zero point taken off. Returned in float32."""
        dtype = torch.float32 if self.bound < EXACT_IN_FLOAT32 else torch.float64
        if dtype == torch.float64 and torch.compiler.is_exporting():
            return self._accumulate_digits(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        return self.operation.operate(x.to(dtype), self.weight.to(dtype), bias).float()

    def _accumulate_digits(self, x: Tensor) -> Tensor:
        """:meth:`accumulate` by digits: ONNX Runtime has no float64 convolution."""
        assert self.weight_digits is not None
        x_digits = [x]
        if self.input.grid.max_magnitude > _X_DIGIT:
            high = torch.floor(x / _X_DIGIT)
            x_digits = [x - high * _X_DIGIT, high]
        base = 1 << (16 // self.weight_digits.shape[0])
        total = None if self.bias is None else self._per_channel(self.bias.double())
        for i, x_digit in enumerate(x_digits):
            for j, weight in enumerate(self.weight_digits):
                part = self.operation.operate(x_digit, weight, None).double()
                part = part * float(_X_DIGIT**i * base**j)
                total = part if total is None else total + part
        assert total is not None
        return total.float()

    def _weight_digits(self) -> Tensor:
        """Digits with ``w = sum_j base^j * digit_j``, so small that the sums stay below 2^24.

        Returns:
            2, 4 or 8 digits, float32, shape ``(digits, *weight.shape)``;
            ``base = 2^(16 / digits)``.
        """
        for count in (2, 4, 8):
            base, rest, digits = float(1 << (16 // count)), self.weight.double(), []
            for _ in range(count - 1):
                digits.append((rest + base / 2).remainder(base) - base / 2)
                rest = (rest - digits[-1]) / base
            digits.append(rest)
            sums = max(float(self.operation.rows(d).abs().sum(dim=1).max()) for d in digits)
            if sums * _X_DIGIT < EXACT_IN_FLOAT32:
                break
        return torch.stack(digits).float()

    def _per_channel(self, vector: Tensor) -> Tensor:
        """A vector over channels, shaped to multiply the accumulator: only linear has them last."""
        if vector.dim() == 0 or self.weight.dim() == 2:
            return vector
        return vector.reshape(-1, *[1] * (self.weight.dim() - 2))

    def _onnx_form(self, x: Tensor) -> Tensor:
        axis = None if self.weight_scale.dim() == 0 else self._axis
        zero = torch.zeros_like(self.weight_scale, dtype=torch.int8)
        weight = _dequantize_linear(self.weight, self.weight_scale, zero, axis)
        bias = None
        if self.bias is not None:
            scale = self.input.scale * self.weight_scale
            zero = torch.zeros_like(scale, dtype=torch.int32)
            bias = _dequantize_linear(self.bias, scale, zero, None if axis is None else 0)
        y = self.operation.operate(self.input(x), weight, bias)
        return y if self.output is None else self.output(y)

    def get_extra_state(self) -> dict[str, Any]:
        """The accumulator's bound."""
        return {"bound": self.bound}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the bound of a saved model; its weights are in already, its grids not yet."""
        self._set_bound(float(state["bound"]))
