"""Integer operators of a converted graph: averages, sums, products and quotients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgeailite.quantization.arithmetic.quotient import quotient
from edgeailite.quantization.integer.grid import Dequantize, Grid, IntegerOperator, Requantize


class IntegerAveragePool(IntegerOperator):
    """Local averages in the arithmetic of ONNX Runtime's kernel, which rounds last of all.

    ``round(mean((x_q - z_x) s_x) / s_y + z_y)``: the zero point is added before the rounding.

    Args:
        operation: The pooling, a module or function of real values.
        source: Grid of the input.
        output: Grid of the averages.
    """

    def __init__(self, operation: Callable[[Tensor], Tensor], source: Grid, output: Grid) -> None:
        super().__init__()
        self.operation = operation
        self.input, self.output = Dequantize(source), Requantize(output)

    @property
    def output_grid(self) -> Grid:
        """Grid of the averages."""
        return self.output.grid

    def forward(self, x: Tensor) -> Tensor:
        """Integers in and out, shapes as the pooling's."""
        y = self.operation(self.input(x))
        if self.input.exports_onnx_form:
            return self.output(y)
        grid = self.output.grid
        return self.output.clamp(torch.round(y / grid.scale + grid.zero_point))


class IntegerGlobalAverage(IntegerOperator):
    """Averages over whole images in the arithmetic of ONNX Runtime's kernel.

    ``round(sum(x_q - z_x) * M) + z_y`` with ``M = s_x / (s_y * n)`` in float32; the sum is exact.

    Args:
        source: Grid of the input.
        output: Grid of the averages.
        keepdim: Return ``(N, C, 1, 1)``, else ``(N, C)``.
    """

    def __init__(self, source: Grid, output: Grid, keepdim: bool) -> None:
        super().__init__()
        self.input, self.output, self.keepdim = Dequantize(source), Requantize(output), keepdim

    @property
    def output_grid(self) -> Grid:
        """Grid of the averages."""
        return self.output.grid

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
            sums = self.input.centered(x).double().sum((2, 3), keepdim=True)
            y = self.output.integers(sums.float() * multiplier)
        return y if self.keepdim else y.flatten(1)


class TwoOperands(IntegerOperator):
    """An operation on two tensors of integers, whose result is rounded to a third grid.

    Args:
        left: Grid of the first operand.
        right: Grid of the second operand.
        output: Grid of the result.
    """

    def __init__(self, left: Grid, right: Grid, output: Grid) -> None:
        super().__init__()
        self.left, self.right = Dequantize(left), Dequantize(right)
        self.output = Requantize(output)

    @property
    def output_grid(self) -> Grid:
        """Grid of the result."""
        return self.output.grid

    @property
    def exports_onnx_form(self) -> bool:
        """True if this call is traced for a file in which all three grids have a form."""
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
        return self.output.clamp(torch.round(total))


class IntegerMul(TwoOperands):
    """Product of two tensors of 8-bit integers, in the arithmetic of ONNX Runtime's kernel.

    ``round((a_q - z_a) (b_q - z_b) M + z_y)`` with ``M = s_a s_b / s_y`` in float32.
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Integers in and out; shapes broadcast."""
        if self.exports_onnx_form:
            return self.output(self.left(a) * self.right(b))
        scale = self.left.scale * self.right.scale / self.output.scale
        product = self.left.centered(a) * self.right.centered(b)
        return self.output.clamp(torch.round(product * scale + self.output.grid.zero_point))


class IntegerDiv(TwoOperands):
    """Quotient of two tensors of integers: ``round((a_q - z_a) / (b_q - z_b) * M) + z_y``.

    ``M = s_a / (s_b s_y)`` in float32. A divisor 0 is half a step, see
    :func:`~edgeailite.quantization.arithmetic.quotient.quotient`. One division and one product,
    which IEEE 754 rounds alike on all machines.
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Integers in and out; shapes broadcast."""
        multiplier = self.left.scale / (self.right.scale * self.output.scale)
        steps = quotient(self.left.steps(a), self.right.steps(b), 0.5)
        return self.output.steps(steps * multiplier)


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
        product = self._multiply(self.left.centered(a), self.right.centered(b))
        return self.output.integers(product * scale)

    def _multiply(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.matmul(a, b) if self.equation is None else torch.einsum(self.equation, a, b)
