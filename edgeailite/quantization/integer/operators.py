"""Integer operators: what a converted graph is made of. Exact arithmetic.

Between operators a value is a tensor of integers, carried in float32 (every integer of up to 16
bits is exact there). Under ``torch.export`` each operator presents its ONNX form instead:
DequantizeLinear, the operation, QuantizeLinear, with real int8 tensors in between. What has no such
form (half-up rounding, more than 8 bits) exports the float-carried arithmetic that also runs here;
how a value is stored follows from its grid alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeailite.quantization.arithmetic.rounding import round_to_integer
from edgeailite.quantization.arithmetic.spec import Rounding
from edgeailite.quantization.modules.layer import QuantLayer

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
    def is_power_of_two(self) -> bool:
        """Whether the step is ``2^k``."""
        return math.frexp(self.scale)[0] == 0.5

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


def has_kernel(*inputs: Grid, output: Grid) -> bool:
    """Whether ONNX Runtime runs an integer kernel of its own: one type, no further clipping."""
    grids = (*inputs, output)
    same_type = len({g.dtype for g in grids}) == 1
    return same_type and all(g.has_onnx_form for g in grids) and not output.is_narrow


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


class GridModule(nn.Module):
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

    def clip(self, q: Tensor) -> Tensor:
        """Cut integers at the grid's ends."""
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


class Quantize(GridModule):
    """Real values to integers: ``clamp(round(x / s) + z, q_min, q_max)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Float in, integers out; any shape."""
        if self.exports_onnx_form:
            return self._to_onnx_integer(x)
        q = round_to_integer(x.float() / self.grid.scale, self.grid.rounding)
        return self.clip(q + self.grid.zero_point if self.grid.zero_point else q)


class Dequantize(GridModule):
    """Integers to real values: ``(q - z) * s``.

    Args:
        grid: Of the input.
        in_steps: Leave the step out, ``q - z``: sums of that are exact, whatever the step.
    """

    def __init__(self, grid: Grid, in_steps: bool = False) -> None:
        super().__init__(grid)
        self.in_steps = in_steps

    def forward(self, q: Tensor) -> Tensor:
        """Integers in, float32 out; any shape. The ONNX form is in real values always."""
        if self.exports_onnx_form:
            return _dequantize_linear(q, self.scale, self.zero_point)
        steps = self.steps(q)
        return steps if self.in_steps else steps * self.grid.scale

    def steps(self, q: Tensor) -> Tensor:
        """``q - z`` in float32."""
        q = q.float()
        return q - self.grid.zero_point if self.grid.zero_point else q


class StepsToReal(GridModule):
    """What an operation made of :class:`Dequantize` in steps, in real values: times ``s``."""

    def forward(self, u: Tensor) -> Tensor:
        """Float32 in and out; any shape."""
        return u if self.exports_onnx_form else u * self.grid.scale


class Requantize(GridModule):
    """Results in units of this grid's step back to integers: ``clamp(round(u) + z)``.

    Args:
        grid: Of the result.
        moved: The operation only moved integers of this very grid: nothing to round or clamp.
    """

    def __init__(self, grid: Grid, moved: bool = False) -> None:
        super().__init__(grid)
        self.moved = moved

    def forward(self, u: Tensor) -> Tensor:
        """Multiples of the step in (real values in the ONNX form), integers out; any shape."""
        if not self.exports_onnx_form:
            return self.integers(u)
        if self.moved:
            return _quantize_linear(u, self.scale, self.zero_point)
        return self._to_onnx_integer(u)

    def integers(self, u: Tensor) -> Tensor:
        """The arithmetic without an ONNX form: from multiples of the step."""
        q = u if self.moved else round_to_integer(u, self.grid.rounding)
        q = q + self.grid.zero_point if self.grid.zero_point else q
        return self._stored(q if self.moved else self.clip(q))


class IntegerAveragePool(nn.Module):
    """Local averages in the arithmetic of ONNX Runtime's kernel, which rounds last of all.

    ``round(mean((x_q - z_x) s_x) / s_y + z_y)``: the zero point is added before the rounding.

    Args:
        operation: The pooling, a module or function of real values.
        source: Grid of the input.
        output: Grid of the averages.
    """

    quantizer_path = ""

    def __init__(self, operation: Callable[[Tensor], Tensor], source: Grid, output: Grid) -> None:
        super().__init__()
        self.operation = operation
        self.input, self.output = Dequantize(source), Requantize(output)

    def forward(self, x: Tensor) -> Tensor:
        """Integers in and out, shapes as the pooling's."""
        y = self.operation(self.input(x))
        if self.input.exports_onnx_form:
            return self.output(y)
        grid = self.output.grid
        return self.output.clip(torch.round(y / grid.scale + grid.zero_point))


class IntegerGlobalAverage(nn.Module):
    """Averages over whole images in the arithmetic of ONNX Runtime's kernel.

    ``round(sum(x_q - z_x) * M) + z_y`` with ``M = s_x / (s_y * n)`` in float32; the sum is exact.

    Args:
        source: Grid of the input.
        output: Grid of the averages.
        keepdim: Return ``(N, C, 1, 1)``, else ``(N, C)``.
    """

    quantizer_path = ""

    def __init__(self, source: Grid, output: Grid, keepdim: bool) -> None:
        super().__init__()
        self.input, self.output, self.keepdim = Dequantize(source), Requantize(output), keepdim

    def forward(self, x: Tensor) -> Tensor:
        """Integers ``(N, C, H, W)`` in, integers out."""
        if self.input.exports_onnx_form:
            shape = (*x.shape[:2], 1, 1)
            real = self.input(x)
            y = self.output(
                torch.onnx.ops.symbolic(
                    "GlobalAveragePool", (real,), dtype=real.dtype, shape=shape, version=1
                )
            )
        else:
            count = x.shape[2] * x.shape[3]
            multiplier = self.input.scale / (self.output.scale * count)
            sums = self.input.steps(x).sum((2, 3), keepdim=True)
            y = self.output.integers(sums * multiplier)
        return y if self.keepdim else y.flatten(1)


class TwoOperands(nn.Module):
    """An operation on two tensors of integers, whose result is rounded to a third grid.

    Args:
        left: Grid of the first operand.
        right: Grid of the second operand.
        output: Grid of the result.
    """

    quantizer_path = ""

    def __init__(self, left: Grid, right: Grid, output: Grid) -> None:
        super().__init__()
        self.left, self.right = Dequantize(left), Dequantize(right)
        self.output = Requantize(output)

    @property
    def exports_onnx_form(self) -> bool:
        """Whether this call is traced for a file in which all three grids have a form."""
        return all(m.exports_onnx_form for m in (self.left, self.right, self.output))


class IntegerAdd(TwoOperands):
    """Sum of two tensors of 8-bit integers, in the arithmetic of ONNX Runtime's kernel.

    ``round(a_q * r_a + (b_q * r_b + c))`` with ``r = s / s_y``, ``c = z_y - (r_a z_a + r_b z_b)``
    in float32, the products fused with the additions as on processors with FMA. With power-of-two
    scales all of it is exact.
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Integers in and out; shapes broadcast."""
        if self.exports_onnx_form:
            return self.output(self.left(a) + self.right(b))
        left, right, output = self.left.grid, self.right.grid, self.output.grid
        ratio_a = (self.left.scale / self.output.scale).double()
        ratio_b = (self.right.scale / self.output.scale).double()
        offset_b = (ratio_b * right.zero_point).float().double()
        offset = output.zero_point - (ratio_a * left.zero_point + offset_b).float()
        partial = (b.double() * ratio_b + offset.float().double()).float()  # one rounding: an FMA
        total = (a.double() * ratio_a + partial.double()).float()
        return self.output.clip(torch.round(total))


class IntegerMul(TwoOperands):
    """Product of two tensors of 8-bit integers, in the arithmetic of ONNX Runtime's kernel.

    ``round((a_q - z_a) (b_q - z_b) M + z_y)`` with ``M = s_a s_b / s_y`` in float32.
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Integers in and out; shapes broadcast."""
        if self.exports_onnx_form:
            return self.output(self.left(a) * self.right(b))
        scale = self.left.scale * self.right.scale / self.output.scale
        product = self.left.steps(a) * self.right.steps(b)
        return self.output.clip(torch.round(product * scale + self.output.grid.zero_point))


class IntegerMatMul(TwoOperands):
    """Product of two matrices of integers: ``round(sum (a_q - z_a) (b_q - z_b) * M) + z_y``.

    ``M = s_a * s_b / s_y``, computed and applied in float32. The sum is exact in float32 up to 512
    products of 8-bit integers.

    Args:
        left: Grid of the first operand.
        right: Grid of the second operand.
        output: Grid of the product.
        equation: Of ``torch.einsum``; None: ``torch.matmul``.
    """

    def __init__(self, left: Grid, right: Grid, output: Grid, equation: str | None = None) -> None:
        super().__init__(left, right, output)
        self.equation = equation

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Integers in and out, shapes as the operation's."""
        if self.exports_onnx_form:
            return self.output(self._multiply(self.left(a), self.right(b)))
        scale = self.left.scale * self.right.scale / self.output.scale
        product = self._multiply(self.left.steps(a), self.right.steps(b))
        return self.output.integers(product * scale)

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
        self.input = Dequantize(input_grid, in_steps=True)
        self.output = None if output_grid is None else Requantize(output_grid)
        narrow = layer.weight_quantizer.spec.bit_width <= 8
        self.register_buffer("weight", weight.to(torch.int8 if narrow else torch.int32))
        self.register_buffer("bias", None if bias is None else bias.to(torch.int32))
        per_tensor = layer.weight_quantizer.spec.granularity == "per_tensor"
        self.register_buffer(
            "weight_scale", (weight_scale[0] if per_tensor else weight_scale).clone()
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
        acc = self.accumulate(self.input.steps(x))
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
