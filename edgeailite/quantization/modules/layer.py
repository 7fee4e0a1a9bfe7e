"""Layers that quantize their weight and bias: annotated convolutions and linears become these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeailite.quantization.arithmetic.fold import channel_view, fold_bias, weight_rows
from edgeailite.quantization.graph.operations import LAYERS
from edgeailite.quantization.graph.registry import modules_of
from edgeailite.quantization.graph.twins import make_twin, twin_types
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.bias import (
    fake_quantized_bias,
    float_offset,
    min_weight_scale,
)
from edgeailite.quantization.modules.normalization import gain_and_offset
from edgeailite.quantization.modules.weight_quantizer import WeightQuantizer

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import BiasSpec, QuantSpec

OutputSize = Sequence[int] | None
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

# Called with the input, weight and bias in float, the batch norm, the quantizer of the input, the
# one behind that rounds down, and the output size; see :meth:`QuantLayer.forward`.
Compute = Callable[
    [
        Tensor,
        Tensor,
        Tensor | None,
        nn.Module | None,
        FakeQuantize | None,
        FakeQuantize | None,
        OutputSize,
    ],
    Tensor,
]


class FoldedLayer(NamedTuple):
    """Weight and bias of a layer with its batch norm folded in, and the weight's grid.

    Attributes:
        weight: Float weight, shape of the layer's.
        bias: Float bias, shape ``(C_out,)``, or None.
        scale: Weight scale of each output channel, shape ``(C_out,)``.
    """

    weight: Tensor
    bias: Tensor | None
    scale: Tensor


class QuantLayer(nn.Module):
    """Mixin over torch's convolutions and linear; parameters, paths and hooks stay as they were.

    In training, with the batch norm still learning, the weight is fake-quantized with scale
    ``s / f`` per channel, which is the grid of the folded weight ``W * f``, and the batch norm runs
    as ever: weight-sized work only. As soon as the batch norm is in evaluation mode it is folded:
    one convolution with bias.

    Attributes:
        weight_quantizer: Grid of the (folded) weight.
        bias_spec: Grid of the (folded) bias.
        fake_quant_enabled: False computes the float layer.

    State:
        own_bits: Bits of weight and bias, uint8, shape ``(2,)``, where they were chosen for this
            layer; absent otherwise.
        weight_range: Magnitude that the grid of the folded weight covers, for each output channel,
            float32, shape ``(C_out,)``; absent: that of the weights, by the spec's range rule. A
            parameter where the spec's range is learned.
        oscillations: See :class:`~edgeailite.quantization.modules.oscillation.Oscillations`; absent
            unless oscillating weights are frozen.
    """

    weight_quantizer: WeightQuantizer
    bias_spec: BiasSpec
    fake_quant_enabled: bool
    _substitute: Compute | None = None

    weight: Tensor
    bias: Tensor | None
    weight_range: Tensor | None
    # Of convolutions only.
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    kernel_size: tuple[int, ...]
    groups: int
    dilation: tuple[int, ...]
    _output_padding: Callable[..., list[int]]
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
        if isinstance(layer, QuantLayer):
            layer.weight_quantizer.spec, layer.bias_spec = weight_spec, bias_spec
            return layer
        twin = make_twin(layer, QUANT_LAYERS[type(layer)])
        twin.begin(weight_spec, bias_spec)
        return twin

    def begin(self, weight_spec: QuantSpec, bias_spec: BiasSpec) -> None:
        """Set up the state that quantization adds."""
        self.weight_quantizer, self.bias_spec = WeightQuantizer(weight_spec), bias_spec
        self.fake_quant_enabled = True
        self.register_buffer("weight_range", None)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Load; weight range and oscillations come and go with the checkpoint, bits only come."""
        own_bits = state_dict.get(f"{prefix}own_bits")
        if own_bits is not None:
            self.choose_bits(*own_bits.tolist())
            state_dict = {k: v for k, v in state_dict.items() if k != f"{prefix}own_bits"}
        if f"{prefix}weight" in state_dict:
            state_dict = dict(state_dict)
            tracked = state_dict.pop(f"{prefix}oscillations", None)
            self.weight_quantizer.oscillations.state = None if tracked is None else tracked.clone()
        key = f"{prefix}weight_range"
        given = state_dict.get(key)
        if not isinstance(self.weight_range, nn.Parameter):
            own = None if given is None else torch.empty_like(given, device=self._device())
            self.register_buffer("weight_range", own)
        elif given is None:
            state_dict = {**state_dict, key: self.weight_range}
        else:
            self.weight_quantizer.range_was_given = True
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight_quantizer.has_own_bits:
            bits = self.weight_quantizer.spec.bit_width, self.bias_spec.bit_width
            destination[f"{prefix}own_bits"] = torch.tensor(bits, dtype=torch.uint8)
        if self.weight_quantizer.oscillations.state is not None:
            destination[f"{prefix}oscillations"] = self.weight_quantizer.oscillations.state

    def choose_bits(self, weight_bits: int, bias_bits: int | None = None) -> None:
        """Give weight, and bias, bit widths of their own."""
        self.weight_quantizer.choose_bits(weight_bits)
        if bias_bits is not None:
            self.bias_spec = replace(self.bias_spec, bit_width=bias_bits)

    @torch.no_grad()
    def set_weight_range(self, max_abs: Tensor) -> None:
        """Cover these magnitudes of the folded weight from now on, shape ``(C_out,)``."""
        self.weight_quantizer.range_was_given = True
        if isinstance(self.weight_range, nn.Parameter):
            self.weight_range.copy_(max_abs)
        elif self.weight_quantizer.spec.learned:
            del self.weight_range
            self.weight_range = nn.Parameter(max_abs.clone())
        else:
            self.register_buffer("weight_range", max_abs)

    def forget_weight_range(self) -> None:
        """Cover the weights as they are, by the spec's range rule or, learned, from the start."""
        self.weight_quantizer.range_was_given = False
        if not self.weight_quantizer.spec.learned:
            self.register_buffer("weight_range", None)

    def _device(self) -> torch.device | None:
        tensor = next(self.parameters(), None)
        return None if tensor is None else tensor.device

    @property
    def is_transposed(self) -> bool:
        """True if the weight has the shape ``(in, out / groups, ...)``."""
        return bool(getattr(self, "transposed", False))

    @property
    def num_groups(self) -> int:
        """Groups of the convolution; 1 for linear."""
        return int(getattr(self, "groups", 1))

    def operate(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: OutputSize = None
    ) -> Tensor:
        """Run the bare operation with other values for weight and bias."""
        if isinstance(self, nn.Linear):
            return F.linear(x, weight, bias)
        if self.is_transposed:
            sizes = self.stride, self.padding, self.kernel_size, weight.dim() - 2, self.dilation
            added = self._output_padding(x, output_size, *sizes)
            options = self.stride, self.padding, added, self.groups, self.dilation
            return _TRANSPOSED[weight.dim() - 2](x, weight, bias, *options)
        return self._conv_forward(x, weight, bias)

    def forward(
        self,
        x: Tensor,
        batch_norm: nn.Module | None = None,
        input_quantizer: FakeQuantize | None = None,
        output_quantizer: FakeQuantize | None = None,
        output_size: OutputSize = None,
    ) -> Tensor:
        """Compute the layer and the batch norm behind it.

        Args:
            x: Input of the layer.
            batch_norm: The batch norm behind the layer, if there is one.
            input_quantizer: Its scale, times the weight's, is the bias's; None leaves the bias in
                float.
            output_quantizer: The one behind, if it rounds down: half of its scale is added here.
            output_size: Of a transposed convolution, as torch takes it; None: its own padding.
        """
        quantizers = input_quantizer, output_quantizer
        return self._compute(x, self.weight, self.bias, batch_norm, *quantizers, output_size)

    @contextmanager
    def computing_with(self, function: Compute) -> Iterator[None]:
        """Let `function` compute the layer and its batch norm."""
        before, self._substitute = self._substitute, function
        try:
            yield
        finally:
            self._substitute = before

    def _compute(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        batch_norm: nn.Module | None,
        input_quantizer: FakeQuantize | None,
        output_quantizer: FakeQuantize | None,
        output_size: OutputSize = None,
    ) -> Tensor:
        """:meth:`forward` for a given weight and bias."""
        quantizers = input_quantizer, output_quantizer
        if batch_norm is not None and weight.dim() == 2 and x.dim() != 2:
            raise ValueError(
                f"The batch norm behind a linear layer of {weight.shape[0]} outputs reads values "
                f"with {x.dim()} axes: it normalizes the second one, and the layer's outputs are "
                "the last one, so it cannot be folded. Give the wrapper example_inputs, which tell "
                "it the shapes before it folds."
            )
        if self._substitute is not None:
            return self._substitute(x, weight, bias, batch_norm, *quantizers, output_size)
        if not self.fake_quant_enabled:
            y = self.operate(x, weight, bias, output_size)
            return y if batch_norm is None else batch_norm(y)
        if batch_norm is not None and batch_norm.training:
            weight = self._training_weight(weight, bias, batch_norm, input_quantizer)
            y = batch_norm(self.operate(x, weight, bias, output_size))
            return y if output_quantizer is None else y + output_quantizer.qparams().scale / 2
        if self.bias_spec.is_float and input_quantizer is not None:
            return self._operate_on_integers(x, weight, bias, batch_norm, *quantizers, output_size)
        parameters = self.quantized_parameters(weight, bias, batch_norm, *quantizers)
        return self.operate(x, *parameters, output_size)

    def _operate_on_integers(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        batch_norm: nn.Module | None,
        input_quantizer: FakeQuantize | None,
        output_quantizer: FakeQuantize | None,
        output_size: OutputSize,
    ) -> Tensor:
        """``(sum x * w_q + offset) * s_w``: with a float offset, the order of roundings counts."""
        folded = self.folded(weight, bias, batch_norm, input_quantizer)
        scale = self.channels(folded.scale, weight)
        integers = self.fake_quantized(folded.weight, folded.scale, batch_norm) / scale
        offset = float_offset(folded.bias, folded.scale, output_quantizer)
        y = self.operate(x, integers, None, output_size) + per_output(offset, weight)
        return y * per_output(folded.scale, weight)

    def channels(self, vector: Tensor, weight: Tensor) -> Tensor:
        """Shape a vector over output channels so that it multiplies `weight`."""
        return channel_view(vector, weight, self.is_transposed, self.num_groups)

    def input_channels(self, vector: Tensor, weight: Tensor) -> Tensor:
        """Shape a vector over input channels so that it multiplies `weight`."""
        tail = [1] * (weight.dim() - 2)
        if self.is_transposed:
            return vector.reshape(-1, 1, *tail)
        per_group = vector.reshape(self.num_groups, 1, -1)
        repeated = per_group.expand(-1, weight.shape[0] // self.num_groups, -1)
        return repeated.reshape(*weight.shape[:2], *tail)

    def rows(self, weight: Tensor) -> Tensor:
        """Weights of each output channel as one row, shape ``(C_out, n)``."""
        return weight_rows(weight, self.is_transposed, self.num_groups)

    def folded(
        self,
        weight: Tensor,
        bias: Tensor | None,
        batch_norm: nn.Module | None,
        input_quantizer: FakeQuantize | None,
    ) -> FoldedLayer:
        """Fold `batch_norm` into weight and bias, and find the weight's scale; differentiable."""
        if batch_norm is not None:
            gain, offset = gain_and_offset(batch_norm)
            weight, bias = weight * self.channels(gain, weight), fold_bias(bias, gain, offset)
        rows = self.rows(weight.detach())
        return FoldedLayer(weight, bias, self._scale(rows, None, bias, input_quantizer))

    def _scale(
        self,
        rows: Tensor,
        gain: Tensor | None,
        bias: Tensor | None,
        input_quantizer: FakeQuantize | None,
    ) -> Tensor:
        """Scale of each output channel; where the range is learned, it passes a gradient on."""
        with torch.no_grad():
            min_scale = min_weight_scale(rows, gain, bias, self.bias_spec, input_quantizer)
        scale = self.weight_quantizer.scale(rows, gain, self.weight_range, min_scale)
        if not self.training:
            return scale
        return self.weight_quantizer.with_range_gradient(scale, self.weight_range)

    def quantized_parameters(
        self,
        weight: Tensor,
        bias: Tensor | None,
        batch_norm: nn.Module | None,
        input_quantizer: FakeQuantize | None,
        output_quantizer: FakeQuantize | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Folded weight and bias, both on their grids (in real units); differentiable.

        Before an `output_quantizer` that rounds down, the bias holds half of its scale as well.
        """
        weight, bias, scale = self.folded(weight, bias, batch_norm, input_quantizer)
        weight = self.fake_quantized(weight, scale, batch_norm)
        quantizers = input_quantizer, output_quantizer
        return weight, fake_quantized_bias(bias, scale, self.bias_spec, *quantizers)

    def fake_quantized(
        self, weight: Tensor, scale: Tensor, folded: nn.Module | None = None
    ) -> Tensor:
        """Put `weight` on the grid with `scale`, shape ``(C_out,)``; see the weight quantizer.

        `folded` is the batch norm that was folded into the weight.
        """
        quantizer, scale = self.weight_quantizer, self.channels(scale, weight)
        if not self.training:
            return quantizer.fake_quantize(weight, scale)
        if quantizer.freezes and "weight" in self._parameters:  # not a computed weight
            gain = None
            if folded is not None:
                gain = self.channels(gain_and_offset(folded)[0].detach(), weight)
            weight = quantizer.freeze_oscillating(weight, scale, self.weight, gain)
        return quantizer.fake_quantize_in_training(weight, scale, self.weight_range)

    def _training_weight(
        self,
        weight: Tensor,
        bias: Tensor | None,
        batch_norm: nn.Module,
        input_quantizer: FakeQuantize | None,
    ) -> Tensor:
        """Put the weight on the grid it will have when folded, divided by the gain."""
        with torch.no_grad():
            gain, offset = gain_and_offset(batch_norm)
            rows, bias = self.rows(weight), fold_bias(bias, gain, offset)
        scale = self._scale(rows, gain, bias, input_quantizer)
        # A dead channel takes any grid: its output is times 0.
        gain = torch.where(gain == 0, torch.ones_like(gain), gain)
        return self.fake_quantized(weight, scale / gain)


def per_output(vector: Tensor, weight: Tensor) -> Tensor:
    """Shape a vector over output channels so that it multiplies a layer's output."""
    return vector.reshape(-1, *[1] * (weight.dim() - 2))


QUANT_LAYERS = twin_types(QuantLayer, modules_of(*LAYERS), "Quant")
