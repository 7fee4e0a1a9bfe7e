"""Layers that quantize their weight and bias: what annotated convolutions and linears become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeailite.quantization.arithmetic.fold import channel_view, fold_bias, weight_rows
from edgeailite.quantization.arithmetic.learned_range import follow_range, simulate_learned
from edgeailite.quantization.arithmetic.qparams import weight_scale
from edgeailite.quantization.arithmetic.ranges import weight_max_abs
from edgeailite.quantization.arithmetic.spec import BiasSpec, QuantSpec
from edgeailite.quantization.arithmetic.weights import (
    damped,
    fake_quantize_bias,
    fake_quantize_weight,
    soft_quantize_weight,
)
from edgeailite.quantization.graph.twins import make_twin
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.normalization import gain_and_offset

_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class FoldedLayer(NamedTuple):
    """A layer's weight and bias with its batch norm folded in, and the weight's grid.

    Attributes:
        weight: Float weight, shape of the layer's.
        bias: Float bias, shape ``(C_out,)``, or None.
        scale: Weight step of each output channel, shape ``(C_out,)``.
    """

    weight: Tensor
    bias: Tensor | None
    scale: Tensor


class QuantLayer(nn.Module):
    """Mixin over torch's convolutions and linear; parameters, paths and hooks stay as they were.

    In training, with the batch norm still learning, the weight is fake-quantized with step
    ``s / f`` per channel, which is the grid of the folded weight ``W * f``, and the batch norm runs
    as ever: weight-sized work only. As soon as the batch norm is in evaluation mode it is folded:
    one convolution with bias.

    Attributes:
        weight_spec: Grid of the (folded) weight.
        bias_spec: Grid of the (folded) bias.
        fake_quant_enabled: False computes the float layer.
        softness: In training, how far the weight is from its grid: 0 on it, 1 nearly as in float
            (see :func:`~edgeailite.quantization.arithmetic.weights.soft_quantize_weight`).
        starts_soft: Whether the training's schedule sets the softness.
        has_own_bits: Whether the bits were chosen for this layer.
        range_was_given: Whether a checkpoint or a search set the weight's range: a training that
            learns it then goes on from there.
        damping: In training, how strongly weights are drawn to their grid points (see
            :func:`~edgeailite.quantization.arithmetic.weights.damped`).

    State:
        own_bits: Bits of weight and bias, uint8, shape ``(2,)``, where they were chosen for this
            layer; absent otherwise.
        weight_range: Magnitude that the grid of the folded weight covers, for each output channel,
            float32, shape ``(C_out,)``; absent: that of the weights, by the spec's range rule. A
            parameter where the spec's range is learned.
    """

    weight_spec: QuantSpec
    bias_spec: BiasSpec
    fake_quant_enabled: bool
    softness = 0.0
    starts_soft = False
    damping = 0.0
    range_was_given = False
    has_own_bits = False

    weight: Tensor
    bias: Tensor | None
    weight_range: Tensor | None
    # Of convolutions only.
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    dilation: tuple[int, ...]
    _conv_forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    @classmethod
    def from_float(
        cls, layer: nn.Module, weight_spec: QuantSpec, bias_spec: BiasSpec
    ) -> QuantLayer:
        """Make the quantizing twin of a float layer.

        Args:
            layer: Float layer, which stays one; a quantizing one is returned with the new specs.
            weight_spec: Grid of the weight.
            bias_spec: Grid of the bias.
        """
        twin = (
            layer if isinstance(layer, QuantLayer) else make_twin(layer, QUANT_LAYERS[type(layer)])
        )
        twin.weight_spec, twin.bias_spec, twin.fake_quant_enabled = weight_spec, bias_spec, True
        if "weight_range" not in {*twin._buffers, *twin._parameters}:
            twin.register_buffer("weight_range", None)
        return twin

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """A weight range comes and goes with the checkpoint; bits come."""
        own_bits = state_dict.get(f"{prefix}own_bits")
        if own_bits is not None:
            self.choose_bits(*own_bits.tolist())
            state_dict = {k: v for k, v in state_dict.items() if k != f"{prefix}own_bits"}
        key = f"{prefix}weight_range"
        given = state_dict.get(key)
        if not isinstance(self.weight_range, nn.Parameter):
            own = None if given is None else torch.empty_like(given, device=self._device())
            self.register_buffer("weight_range", own)
        elif given is None:
            state_dict = {**state_dict, key: self.weight_range}
        else:
            self.range_was_given = True
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.has_own_bits:
            bits = self.weight_spec.bit_width, self.bias_spec.bit_width
            destination[f"{prefix}own_bits"] = torch.tensor(bits, dtype=torch.uint8)

    def choose_bits(self, weight_bits: int, bias_bits: int | None = None) -> None:
        """Give weight, and bias, bits of their own."""
        self.has_own_bits = True
        self.weight_spec = self.weight_spec.with_bits(weight_bits)
        if bias_bits is not None:
            self.bias_spec = replace(self.bias_spec, bit_width=bias_bits)

    @torch.no_grad()
    def set_weight_range(self, max_abs: Tensor) -> None:
        """Cover these magnitudes of the folded weight from now on, shape ``(C_out,)``."""
        self.range_was_given = True
        if isinstance(self.weight_range, nn.Parameter):
            self.weight_range.copy_(max_abs)
        elif self.weight_spec.learned:
            del self.weight_range
            self.weight_range = nn.Parameter(max_abs.clone())
        else:
            self.register_buffer("weight_range", max_abs)

    def forget_weight_range(self) -> None:
        """Cover what the weights need, by the spec's range rule or, learned, from the start."""
        self.range_was_given = False
        if not self.weight_spec.learned:
            self.register_buffer("weight_range", None)

    def _device(self) -> torch.device | None:
        tensor = next(self.parameters(), None)
        return None if tensor is None else tensor.device

    @property
    def is_transposed(self) -> bool:
        """Whether the weight is ``(in, out / groups, ...)``."""
        return bool(getattr(self, "transposed", False))

    @property
    def num_groups(self) -> int:
        """Groups of the convolution; 1 for linear."""
        return int(getattr(self, "groups", 1))

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The bare operation with other values for weight and bias."""
        if isinstance(self, nn.Linear):
            return F.linear(x, weight, bias)
        if self.is_transposed:
            function = _TRANSPOSED[weight.dim() - 2]
            stride, padding = self.stride, self.padding
            further = self.output_padding, self.groups, self.dilation
            return function(x, weight, bias, stride, padding, *further)
        return self._conv_forward(x, weight, bias)

    def forward(
        self,
        x: Tensor,
        batch_norm: nn.Module | None = None,
        input_quantizer: FakeQuantize | None = None,
        output_quantizer: FakeQuantize | None = None,
    ) -> Tensor:
        """Compute the unit layer + batch norm.

        Args:
            x: Input of the layer.
            batch_norm: The batch norm behind the layer, if there is one.
            input_quantizer: Whose scale, times the weight's, is the bias's; None leaves the bias
                in float.
            output_quantizer: The one behind, if it rounds down: half of its step is added here.
        """
        return self.compute(
            x, self.weight, self.bias, batch_norm, input_quantizer, output_quantizer
        )

    def compute(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, batch_norm: nn.Module | None,
        input_quantizer: FakeQuantize | None, output_quantizer: FakeQuantize | None = None,
    ) -> Tensor:  # fmt: skip
        """:meth:`forward` for a given weight and bias."""
        if not self.fake_quant_enabled:
            y = self.operate(x, weight, bias)
            return y if batch_norm is None else batch_norm(y)
        if batch_norm is not None and batch_norm.training:
            weight = self._training_weight(weight, bias, batch_norm, input_quantizer)
            y = batch_norm(self.operate(x, weight, bias))
            return y if output_quantizer is None else y + output_quantizer.qparams().scale / 2
        quantizers = input_quantizer, output_quantizer
        if self.bias_spec.is_float and input_quantizer is not None:
            return self._operate_in_steps(x, weight, bias, batch_norm, *quantizers)
        return self.operate(x, *self.quantized_parameters(weight, bias, batch_norm, *quantizers))

    def _operate_in_steps(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, batch_norm: nn.Module | None,
        input_quantizer: FakeQuantize | None, output_quantizer: FakeQuantize | None,
    ) -> Tensor:  # fmt: skip
        """``(sum x * w_q + offset) * s_w``: with a float offset, the order of roundings counts."""
        folded = self.folded(weight, bias, batch_norm, input_quantizer)
        steps = self.fake_quantized(folded.weight, folded.scale) / self.channels(
            folded.scale, weight
        )
        offset = float_offset(folded.bias, folded.scale, output_quantizer)
        y = self.operate(x, steps, None) + per_output(offset, weight)
        return y * per_output(folded.scale, weight)

    def channels(self, vector: Tensor, weight: Tensor) -> Tensor:
        """A vector over output channels shaped to multiply `weight`."""
        return channel_view(vector, weight, self.is_transposed, self.num_groups)

    def input_channels(self, vector: Tensor, weight: Tensor) -> Tensor:
        """A vector over input channels shaped to multiply `weight`."""
        tail = [1] * (weight.dim() - 2)
        if self.is_transposed:
            return vector.reshape(-1, 1, *tail)
        groups = self.num_groups
        per_group = vector.reshape(groups, 1, -1)
        repeated = per_group.expand(-1, weight.shape[0] // groups, -1)
        return repeated.reshape(*weight.shape[:2], *tail)

    def rows(self, weight: Tensor) -> Tensor:
        """`weight` as one row per output channel."""
        return weight_rows(weight, self.is_transposed, self.num_groups)

    def folded(
        self, weight: Tensor, bias: Tensor | None,
        batch_norm: nn.Module | None, input_quantizer: FakeQuantize | None,
    ) -> FoldedLayer:  # fmt: skip
        """Weight and bias with `batch_norm` folded in, and the weight's steps; differentiable."""
        if batch_norm is not None:
            gain, offset = gain_and_offset(batch_norm)
            weight, bias = weight * self.channels(gain, weight), fold_bias(bias, gain, offset)
        with torch.no_grad():
            rows = self.rows(weight)
            max_abs = self.weight_range
            if max_abs is None:
                max_abs = weight_max_abs(rows, self.weight_spec)
            min_scale = self.min_scale(rows, None, bias, input_quantizer)
            scale = weight_scale(max_abs, self.weight_spec, min_scale)
        return FoldedLayer(weight, bias, self._learnable(scale))

    @property
    def _learns_range(self) -> bool:
        return self.training and self.weight_spec.learned and self.weight_range is not None

    def _learnable(self, scale: Tensor) -> Tensor:
        """`scale`; where the range is learned, its gradient reaches the range."""
        if not self._learns_range:
            return scale
        assert self.weight_range is not None
        return follow_range(scale, self.weight_range, self.weight_spec)

    def quantized_parameters(
        self, weight: Tensor, bias: Tensor | None,
        batch_norm: nn.Module | None, input_quantizer: FakeQuantize | None,
        output_quantizer: FakeQuantize | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Folded weight and bias, both on their grids (in real units); differentiable.

        Before an `output_quantizer` that rounds down, the bias holds :func:`half_step` as well.
        """
        weight, bias, scale = self.folded(weight, bias, batch_norm, input_quantizer)
        weight = self.fake_quantized(weight, scale)
        if bias is None and output_quantizer is None:
            return weight, None
        if input_quantizer is None or self.bias_spec.is_float:
            if output_quantizer is not None:
                bias = float_offset(bias, torch.ones_like(scale), output_quantizer)
            return weight, bias
        bias_scale = input_quantizer.qparams().scale * scale
        if bias is not None:
            rounding = self.bias_spec.rounding
            bias = fake_quantize_bias(bias, bias_scale, self.bias_limit, rounding)
        if output_quantizer is not None:
            half = (half_step(bias_scale, output_quantizer) * bias_scale.double()).float()
            bias = half if bias is None else bias + half
        return weight, bias

    def fake_quantized(self, weight: Tensor, scale: Tensor) -> Tensor:
        """`weight` on the grid with steps `scale`, shape ``(C_out,)``; softened in training."""
        spec, steps = self.weight_spec, self.channels(scale, weight)
        if self.softness > 0 and self.training:
            return soft_quantize_weight(
                weight, steps, spec.quant_min, spec.quant_max, self.softness
            )
        limits = spec.quant_min, spec.quant_max
        if self._learns_range:
            count = scale.numel() if spec.granularity == "per_channel" else 1
            zero = torch.zeros((), device=weight.device)
            found = simulate_learned(weight, steps, zero, spec, weight.numel() // count)
        else:
            found = fake_quantize_weight(weight, steps, *limits, spec.rounding)
        if self.damping > 0 and self.training:
            found = damped(found, weight, steps, *limits, self.damping)
        return found

    @property
    def bias_limit(self) -> int:
        """One more than the largest integer the bias may be."""
        return 1 << (self.bias_spec.bit_width - 1)

    def _training_weight(
        self,
        weight: Tensor,
        bias: Tensor | None,
        batch_norm: nn.Module,
        input_quantizer: FakeQuantize | None,
    ) -> Tensor:
        """The weight on the grid it will have when folded, divided by the gain."""
        spec = self.weight_spec
        with torch.no_grad():
            gain, offset = gain_and_offset(batch_norm)
            rows = self.rows(weight)
            if self.weight_range is not None:
                max_abs = self.weight_range
            elif spec.range_rule == "min_max":
                max_abs = weight_max_abs(rows, spec) * gain.abs()
            else:
                max_abs = weight_max_abs(rows * gain[:, None], spec)
            bias = fold_bias(bias, gain, offset)
            min_scale = self.min_scale(rows, gain, bias, input_quantizer)
            scale = weight_scale(max_abs, spec, min_scale)
        # A dead channel takes any grid: its output is times 0.
        gain = torch.where(gain == 0, torch.ones_like(gain), gain)
        return self.fake_quantized(weight, self._learnable(scale) / gain)

    def min_scale(
        self, rows: Tensor, gain: Tensor | None, bias: Tensor | None,
        input_quantizer: FakeQuantize | None,
    ) -> Tensor | None:  # fmt: skip
        """The finest weight steps with which bias and accumulator fit; None: any.

        Args:
            rows: Weights of one output channel a row, shape ``(C_out, n)``.
            gain: What multiplies each row, or None.
            bias: Shape ``(C_out,)``, or None.
            input_quantizer: Of the layer's input.
        """
        spec, finest = self.bias_spec, None
        if input_quantizer is None:
            return None
        if bias is not None and spec.rule != "saturate" and not spec.is_float:
            finest = bias.detach().abs() / (input_quantizer.qparams().scale * (self.bias_limit - 1))
        if spec.accumulator_bits is not None:
            # Half of the room: the rest is for what rounding adds, and the bias.
            room = 1 << (spec.accumulator_bits - 1)
            sums = torch.linalg.vector_norm(rows, ord=1, dim=1)
            sums = sums if gain is None else sums * gain.abs()
            limit = sums * (1 << input_quantizer.spec.bit_width) / room
            finest = limit if finest is None else torch.maximum(finest, limit)
        return finest


class QuantFunctionalLayer(QuantLayer):
    """A functional convolution or linear, whose weight and bias come with each call.

    Args:
        function: One of ``F.conv*`` or ``F.linear``, called as ``function(x, w, b, ...)``.
        options: Its further arguments: stride, padding, ...
        weight_spec: Grid of the weight.
        bias_spec: Grid of the bias.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        options: dict[str, Any],
        weight_spec: QuantSpec,
        bias_spec: BiasSpec,
    ) -> None:
        super().__init__()
        self.register_buffer("weight_range", None)
        self.function, self.options = function, options
        self.groups = int(options.get("groups", 1))
        self.transposed = "transpose" in function.__name__
        self.weight_spec, self.bias_spec, self.fake_quant_enabled = weight_spec, bias_spec, True

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Call the function with its further arguments."""
        return self.function(x, weight, bias, **self.options)

    def forward(  # type: ignore[override]
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None,
        batch_norm: nn.Module | None = None, input_quantizer: FakeQuantize | None = None,
        output_quantizer: FakeQuantize | None = None,
    ) -> Tensor:  # fmt: skip
        """As :meth:`QuantLayer.forward`."""
        return self.compute(x, weight, bias, batch_norm, input_quantizer, output_quantizer)


def per_output(vector: Tensor, weight: Tensor) -> Tensor:
    """A vector over output channels, shaped to multiply the output of a layer with `weight`."""
    return vector.reshape(-1, *[1] * (weight.dim() - 2))


def half_step(accumulator_scale: Tensor, output_quantizer: FakeQuantize) -> Tensor:
    """Half of the output's step in whole steps of the accumulator, rounded down; float64."""
    return torch.floor(output_quantizer.qparams().scale.double() / 2 / accumulator_scale.double())


def float_offset(
    bias: Tensor | None, scale: Tensor, output_quantizer: FakeQuantize | None
) -> Tensor:
    """``(b + s_y / 2) / s_w``: bias and half of the output's step; float32, ``(C_out,)``."""
    real = torch.zeros_like(scale) if bias is None else bias
    if output_quantizer is not None:
        real = real.double() + output_quantizer.qparams().scale.double() / 2
    return (real / scale.double()).float()


def _twin_type(base: type[nn.Module]) -> type[QuantLayer]:
    twin = type(
        f"Quant{base.__name__}",
        (QuantLayer, base),
        {"__module__": __name__, "__doc__": f"Quantizing {base.__name__}."},
    )
    globals()[twin.__name__] = twin
    return twin


QUANT_LAYERS: dict[type[nn.Module], type[QuantLayer]] = {
    base: _twin_type(base)
    for base in (
        nn.Conv1d, nn.Conv2d, nn.Conv3d,
        nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
    )
}  # fmt: skip
