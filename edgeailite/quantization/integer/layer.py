"""Integer convolutions and linear layers of a converted graph."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgeailite.quantization.arithmetic.fixed_point import EXACT_BITS
from edgeailite.quantization.arithmetic.rounding import round_to_integer
from edgeailite.quantization.arithmetic.weights import quantize_bias
from edgeailite.quantization.integer.grid import (
    FLOAT_BYTES,
    OFFSET_BYTES,
    Constants,
    Dequantize,
    Grid,
    IntegerOperator,
    Requantize,
    dequantize_linear,
    packed_bytes,
)

if TYPE_CHECKING:
    from edgeailite.quantization.modules.layer import OutputSize, QuantLayer
    from edgeailite.quantization.modules.layer_calls import LayerCall

EXACT_IN_FLOAT32 = float(1 << EXACT_BITS)
_X_DIGIT = 256


class IntegerLayer(IntegerOperator):
    """Convolution or linear in integers: ``round((sum (x_q - z_x) * w_q + b_q) * M) + z_y``.

    ``M = s_x * s_w / s_y`` per output channel, computed and applied in float32, as ONNX Runtime's
    integer kernels do. The sum runs in float32 where ``sum |w_q| * max |x_q - z_x| + |b_q| < 2^24``
    for every output channel, which makes it exact; else in float64.

    ONNX Runtime has no integer kernel of transposed convolutions: between free scales, a file sums
    ``x_q - z_x`` and ``w_q`` themselves, in float32, and multiplies the sums by `M`.

    Args:
        layer: Says which operation; its own parameters are not used.
        weight: Integers, shape of the layer's weight.
        bias: Integers, shape ``(C_out,)``, or None.
        weight_scale: Scales of the output channels, float32, shape ``(C_out,)``.
        input_grid: Of the input.
        output_grid: Of the output; None: the accumulator is returned in real units, ``acc * s_x *
            s_w``.
    """

    weight: Tensor
    bias: Tensor | None
    weight_scale: Tensor
    weight_digits: Tensor | None

    def __init__(
        self,
        layer: QuantLayer,
        weight: Tensor,
        bias: Tensor | None,
        weight_scale: Tensor,
        input_grid: Grid,
        output_grid: Grid | None,
    ) -> None:
        super().__init__()
        self.operation = layer
        self.input = Dequantize(input_grid, scaled=False)
        self.output = None if output_grid is None else Requantize(output_grid)
        narrow = layer.weight_quantizer.spec.bit_width <= 8
        self.register_buffer("weight", weight.to(torch.int8 if narrow else torch.int32))
        self.register_buffer("bias", None if bias is None else bias.to(torch.int32))
        per_tensor = layer.weight_quantizer.spec.granularity == "per_tensor"
        self.register_buffer(
            "weight_scale", (weight_scale[0] if per_tensor else weight_scale).clone()
        )
        self._set_bound(self._accumulator_bound())

    @property
    def output_grid(self) -> Grid | None:
        """Grid of the output."""
        return None if self.output is None else self.output.grid

    def constants(self, input_shape: torch.Size | None) -> Constants:
        """Packed weights, biases, and a float scale for each channel or for all."""
        weights = packed_bytes(self.weight.numel(), self.operation.weight_quantizer.spec.bit_width)
        biases = 0 if self.bias is None else self.bias.numel() * OFFSET_BYTES
        return Constants(weights, biases, self.weight_scale.numel() * FLOAT_BYTES)

    def _accumulator_bound(self) -> float:
        """Largest magnitude that any partial sum can have."""
        magnitude = self.input.grid.max_magnitude
        rows = self.operation.rows(self.weight.float())
        sums = torch.linalg.vector_norm(rows, ord=1, dim=1, dtype=torch.float64) * magnitude
        return float((sums if self.bias is None else sums + self.bias.double().abs()).max())

    def _set_bound(self, bound: float) -> None:
        self.bound = bound
        self.has_free_weights = bool((torch.frexp(self.weight_scale).mantissa != 0.5).any())
        in_float = self.operation.is_transposed or not self.has_onnx_form
        needs_digits = bound >= EXACT_IN_FLOAT32 and in_float
        digits = self._weight_digits() if needs_digits else None
        self.register_buffer("weight_digits", digits, persistent=False)

    @property
    def _has_powers_of_two(self) -> bool:
        grids = [m.grid for m in (self.input, self.output) if m is not None]
        return not self.has_free_weights and all(grid.is_power_of_two for grid in grids)

    @property
    def _axis(self) -> int:
        return 1 if self.operation.is_transposed and self.operation.num_groups == 1 else 0

    @property
    def has_onnx_form(self) -> bool:
        """True if input, weight and output all have an ONNX form."""
        output = self.output is None or self.output.grid.has_onnx_form
        return self.weight.dtype == torch.int8 and output and self.input.grid.has_onnx_form

    @property
    def exports_onnx_form(self) -> bool:
        """True if this call is traced for an ONNX file in which the layer has a form of its own."""
        computed = self._is_exact_on_reals if self.operation.is_transposed else True
        return computed and self.has_onnx_form and torch.compiler.is_exporting()

    @property
    def _is_exact_on_reals(self) -> bool:
        """True if float32 sums real values exactly: no scale is free, and the sums are small."""
        grids = [m.grid for m in (self.input, self.output) if m is not None]
        free = self.has_free_weights or not all(grid.is_power_of_two for grid in grids)
        return self.bound < EXACT_IN_FLOAT32 and not free

    def forward(self, x: Tensor, output_size: OutputSize = None) -> Tensor:
        """Integers in; integers out, or real values if there is no output grid.

        Args:
            x: Integers.
            output_size: Of a transposed convolution; see :meth:`QuantLayer.forward`.
        """
        if self.exports_onnx_form:
            if self.weight.dim() == 2 and x.dim() > 2 and not self._has_powers_of_two:
                # ONNX Runtime has an integer kernel of rows alone; else it adds the bias in float.
                rows = self._onnx_form(x.flatten(0, -2), output_size)
                return rows.unflatten(0, x.shape[:-1])
            return self._onnx_form(x, output_size)
        acc = self.accumulate(self.input.steps(x), output_size)
        if self.output is None:
            return acc * self._per_channel(self.input.scale * self.weight_scale)
        multiplier = self.input.scale * self.weight_scale / self.output.scale
        return self.output.steps(acc * self._per_channel(multiplier))

    def accumulate(self, x: Tensor, output_size: OutputSize = None) -> Tensor:
        """``sum x * w_q + b_q``, exactly; `x` has its zero point taken off. Returned in float32."""
        dtype = torch.float32 if self.bound < EXACT_IN_FLOAT32 else torch.float64
        if dtype == torch.float64 and torch.compiler.is_exporting():
            return self._accumulate_digits(x, output_size)
        bias = None if self.bias is None else self.bias.to(dtype)
        weight = self.weight.to(dtype)
        if self.has_onnx_form and torch.compiler.is_exporting():  # 8 bits in the file, too
            one, zero = torch.ones((), dtype=dtype), torch.zeros((), dtype=torch.int8)
            weight = dequantize_linear(self.weight, one, zero)
        return self.operation.operate(x.to(dtype), weight, bias, output_size).float()

    def _accumulate_digits(self, x: Tensor, output_size: OutputSize) -> Tensor:
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
                part = self.operation.operate(x_digit, weight, None, output_size).double()
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

    def _onnx_form(self, x: Tensor, output_size: OutputSize) -> Tensor:
        axis = None if self.weight_scale.dim() == 0 else self._axis
        zero = torch.zeros_like(self.weight_scale, dtype=torch.int8)
        weight = dequantize_linear(self.weight, self.weight_scale, zero, axis)
        bias = None
        if self.bias is not None:
            scale = self.input.scale * self.weight_scale
            zero = torch.zeros_like(scale, dtype=torch.int32)
            bias = dequantize_linear(self.bias, scale, zero, None if axis is None else 0)
        y = self.operation.operate(self.input(x), weight, bias, output_size)
        return y if self.output is None else self.output(y)

    def get_extra_state(self) -> dict[str, Any]:
        """The accumulator's bound."""
        return {"bound": self.bound}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the bound of a saved model; its weights are in already, its grids not yet."""
        self._set_bound(float(state["bound"]))


def integer_layer(call: LayerCall, grid: Grid, output: Grid | None) -> IntegerLayer:
    """Return the integers of a layer.

    Args:
        call: Of the layer in the prepared model.
        grid: Of the input.
        output: Of the result; None: real values.
    """
    layer = call.layer
    weight, bias, scale = call.folded()
    q = integer_weight(layer, weight, scale)
    if bias is not None:
        bias = quantize_bias(
            bias, grid.scale * scale, layer.bias_spec.limit, layer.bias_spec.rounding
        )
    return IntegerLayer(without_parameters(layer), q, bias, scale, grid, output)


def integer_weight(layer: QuantLayer, weight: Tensor, scale: Tensor) -> Tensor:
    """Integers of a folded weight: ``clamp(round(w / s), q_min, q_max)``, in float.

    Args:
        layer: Of the weight; its own parameters are not used.
        weight: Folded weight.
        scale: Of each output channel, shape ``(C_out,)``.
    """
    spec = layer.weight_quantizer.spec
    q = round_to_integer(weight / layer.channels(scale, weight), spec.rounding)
    return q.clamp(spec.quant_min, spec.quant_max)


def without_parameters(layer: QuantLayer) -> QuantLayer:
    """A copy of `layer` that still knows its operation but holds no weights and no children."""
    bare = copy.copy(layer)
    bare._parameters = dict.fromkeys(layer._parameters)
    bare._modules = {}
    return bare
